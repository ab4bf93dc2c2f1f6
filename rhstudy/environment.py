"""What a bug report needs: versions, hardware, stores and settings of this machine, and no secret.

Every part stands alone: what is not installed or does not answer is named as such and stops nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rhstudy
from rhstudy.configs import TrackingConfig
from rhstudy.errors import masked
from rhstudy.tracking.environment import PACKAGES, git_tags, hardware_tags
from rhstudy.tracking.opening import look_at_store, work_root

NOT_CHECKED = "not checked"
# Shown with their values; of all others below SETTINGS only the name is shown.
HARMLESS = re.compile(
    r"RHSTUDY_\w+|OMP_\w+|MKL_NUM_THREADS|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|PYTORCH_CUDA_ALLOC_CONF|HF_HOME"
    r"|HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM|KUBE_MLFLOW_TRACKING_URI|MLFLOW_(TRACKING_URI|EXPERIMENT_\w+|RUN_ID)"
    r"|MLFLOW_HTTP_REQUEST_\w+"
)
SETTINGS = re.compile(r"(RHSTUDY|MLFLOW|KUBE|KUBERNETES|OMP|MKL|CUDA|NVIDIA|PYTORCH|HF|TOKENIZERS|AWS|DOCKER)_\w+")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentConfig:
    """What to look at.

    Attributes:
        tracking: the store that is looked at.
    """

    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def run(config: EnvironmentConfig) -> dict[str, Any]:
    """Print a table on stderr; returns the facts of the last line."""
    facts = environment_facts(config.tracking)
    for name, value in facts.items():
        rows = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, item in rows:
            print(f"{f'{name} {key}'.strip():<40} {_shown(item)}", file=sys.stderr)
    return facts


def environment_facts(tracking: TrackingConfig) -> dict[str, Any]:
    """Everything, as plain values; a part that fails is the text of its error."""
    parts: dict[str, Callable[[], Any]] = {
        "rhstudy": _package,
        "python": lambda: {"version": sys.version.split()[0], "implementation": sys.implementation.name},
        "versions": _versions,
        "hardware": _hardware,
        "gpus": _gpus,
        "torch": _torch,
        "docker": _docker,
        "store": lambda: look_at_store(tracking),
        "cache": lambda: _cache(tracking),
        "variables": _variables,
    }
    return {name: _part(make) for name, make in parts.items()}


def _part(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # a report that breaks where something is broken would be of no use
        return masked(f"{type(error).__name__}: {error}")


def _shown(item: Any) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return str(item)


def _package() -> dict[str, str]:
    tags = git_tags(Path(rhstudy.__file__).parent)
    commit, dirty = tags["rhstudy.git_commit"], tags["rhstudy.git_dirty"]
    return {"version": rhstudy.__version__, "git_commit": commit, "git_dirty": dirty}


def _versions() -> dict[str, str]:
    """Version of every dependency; in an environment without our metadata, of those that results depend on."""
    try:
        wanted = [item for item in importlib.metadata.requires("rhstudy") or [] if "extra ==" not in item]
    except importlib.metadata.PackageNotFoundError:
        wanted = list(PACKAGES)
    names = sorted({re.split(r"[^\w.-]", item, maxsplit=1)[0] for item in wanted})
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, Any]:
    tags = {key.removeprefix("rhstudy."): value for key, value in hardware_tags().items() if key != "rhstudy.gpu"}
    return {**tags, "memory_limit_bytes": memory_limit(Path("/sys/fs/cgroup"))}


def memory_limit(root: Path) -> str:
    """The memory limit of the control group mounted at `root` (version 2 or 1), or ``none``."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        # Version 1 says "no limit" by a number near 2**63.
        return text if text.isdigit() and int(text) < 2**60 else "none"
    return "none"


def _gpus() -> Any:
    """Name, driver and memory of each GPU, as nvidia-smi tells them."""
    if shutil.which("nvidia-smi") is None:
        return "none: no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return f"nvidia-smi failed: {(done.stdout + done.stderr).strip()[:300]}"
    keys = ("name", "driver", "memory", "used")
    lines = done.stdout.splitlines()
    return {f"{number}": dict(zip(keys, line.split(", "), strict=False)) for number, line in enumerate(lines)}


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return f"not installed: {error}"
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda or "none",
        "cuda_available": torch.cuda.is_available(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def _docker() -> Any:
    """What the module for containers knows of the engine; this one asks no engine itself."""
    try:
        facts = importlib.import_module("rhstudy.containers.engine").facts
    except (ImportError, AttributeError):
        return NOT_CHECKED
    return dict(facts())


def _cache(tracking: TrackingConfig) -> dict[str, Any]:
    folder = work_root(tracking).parent
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return {"folder": str(folder), "exists": folder.exists(), "free_bytes": shutil.disk_usage(existing).free}


def _variables() -> dict[str, str]:
    """Settings by name; values of the harmless ones, ``set`` for all others."""
    found = {name: value for name, value in sorted(os.environ.items()) if SETTINGS.fullmatch(name)}
    return {
        name: masked(value) if HARMLESS.fullmatch(name) and not SECRET.search(name) else "set"
        for name, value in found.items()
    }
