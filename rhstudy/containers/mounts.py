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

from rhstudy.configs import cache_root
from rhstudy.containers.config import ContainerConfig, split_volume
from rhstudy.data.named import local_copies
from rhstudy.errors import InputError, message, require
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
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
"""Passed variables that name a file of the caller."""
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
"""Passed variables that name a folder of downloads."""
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
    named = [*_named_paths(command, working_dir), *((folder, _can_write(folder)) for folder in _hub_folders())]
    writable = [working_dir, cache_folder(), *_store_folders(uri), *written]
    writable += [path for path, is_written in named if is_written]
    readable = [path for path, is_written in named if not is_written] + [*_data_folders(working_dir), *_secret_files()]
    writable, readable = _places(writable), _places(readable)
    for folder in writable:
        _writable(folder)
    mounts = [Mount(str(path), str(path), type="bind") for path in _outermost(writable)]
    covered = [Path(mount["Target"]) for mount in mounts]
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in _outermost(readable, covered)]
    for host, inside, read_only in map(split_volume, config.volumes):
        # One place is mounted once, as the config says.
        mounts = [mount for mount in mounts if mount["Target"] != inside]
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
    """The cache folder of this machine, absolute; see `rhstudy.configs.cache_root`."""
    return Path(os.path.abspath(cache_root()))


def is_on_this_machine(uri: str) -> bool:
    """Whether the tracking URI is a server on this machine's loopback."""
    parsed = urllib.parse.urlparse(uri)
    return parsed.scheme in ("http", "https") and (parsed.hostname or "") in LOOPBACK


def _hub_home() -> Path:
    """The folder where models of the hub are kept here; it need not be there."""
    home = os.environ.get("HF_HOME")
    return Path(os.path.abspath(home) if home else Path.home() / ".cache" / "huggingface")


def _hub_folders() -> list[Path]:
    chosen = [Path(os.path.abspath(os.environ[name])) for name in HUB_VARIABLES if os.environ.get(name)]
    return [folder for folder in (_hub_home(), *chosen) if os.path.isdir(folder)]


def _can_write(folder: Path) -> bool:
    """Whether a cache may be mounted to be written to; a shared one is often there to be read only."""
    return os.access(folder, os.W_OK | os.X_OK)


def _store_folders(uri: str) -> list[Path]:
    uri = absolute_uri(uri)
    database = database_file(uri)
    if database is not None:
        # The second lies in the first, and must be writable too: the recorder keeps its reserves there.
        return [database.parent, database.parent / "mlartifacts"]
    parsed = urllib.parse.urlparse(uri)
    return [Path(urllib.parse.unquote(parsed.path))] if parsed.scheme in ("", "file") else []


def _data_folders(working_dir: Path) -> list[Path]:
    beside = working_dir.parent / "shared" / "data"
    chosen = local_copies() if os.environ.get("RHSTUDY_DATA") else beside
    return [chosen.absolute()] if chosen is not None and os.path.isdir(chosen) else []


def _secret_files() -> list[Path]:
    paths = [Path(os.environ[name]) for name in FILE_VARIABLES if os.environ.get(name)]
    return [path.absolute() for path in paths if os.path.exists(path)]


def _named_paths(command: Sequence[str], working_dir: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is written to) of what `command` and the TOML files it names refer to."""
    flag = ""
    for argument in command:
        if argument.startswith("--"):
            flag, _, text = argument.partition("=")
        else:
            text = argument
        key = flag.lstrip("-").rpartition(".")[2].replace("-", "_")
        flag = flag if argument == flag else ""
        yield from _paths_of(key, text, working_dir)
        if text.endswith(".toml"):
            for name, value in _texts(_toml(working_dir / text), ""):
                yield from _paths_of(name, value, working_dir)


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}  # the command itself says what is wrong with it


def _paths_of(key: str, text: str, working_dir: Path) -> Iterator[tuple[Path, bool]]:
    if not text.strip("/") or "\n" in text or "\0" in text:
        return
    # Any text may come along: os.path says no to what can be no path, where pathlib raises.
    path = working_dir / os.path.expanduser(text)
    if key in WRITTEN_KEYS:
        yield path, True
    elif os.path.isfile(path) or (os.path.exists(path) and ("/" in text or os.path.islink(path))):
        # A file's neighbours (a model's tokenizer) are not asked for; a folder of links (a snapshot of the hub) is.
        yield path, False
        if os.path.isdir(path) and os.access(path, os.R_OK):
            yield from ((Path(entry.path), False) for entry in os.scandir(path) if entry.is_symlink())


def _places(paths: Iterable[Path]) -> list[Path]:
    """Where `paths` lie, by name and in truth: what a link names must be there too, and ``..`` names no folder."""
    found: set[Path] = set()
    for path in paths:
        found.add(Path(os.path.realpath(path)))
        if ".." not in path.parts:
            found.add(path.absolute())
    return sorted(found)


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
    path = Path(os.path.normpath(target))
    own = len(path.parts) < 2 or (len(path.parts) == 2 and path.parts[1] in IMAGES_OWN)
    hides = own or Path("/opt/venv").is_relative_to(path) or path.is_relative_to("/opt/venv")
    remedy = "Choose a folder elsewhere: mounted, it would hide a part of the image"
    require(not hides, "mounted folder", "lie outside the image's own folders", target, remedy)


def _environment(config: ContainerConfig, uri: str) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if _is_passed(name, value)}
    if config.gpus[0].isdigit():
        # Numbers of this machine's GPUs; those the container gets are counted from 0.
        passed.pop("CUDA_VISIBLE_DEVICES", None)
    paths = {name: os.path.abspath(passed[name]) for name in (*FILE_VARIABLES, *HUB_VARIABLES) if name in passed}
    hub = _hub_home() if os.path.isdir(_hub_home()) else cache_folder() / "huggingface"
    own = {"MLFLOW_TRACKING_URI": absolute_uri(uri), "RHSTUDY_CACHE": str(cache_folder()), "HF_HOME": str(hub)}
    caller = os.environ.get("USER") or os.environ.get("LOGNAME")
    if caller:
        own |= {"USER": caller, "LOGNAME": caller}  # whose runs they are
    data = os.environ.get("RHSTUDY_DATA")
    if data:
        own["RHSTUDY_DATA"] = os.path.abspath(data)
    return {**passed, **paths, **own, **config.environment}


def _is_passed(name: str, value: str) -> bool:
    # Without a value most variables say nothing; this one says that there are no GPUs.
    says_something = bool(value) or name == "CUDA_VISIBLE_DEVICES"
    return says_something and name not in NOT_PASSED and (name.startswith(PASSED_PREFIXES) or name in PASSED_NAMES)
