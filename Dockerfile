# rhstudy in a container: every stage, any user id, GPU or CPU.
#
#   docker build -t rhstudy:0.1.0 .                                GPU image (torch with CUDA 13.0)
#   docker build -t rhstudy:0.1.0 --build-arg VARIANT=cpu .        CPU image
#   rhstudy image                                                  the same, with git labels, only when inputs changed
#
# Builds with BuildKit and without it. A step below "# cache: FOLDER" keeps its downloads there between builds where
# BuildKit is present: `rhstudy image` then turns the comment into `RUN --mount=type=cache,target=FOLDER`.
#
# Pin the base by digest for a build that can be repeated years from now; the digest is what your registry says today:
#   docker buildx imagetools inspect python:3.12-slim-bookworm
#   docker build --build-arg BASE_IMAGE=python:3.12-slim-bookworm@sha256:... .
# Any Debian or Ubuntu with Python 3.11 or newer as python3 (with venv) will do. GPUs need no CUDA base image: torch
# brings CUDA, the NVIDIA container toolkit brings the driver.
#
# Bytecode is compiled at the end of a step and checked by nothing at run time, so that it is the same in every build;
# some packages ship files for other Python versions, which cannot be compiled and are left as they are.
#
# torch is no part of the lock (its wheels differ by index): it is installed by version from TORCH_INDEX, with what it
# brings (CUDA) as the index has it; the CPU build also from a wheel that fits in the folder wheels/ of the context.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# --- system: gcc and Python's headers, because Triton compiles its launchers when it runs
FROM ${BASE_IMAGE} AS system
RUN set -eu; \
    headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')"; \
    packages="gcc libc6-dev"; [ -e "$headers/Python.h" ] || packages="$packages python3-dev"; \
    apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
        /var/lib/dpkg/*-old /var/log/*

# --- torch: alone, in a stage of its own, so that a wheel from the build context stays out of the image's layers
FROM system AS torch
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
ARG PIP_NO_CACHE_DIR=1
ARG VARIANT=cu130
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/${VARIANT}
COPY requirements.lock wheel[s] /tmp/wheels/
# cache: /root/.cache/pip
RUN set -eu; \
    case "$VARIANT" in cpu|cu[0-9]*) ;; *) echo "VARIANT must be cpu or cuNNN, got '$VARIANT'." >&2; exit 2 ;; esac; \
    python3 -m venv /opt/venv; \
    python="cp$(python3 -c 'import sys; print("%d%d" % sys.version_info[:2])')"; \
    if [ "$VARIANT" = cpu ] && ls /tmp/wheels/torch-"$TORCH_VERSION+cpu-$python"-*.whl; \
    then pip install --no-compile --no-index --no-deps /tmp/wheels/torch-"$TORCH_VERSION+cpu-$python"-*.whl; \
    else pip install --no-compile --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION"; fi; \
    python -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash -x '/tests?/' /opt/venv/lib || true

# --- packages: everything else the lock names, before any source
FROM system AS packages
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
COPY --from=torch /opt/venv /opt/venv
ARG PIP_NO_CACHE_DIR=1
ARG VARIANT=cu130
COPY requirements.lock /tmp/lock
# cache: /root/.cache/pip
RUN set -eu; \
    pip install --no-compile --no-deps --require-hashes -r /tmp/lock; \
    rm /tmp/lock; \
    pip check; \
    found="$(python -c 'import torch; cuda = torch.version.cuda; print("cu" + cuda.replace(".", "") if cuda else "cpu")')"; \
    [ "$found" = "$VARIANT" ] || { echo "torch must be built for $VARIANT, got $found. Check TORCH_INDEX and wheels/" >&2; \
        exit 2; }; \
    # 110 MB of CUDA kernels that a machine without GPU cannot load.
    [ "$VARIANT" != cpu ] || rm /opt/venv/lib/python3*/site-packages/bitsandbytes/libbitsandbytes_cuda*.so; \
    python -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash -x '/tests?/|/site-packages/(torch|kubernetes)/' /opt/venv/lib \
        || true

# --- wheel: the package, with the locked tools that also list what the image holds
FROM packages AS wheel
ARG PIP_NO_CACHE_DIR=1
COPY requirements-image.lock /tmp/lock
# cache: /root/.cache/pip
RUN set -eu; python3 -m venv /opt/tools; /opt/tools/bin/pip install --no-deps --require-hashes -r /tmp/lock
WORKDIR /src
COPY LICENSE README.md pyproject.toml requirements.lock ./
COPY rhstudy rhstudy
RUN set -eu; export SOURCE_DATE_EPOCH=315532800; \
    /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .; \
    pip install --no-compile --no-deps --no-index /dist/*.whl; \
    mkdir /bill; \
    /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --spec-version 1.6 \
        --output-format JSON --output-file /bill/sbom.cdx.json /opt/venv/bin/python; \
    /opt/tools/bin/cyclonedx-py requirements --output-reproducible --spec-version 1.6 \
        --output-format JSON --output-file /bill/lock.cdx.json requirements.lock; \
    /opt/tools/bin/pip-licenses --python /opt/venv/bin/python --format=csv --order=name --with-urls --with-system \
        --output-file=/bill/licenses.csv; \
    dpkg-query --show --showformat '${Package},${Version}\n' > /bill/debian-packages.csv

# --- the image
FROM packages AS rhstudy
COPY --from=wheel /dist /tmp/dist
COPY --from=wheel /bill /usr/share/rhstudy
# A name for uid 1000, and folders that any other uid may write to (`--user`): home, cache, work, MLflow's scratch.
RUN set -eu; \
    pip install --no-compile --no-deps --no-index /tmp/dist/*.whl; rm -rf /tmp/dist; \
    python -m compileall -q -f --invalidation-mode unchecked-hash /opt/venv/lib/python3*/site-packages/rhstudy; \
    echo 'rhstudy:x:1000:1000::/home/rhstudy:/bin/bash' >> /etc/passwd; echo 'rhstudy:x:1000:' >> /etc/group; \
    mkdir -p /home/rhstudy /cache /work /mlflow/tmp /opt/matplotlib; \
    MPLCONFIGDIR=/opt/matplotlib python -c 'import matplotlib.font_manager'; \
    chmod 1777 /home/rhstudy /cache /work /mlflow /mlflow/tmp; chmod -R a+rwX /opt/matplotlib
COPY LICENSE README.md mlproject pyproject.toml requirements*.lock /work/
COPY sweeps /work/sweeps
COPY tests /work/tests
ENV HOME=/home/rhstudy USER=rhstudy LOGNAME=rhstudy RHSTUDY_CACHE=/cache HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/opt/matplotlib GIT_PYTHON_REFRESH=quiet \
    PYTHONUNBUFFERED=1 PYTHONHASHSEED= \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
USER 1000:1000
CMD ["rhstudy", "--help"]

# Last, so that a new commit with the same files rebuilds nothing above.
ARG GIT_COMMIT=unknown
ARG GIT_DIRTY=unknown
ENV RHSTUDY_GIT_COMMIT=${GIT_COMMIT} RHSTUDY_GIT_DIRTY=${GIT_DIRTY}
LABEL org.opencontainers.image.title="rhstudy" \
      org.opencontainers.image.description="Run, check and extend 'Understanding Synthetic Context Extension via Retrieval Heads'" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      rhstudy.git_dirty="${GIT_DIRTY}"
