"""What a container sees of this machine: folders, user and environment.

Every folder is mounted at the path it has here. So artifact URIs, run references, config files and the tracking store
mean the same on both sides, a stage has the same digest, and host and container runs reuse each other.
"""

from __future__ import annotations

import os
import tomllib
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.types import Mount

from rhstudy.containers.config import ContainerConfig, split_volume
from rhstudy.data.named import local_copies
from rhstudy.errors import InputError, message, require
from rhstudy.models.load import cache_root
from rhstudy.tracking.mlflow_store import absolute_uri, database_file
from rhstudy.tracking.process import LAUNCH_VARIABLES

IMAGES_OWN = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "usr", "var")
"""Folders of the image that a mount must not hide: these themselves, and all of ``/opt/venv``."""
WRITTEN_KEYS = frozenset({"work_dir", "folder", "cache_dir"})
"""Config keys that name folders a stage writes to."""
PASSED_PREFIXES = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "HF_", "OMP_", "MKL_", "NCCL_", "TORCH_", "RHSTUDY_")
PASSED_NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
NOT_PASSED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", *LAUNCH_VARIABLES)
"""What says which run this process is; a launcher sets them for the container."""
FILE_VARIABLES = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a container gets of this machine.

    Attributes:
        mounts: folders and files.
        environment: variables.
        working_dir: current folder.
        user: ``uid:gid``.
        groups: further groups of the caller, ids.
    """

    mounts: tuple[Mount, ...]
    environment: Mapping[str, str]
    working_dir: str
    user: str
    groups: tuple[int, ...]


def view_of(
    config: ContainerConfig,
    *,
    uri: str,
    working_dir: Path,
    written: Iterable[Path] = (),
    command: Sequence[str] = (),
    rootless: bool = False,
) -> View:
    """What a container that runs `command` in `working_dir` must see.

    Args:
        config: further volumes and variables.
        uri: MLflow tracking URI.
        working_dir: mounted to be written to: the default store is there.
        written: further folders to write to, made where missing.
        command: its arguments; files and folders it names, itself or in a TOML file, are mounted to be read.
        rootless: the engine maps the caller to root inside.

    Raises:
        InputError: a folder cannot be written to by the caller, or would hide a part of the image.
    """
    named = list(_named_paths(command, working_dir))
    writable = [working_dir, cache_folder(), *_hub_cache(), *_store_folders(uri), *written]
    writable += [path for path, is_written in named if is_written]
    readable = [path for path, is_written in named if not is_written] + [*_data_folders(working_dir), *_secret_files()]
    for folder in writable:
        _writable(folder)
    mounts = [Mount(str(path), str(path), type="bind") for path in _outermost(writable)]
    covered = [Path(mount["Target"]) for mount in mounts]
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in _outermost(readable, covered)]
    for volume in config.volumes:
        host, inside, read_only = split_volume(volume)
        mounts.append(Mount(inside, str(host), type="bind", read_only=read_only))
    for mount in mounts:
        _harmless(mount["Target"])
    return View(
        mounts=tuple(mounts),
        environment=_environment(config, uri),
        working_dir=str(working_dir),
        user="0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        groups=() if rootless else tuple(os.getgroups()),
    )


def cache_folder() -> Path:
    """The cache folder of this machine, absolute; see `rhstudy.models.load.cache_root`."""
    return cache_root().absolute()


def is_on_this_machine(uri: str) -> bool:
    """Whether the tracking URI is a server on this machine's loopback."""
    parsed = urllib.parse.urlparse(uri)
    return parsed.scheme in ("http", "https") and (parsed.hostname or "") in LOOPBACK


def _hub_cache() -> list[Path]:
    """The folder where models of the hub are kept, when it is there."""
    home = os.environ.get("HF_HOME")
    folder = Path(home) if home else Path.home() / ".cache" / "huggingface"
    return [folder.absolute()] if folder.is_dir() else []


def _store_folders(uri: str) -> list[Path]:
    database = database_file(absolute_uri(uri))
    if database is not None:
        return [database.parent]
    return [Path(urllib.parse.urlparse(uri).path)] if uri.startswith("file:") else []


def _data_folders(working_dir: Path) -> list[Path]:
    beside = working_dir.parent / "shared" / "data"
    chosen = local_copies() if os.environ.get("RHSTUDY_DATA") else beside
    return [chosen.absolute()] if chosen is not None and chosen.is_dir() else []


def _secret_files() -> list[Path]:
    paths = [Path(os.environ[name]) for name in FILE_VARIABLES if os.environ.get(name)]
    return [path.absolute() for path in paths if path.exists()]


def _named_paths(command: Sequence[str], working_dir: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is written to) of what `command` and the TOML files it names refer to."""
    key = ""
    for argument in command:
        if argument.startswith("--"):
            key = argument.lstrip("-").rpartition(".")[2].replace("-", "_")
            continue
        yield from _paths_of(key, argument, working_dir)
        file = working_dir / argument
        if argument.endswith(".toml") and file.is_file():
            try:
                values = tomllib.loads(file.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, tomllib.TOMLDecodeError):
                continue  # the command itself says what is wrong with it
            for name, text in _texts(values, ""):
                yield from _paths_of(name, text, working_dir)


def _paths_of(key: str, text: str, working_dir: Path) -> Iterator[tuple[Path, bool]]:
    if not text or "\n" in text or len(text) > 4096:
        return
    path = (working_dir / Path(text).expanduser()).absolute()
    if key in WRITTEN_KEYS:
        yield path, True
    elif ("/" in text and path.exists()) or path.is_file():
        # What a link names must be there too; a file's neighbours (a model's tokenizer) are not asked for.
        yield path, False
        if path.resolve() != path:
            yield path.resolve(), False


def _texts(values: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, Mapping):
        for name, item in values.items():
            yield from _texts(item, name.replace("-", "_"))
    elif isinstance(values, list):
        for item in values:
            yield from _texts(item, key)
    elif isinstance(values, str):
        yield key, values


def _outermost(paths: Iterable[Path], covered: Sequence[Path] = ()) -> list[Path]:
    """`paths` without those below another one or below a `covered` one, sorted."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in [*kept, *covered]):
            kept.append(path)
    return kept


def _writable(folder: Path) -> None:
    remedy = "Change its owner to the calling user, or choose another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        must = "be a folder that can be made"
        raise InputError(message("mounted folder", must, str(folder), f"{error.strerror}. {remedy}")) from error
    require(os.access(folder, os.W_OK | os.X_OK), "mounted folder", f"be writable for uid {os.getuid()}", str(folder),
            remedy)  # fmt: skip


def _harmless(target: str) -> None:
    path = Path(target)
    own = len(path.parts) < 2 or (len(path.parts) == 2 and path.parts[1] in IMAGES_OWN)
    hides = own or Path("/opt/venv").is_relative_to(path) or path.is_relative_to("/opt/venv")
    remedy = "Choose a folder elsewhere: mounted, it would hide a part of the image"
    require(not hides, "mounted folder", "lie outside the image's own folders", target, remedy)


def _environment(config: ContainerConfig, uri: str) -> dict[str, str]:
    passed = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(PASSED_PREFIXES) or name in PASSED_NAMES) and value and name not in NOT_PASSED
    }
    own = {"MLFLOW_TRACKING_URI": absolute_uri(uri), "RHSTUDY_CACHE": str(cache_folder())}
    if not _hub_cache():
        own["HF_HOME"] = str(cache_folder() / "huggingface")
    data = os.environ.get("RHSTUDY_DATA")
    if data:
        own["RHSTUDY_DATA"] = str(Path(data).absolute())
    return {**passed, **own, **config.environment}
