"""The image of a project folder: built from its Dockerfile when one of the files it is made of changed.

An image is found again by its label ``rhstudy.inputs``: the SHA-256 of every file of the build context (what
`.dockerignore` lets through), of the variant and of the build arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound
from docker.utils.build import exclude_paths
from tqdm import tqdm

import rhstudy
from rhstudy.configs import digest, file_sha256
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.engine import EngineError, connect, explained, num_host_gpus
from rhstudy.errors import InputError, message, require
from rhstudy.tracking.environment import git_tags

DOCKERFILE = "Dockerfile"
INPUTS_LABEL = "rhstudy.inputs"
GPU_VARIANT = "cu130"
BILL_FOLDER = "/usr/share/rhstudy"
BILL = ("sbom.cdx.json", "licenses.csv", "lock.cdx.json", "debian-packages.csv")
"""What is installed, its licences, what the lock asked for (with the files' hashes), and the system's packages."""
_STEP = re.compile(r"(?:Step |#\d+ \[(?:\S+ +)?)(\d+)/(\d+)(?: : |\] )(.*)")
"""A step of the classic builder (``Step 3/40 : RUN ...``) or of BuildKit (``#9 [torch 3/3] RUN ...``)."""
_CACHE = re.compile(r"^# cache: (\S+)\nRUN ", re.MULTILINE)
_TAIL = 15
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on the engine.

    Attributes:
        name: a tag of it.
        image_id: sha256 of its configuration.
        repo_digest: what a registry knows it by; empty for one that was never pushed or pulled.
        size_bytes: of all its layers.
        built: whether it was built just now.
        build_s: how long that took, seconds.
        git: variables with git commit and dirty flag of the folder it was built from, which may be newer than its
            labels: a commit that changes no file of the image builds none. Empty for a named image, which has its own.
    """

    name: str
    image_id: str
    repo_digest: str
    size_bytes: int
    built: bool = False
    build_s: float = 0.0
    git: Mapping[str, str] = field(default_factory=dict)


def project_root(start: Path) -> Path:
    """The checkout whose image is built: `start` or a folder above it, else the one this package runs from.

    Raises:
        InputError: neither holds rhstudy's Dockerfile.
    """
    here = start.absolute()
    for folder in (here, *here.parents, Path(rhstudy.__file__).absolute().parents[1]):
        if (folder / DOCKERFILE).is_file() and (folder / "rhstudy").is_dir():
            return folder
    remedy = "Run this in a checkout of rhstudy, or name an existing image"
    raise InputError(message("project folder", f"hold {DOCKERFILE} and rhstudy/", str(start), remedy))


def resolved_variant(config: ContainerConfig) -> str:
    """The variant to build; ``auto`` is the GPU one where this machine has a GPU that is wanted."""
    if config.variant != "auto":
        return config.variant
    return GPU_VARIANT if config.gpus != "none" and num_host_gpus() else "cpu"


def wanted_gpus(config: ContainerConfig) -> str:
    """``none``, ``all`` or device numbers; ``auto`` is all there are, but none for an image built for a CPU."""
    built_for_cpu = not config.image and resolved_variant(config) == "cpu"
    if config.gpus != "auto":
        return config.gpus
    return "all" if num_host_gpus() and not built_for_cpu else "none"


def inputs_digest(project: Path, config: ContainerConfig) -> str:
    """SHA-256 (hex) of all the image is made of; see the module."""
    files = [[name, file_sha256(project / name)] for name in _context(project) if (project / name).is_file()]
    return digest(files, resolved_variant(config), dict(config.build_args))


def ensure_image(client: docker.DockerClient, project: Path, config: ContainerConfig) -> Image:
    """The image to run: the named one (pulled when missing), or the project's own (built when its inputs changed).

    Raises:
        EngineError: it can be neither found nor pulled, or the build failed.
        InputError: `project` has no Dockerfile.
    """
    if config.image:
        return _named(client, config.image)
    require((project / DOCKERFILE).is_file(), "project folder", f"hold a {DOCKERFILE}", str(project), "Name an image")
    inputs = inputs_digest(project, config)
    name = f"rhstudy:{resolved_variant(config)}-{inputs[:12]}"
    with explained("looking for the image"):
        known = client.images.list(filters={"label": f"{INPUTS_LABEL}={inputs}"})
        # An image derived from ours has its labels too: ours has the name.
        known.sort(key=lambda image: not any(tag.endswith(name) for tag in image.tags))
        if known:
            # The name that mlproject gives to stock MLflow follows the latest build.
            known[0].tag("rhstudy", rhstudy.__version__)
            return _facts(known[0], name, git=_git_variables(project))
    began = time.monotonic()
    _log.info("building image %s from %s", name, project)
    _build(client, project, config, inputs, name)
    with explained("looking for the image"):
        image = client.images.get(name)
        image.tag("rhstudy", rhstudy.__version__)
        built = _facts(image, name, git=_git_variables(project))
    return dataclasses.replace(built, built=True, build_s=round(time.monotonic() - began, 1))


def _named(client: docker.DockerClient, name: str) -> Image:
    with explained(f"image {name}"):
        try:
            return _facts(client.images.get(name), name)
        except ImageNotFound:
            _log.info("pulling %s", name)
            repository, _, tag = name.partition("@") if "@" in name else name.rpartition(":")
            has_tag = bool(repository) and "/" not in tag
            pulled = client.images.pull(repository if has_tag else name, tag=tag if has_tag else "latest")
            return _facts(pulled, name)


def _facts(image: Any, name: str, *, git: Mapping[str, str] | None = None) -> Image:
    digests = image.attrs.get("RepoDigests") or [""]
    size = int(image.attrs["Size"])
    return Image(name=name, image_id=image.id, repo_digest=digests[0], size_bytes=size, git=git or {})


def _context(project: Path) -> list[str]:
    """The files of the build context, relative paths, as the engine's own client picks them."""
    ignore = project / ".dockerignore"
    patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    kept = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    return sorted(str(name) for name in exclude_paths(str(project), kept, dockerfile=DOCKERFILE))


def build_arguments(project: Path, config: ContainerConfig) -> dict[str, str]:
    """Variant, git commit and dirty flag of the project folder, and what the config adds."""
    git = {name.removeprefix("RHSTUDY_"): value for name, value in _git_variables(project).items()}
    return {"VARIANT": resolved_variant(config), **git, **config.build_args}


def _git_variables(project: Path) -> dict[str, str]:
    tags = git_tags(project / "rhstudy")
    return {"RHSTUDY_GIT_COMMIT": tags["rhstudy.git_commit"], "RHSTUDY_GIT_DIRTY": tags["rhstudy.git_dirty"]}


def _build(client: docker.DockerClient, project: Path, config: ContainerConfig, inputs: str, name: str) -> None:
    arguments = build_arguments(project, config)
    program = buildkit_program() if config.builder != "classic" else None
    if program is None:
        needed = config.builder == "buildkit"
        require(not needed, "builder", "be there", config.builder, "Install docker buildx, or use the builder auto")
        with explained("building the image"):
            stream = client.api.build(
                path=str(project),
                tag=name,
                buildargs=arguments,
                labels={INPUTS_LABEL: inputs},
                network_mode=config.build_network or None,
                rm=True,
                forcerm=True,
                decode=True,
            )
            _follow(_messages(stream))
        return
    command = [*program, "--progress", "plain", "--tag", name, "--label", f"{INPUTS_LABEL}={inputs}", "--file", "-"]
    command += [f"--build-arg={key}={value}" for key, value in {**arguments, "PIP_NO_CACHE_DIR": ""}.items()]
    command += ["--network", config.build_network] if config.build_network else []
    text = with_cache_mounts((project / DOCKERFILE).read_text(encoding="utf-8"))
    _follow(_lines([*command, str(project)], text))


def buildkit_program() -> list[str] | None:
    """The command that builds with BuildKit, or None where the docker command line has none."""
    docker_program = shutil.which("docker")
    if docker_program is None:
        return None
    asked = subprocess.run([docker_program, "buildx", "version"], capture_output=True, check=False)
    return [docker_program, "buildx", "build", "--load"] if asked.returncode == 0 else None


def with_cache_mounts(dockerfile: str) -> str:
    """The Dockerfile for BuildKit: each step below ``# cache: FOLDER`` keeps FOLDER between builds."""
    return _CACHE.sub(r"RUN --mount=type=cache,target=\1 ", dockerfile)


def _messages(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for entry in stream:
        if "error" in entry:
            raise _failed(str(entry["error"]), [])
        yield from str(entry.get("stream", "")).splitlines()


def _lines(command: list[str], dockerfile: str) -> Iterator[str]:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise _failed("no pipes to docker", [])
        # A builder that ended at once says why on its output.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(dockerfile)
            process.stdin.close()
        tail: list[str] = []
        for line in process.stdout:
            tail = [*tail[1 - _TAIL :], line.rstrip()]
            yield line.rstrip()
        if process.wait() != 0:
            raise _failed(f"exit code {process.returncode}", tail)


def _follow(lines: Iterator[str]) -> None:
    """Show a build as a progress bar over its steps; when it fails, its last lines are part of the error."""
    tail: list[str] = []
    with tqdm(desc="image", unit="step", disable=None) as bar:
        try:
            for line in filter(str.strip, lines):
                tail = [*tail[1 - _TAIL :], line]
                step = _STEP.match(line)
                if step:
                    bar.total, bar.n = int(step[2]), int(step[1])
                    bar.refresh()
                    _log.info("  %s", line[:110])
        except EngineError as error:
            if tail:
                error.add_note("\n".join(tail))
            raise


def _failed(said: str, tail: list[str]) -> EngineError:
    remedy = f"Mend the step that failed; the engine says: {said[-400:]}"
    error = EngineError(message("building the image", "succeed", "<failed>", remedy))
    if tail:
        error.add_note("\n".join(tail))
    return error


def export_bill(client: docker.DockerClient, image: Image, folder: Path) -> dict[str, str]:
    """Copy the image's bills of materials (CycloneDX 1.6) and licence list to `folder`, with `image.json` beside them.

    Returns:
        SHA-256 of each file.

    Raises:
        EngineError: the image holds none, or cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with explained("reading the image's bill of materials"):
        container = client.containers.create(image.image_id)
        try:
            chunks, _ = container.get_archive(BILL_FOLDER)
            archive = io.BytesIO(b"".join(chunks))
        finally:
            container.remove()
    written = set()
    with tarfile.open(fileobj=archive) as files:
        for member in files.getmembers():
            content = files.extractfile(member)
            if content is not None and Path(member.name).name in BILL:
                (folder / Path(member.name).name).write_bytes(content.read())
                written.add(Path(member.name).name)
    missing = [name for name in BILL if name not in written]
    if missing:
        remedy = "Use an image of this version of rhstudy"
        raise EngineError(message("bill of materials", "be in the image", f"<no {missing[0]}>", remedy, image.name))
    found = {name: file_sha256(folder / name) for name in BILL}
    facts = {"name": image.name, "id": image.image_id, "repo_digest": image.repo_digest, "size_bytes": image.size_bytes}
    text = json.dumps({**facts, "files": found}, indent=2, sort_keys=True)
    (folder / "image.json").write_text(text + "\n", encoding="utf-8")
    return found


def image_facts(config: ContainerConfig, output: str) -> dict[str, Any]:
    """Make sure of the image of the checkout in the current folder; its bill goes to the folder `output`, if any.

    Raises:
        EngineError: no engine, or the build failed.
        InputError: this is no checkout.
    """
    project = Path.cwd() if config.image else project_root(Path.cwd())
    client = connect()
    image = ensure_image(client, project, config)
    _log.info("image %s: %.2f GB%s", image.name, image.size_bytes / 1e9, "" if image.built else " (was there)")
    facts: dict[str, Any] = {name: getattr(image, name) for name in Image.__slots__ if name != "git"}
    if output:
        facts |= {"output": output, "files": export_bill(client, image, Path(output))}
    return facts
