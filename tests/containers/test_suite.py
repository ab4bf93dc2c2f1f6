"""The tests that could end otherwise inside the image, run there by a user nobody knows."""

from __future__ import annotations

import io
import os

import docker
import pytest
from launching import CALLER

from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.image import Image

DOCKERFILE = """
FROM {image}
USER root
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git && \\
    pip install --no-cache-dir --no-compile --no-deps --require-hashes -r /work/requirements-dev.lock
USER 1000:1000
"""
CHOSEN = (
    "contracts",
    "golden",
    "unit/stages",
    "unit/tracking",
    "unit/figures",
    "unit/test_environment_report.py",
    "unit/models/test_load.py",
    "unit/data/test_examples_file.py",
    "unit/data/test_bm25s_import.py",
)
"""What rests on the image's own parts: its Python, what is left out of its packages, its fonts, folders and users.

No weights are fetched for it. The rest has no more to say inside than outside; RHSTUDY_TEST_WHOLE_SUITE=1 runs all of
it here too.
"""
WHOLE = ("unit", "reference", "contracts", "golden")
LEFT_OUT = ("unit/containers", "unit/test_cli_containers.py")
"""Tests of the side that starts containers: they need a checkout around them."""


@pytest.mark.timeout(1800)
def test_the_tests_pass_inside(engine: docker.DockerClient, image: Image, config: ContainerConfig) -> None:
    text = DOCKERFILE.format(image=image.image_id)
    built, _ = engine.images.build(
        fileobj=io.BytesIO(text.encode()), network_mode=config.build_network or None, rm=True, tag="rhstudy-tests:0.1.0"
    )
    wanted = WHOLE if os.environ.get("RHSTUDY_TEST_WHOLE_SUITE") == "1" else CHOSEN
    words = ["python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile", *(f"tests/{name}" for name in wanted)]
    if wanted is CHOSEN:
        words.append("-m 'not real_model'")
    words += [f"--ignore tests/{name}" for name in LEFT_OUT]
    # A shell as the first process: it takes leave of the processes that others left behind.
    command = ["bash", "-c", f"{' '.join(words)}; exit $?"]
    container = engine.containers.run(
        built.id, command, detach=True, user=f"{CALLER}:{CALLER}", network_mode="host", shm_size="1g",
        environment={"OMP_NUM_THREADS": "1", "RHSTUDY_NO_DOCKER": "1"},
    )  # fmt: skip
    try:
        code = container.wait(timeout=1800)["StatusCode"]
        output = container.logs().decode()
    finally:
        container.remove(force=True)
    assert code == 0, output[-6000:]
    assert " passed" in output.splitlines()[-1]
