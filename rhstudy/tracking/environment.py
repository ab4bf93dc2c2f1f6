"""What a run ran in, as tags: code, versions, hardware, command. Reads metadata only and imports nothing heavy."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import rhstudy
from rhstudy.children import num_usable_cores
from rhstudy.errors import masked

PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "mlflow",
    "numpy",
    "scipy",
    "pandas",
    "statsmodels",
)
UNKNOWN = "unknown"


def environment_tags() -> dict[str, str]:
    """Tags of this process: package version, git commit and dirty flag, versions, hardware, command line."""
    return {
        "rhstudy.version": rhstudy.__version__,
        **git_tags(Path(rhstudy.__file__).parent),
        **version_tags(),
        **hardware_tags(),
        "rhstudy.command": masked(shlex.join(sys.argv)),
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or UNKNOWN,
        "mlflow.source.name": Path(sys.argv[0] or "python").name,
        "mlflow.source.type": "LOCAL",
    }


@functools.cache
def git_tags(package: Path) -> dict[str, str]:
    """Commit and dirty flag (``true``, ``false``) of the checkout that tracks `package`.

    Dirty means: a tracked file of the checkout differs from the commit, or the package holds an untracked file. Outside
    a checkout of its own, a container image for instance, they are what ``$RHSTUDY_GIT_COMMIT`` and
    ``$RHSTUDY_GIT_DIRTY`` say, or ``unknown``.
    """
    # A package installed inside some other project's checkout must not report that project's commit.
    ours = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(package, "rev-parse", "HEAD") if ours else None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", ":/") if ours else None
    added = _git(package, "ls-files", "--others", "--exclude-standard") if ours else None
    if commit is None or changed is None or added is None:
        return _git_facts(os.environ.get("RHSTUDY_GIT_COMMIT", ""), os.environ.get("RHSTUDY_GIT_DIRTY", ""))
    return _git_facts(commit, "true" if changed or added else "false")


def _git_facts(commit: str, dirty: str) -> dict[str, str]:
    if commit in ("", UNKNOWN):
        return {"rhstudy.git_commit": UNKNOWN, "rhstudy.git_dirty": UNKNOWN}
    known = dirty if dirty in ("true", "false") else UNKNOWN
    return {"rhstudy.git_commit": commit, "mlflow.source.git.commit": commit, "rhstudy.git_dirty": known}


def version_tags() -> dict[str, str]:
    """``rhstudy.version.<package>`` of Python and the packages results may depend on, where installed."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {f"rhstudy.version.{name}": found for name, found in versions.items()}


@functools.cache
def _version(package: str) -> str:
    # Every run asks, a hundred times a sweep; reading metadata of all packages takes 20 ms.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def hardware_tags() -> dict[str, str]:
    """CPU model, usable cores, RAM in bytes, platform, and the GPUs when torch is loaded (see `gpu_tags`)."""
    return {
        "rhstudy.platform": platform.platform(),
        "rhstudy.cpu": _cpu_model(),
        "rhstudy.cpu_cores": str(num_usable_cores()),
        "rhstudy.ram_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        **gpu_tags(),
    }


def gpu_tags() -> dict[str, str]:
    """Names of the visible GPUs; empty while torch is not loaded, which this never does."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"rhstudy.gpu": ", ".join(names) or "none"}


def memory_peaks() -> dict[str, float]:
    """Peak memory so far in bytes: resident set of this process, and CUDA's allocated peak when it is in use."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    peaks = {"peak_rss_bytes": float(peak if sys.platform == "darwin" else peak * 1024)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated())
    return peaks


def reset_gpu_peak() -> None:
    """Start counting CUDA's peak anew, so that a stage does not report an earlier stage's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
