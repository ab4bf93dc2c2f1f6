"""How a command is run in a container: the backend config of ``mlflow run --backend rhstudy`` and of ``--runtime``.

``--backend-config`` takes JSON, or a JSON file, with these keys.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rhstudy.configs import from_mapping
from rhstudy.errors import InputError, message, require

Runtime = Literal["auto", "docker", "host"]
Builder = Literal["auto", "buildkit", "classic"]
_VARIANT = re.compile(r"auto|cpu|cu\d+")
_GPUS = re.compile(r"auto|none|all|\d+(,\d+)*")
_SIZE = re.compile(r"(\d+[bkmg]?)?", re.IGNORECASE)
_DOCKER_ARGS = ("gpus", "network", "memory", "shm-size")
"""Flags of ``mlflow run -A NAME=VALUE`` that have a key here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """How a command is run.

    Attributes:
        runtime: ``docker``; ``host``, the Python environment that is active; ``auto``, docker where an engine answers.
        image: an existing image, pulled when it is not there; empty means built from the project's Dockerfile.
        variant: of the built image: ``cpu``, ``cuNNN``, or ``auto``: cu130 where there is a GPU, else cpu.
        build_args: build arguments of the Dockerfile, for instance ``BASE_IMAGE`` or ``TORCH_INDEX``.
        build_network: network of the build's steps; empty is the engine's default.
        builder: ``buildkit`` keeps downloads between builds; ``auto`` is that where the docker command line has it.
        gpus: ``none``, ``all``, device numbers (``0,2``), or ``auto``: all there are.
        network: ``auto`` is the host's network when the tracking server is on this machine, else the engine's default.
        volumes: further folders and files: ``PATH[:ro]`` is mounted where it lies, ``HOST:CONTAINER[:ro]`` elsewhere.
        environment: further environment variables; named in no tag.
        memory: memory limit (``32g``); empty is none.
        shm_size: size of /dev/shm, which NCCL and data loaders use.
        stop_timeout_s: how long a stopped container may take to record its end, seconds.
        patience_s: how long an engine or tracking server that stopped answering is waited for, seconds.
    """

    runtime: Runtime = "auto"
    image: str = ""
    variant: str = "auto"
    build_args: Mapping[str, str] = field(default_factory=dict)
    build_network: str = ""
    builder: Builder = "auto"
    gpus: str = "auto"
    network: str = "auto"
    volumes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""
    shm_size: str = "2g"
    stop_timeout_s: int = 60
    patience_s: int = 60

    def __post_init__(self) -> None:
        known = bool(_VARIANT.fullmatch(self.variant))
        require(known, "variant", "be auto, cpu or cuNNN", self.variant, "Try cpu")
        known = bool(_GPUS.fullmatch(self.gpus))
        require(known, "gpus", "be auto, none, all or device numbers", self.gpus, "Try all, or 0,1")
        for name in ("memory", "shm_size"):
            size = getattr(self, name)
            require(bool(_SIZE.fullmatch(size)), name, "be a size", size, "Write it as 512m or 32g")
        require(bool(self.network), "network", "be auto or a network of the engine", self.network, "Try auto")
        for name in ("stop_timeout_s", "patience_s"):
            seconds = getattr(self, name)
            require(seconds >= 0, name, "be at least 0", seconds, "Give seconds")
        for volume in self.volumes:
            split_volume(volume)


def split_volume(volume: str) -> tuple[Path, str, bool]:
    """(path on the host, path in the container, read-only) of ``PATH[:ro]`` or ``HOST:CONTAINER[:ro]``.

    Raises:
        InputError: another form, or a host path that does not exist.
    """
    parts = volume.split(":")
    read_only = len(parts) > 1 and parts[-1] in ("ro", "rw")
    paths = parts[:-1] if read_only else parts
    remedy = "Write PATH, PATH:ro, HOST:CONTAINER or HOST:CONTAINER:ro"
    require(0 < len(paths) <= 2 and all(paths), "volumes", "name one or two paths", volume, remedy)
    host = Path(os.path.abspath(os.path.expanduser(paths[0])))
    require(host.exists(), "volumes", "exist on this machine", paths[0], "Check the path")
    inside = paths[-1] if len(paths) == 2 else str(host)
    require(inside.startswith("/"), "volumes", "have an absolute path in the container", inside, remedy)
    return host, inside, read_only and parts[-1] == "ro"


def container_config(
    values: Mapping[str, Any] | str | None, docker_args: Mapping[str, Any] | None = None, **wins: str
) -> ContainerConfig:
    """A `ContainerConfig` from a mapping, JSON text or the path of a JSON file.

    Args:
        values: the backend config.
        docker_args: of ``mlflow run -A``; they win.
        **wins: values from flags of their own; they win where they are not empty.

    Raises:
        InputError: not JSON, an unknown key, a wrong value.
    """
    mapping = _from_text(values) if isinstance(values, str) else dict(values or {})
    ours = {**mapping, **{key: value for key, value in wins.items() if value}}
    for key, value in (docker_args or {}).items():
        remedy = f"Known: {', '.join(_DOCKER_ARGS)}; the rest is in --backend-config"
        require(key in _DOCKER_ARGS, "-A", "name an argument this backend knows", key, remedy)
        ours[key.replace("-", "_")] = str(value)
    return from_mapping(ContainerConfig, ours, where="backend config")


def _from_text(text: str) -> dict[str, Any]:
    path = Path(text)
    try:
        found = json.loads(path.read_text(encoding="utf-8") if text.endswith(".json") else text or "{}")
    except (OSError, ValueError) as error:
        remedy = f"""Give a JSON file or text such as '{{"variant": "cpu"}}'; the parser says: {error}"""
        raise InputError(message("backend config", "be readable JSON", text, remedy)) from error
    require(isinstance(found, dict), "backend config", "be a JSON object", text, "Write it as {...}")
    return dict(found)


def config_values(config: ContainerConfig) -> dict[str, Any]:
    """The config for tags: of variables and build arguments, whose values may be secrets, the names alone."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    values |= {name: sorted(values[name]) for name in ("environment", "build_args")}
    return values
