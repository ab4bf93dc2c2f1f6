from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "contracts"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))
sys.path.insert(0, str(Path(__file__).parent))

from recorder_stores import _no_launcher, make_mlflow, make_recorder, recorder, template_store

__all__ = ["_no_launcher", "make_mlflow", "make_recorder", "recorder", "template_store"]

PREFIXES = ("MLFLOW_", "RHSTUDY_", "HF_", "AWS_", "AZURE_", "GOOGLE_", "DOCKER_")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: empty, with a home and a cache beside it and none of this machine's variables."""
    for name in os.environ:
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RHSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts shell scripts on a path that has nothing else but the system's own tools; no docker and no nvidia-smi."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "cat", "sleep", "touch"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def as_nobody() -> Callable[[Callable[[], str]], str]:
    """Calls a function in a child that is not root, and gives what it returned or the error's text."""

    def call(work: Callable[[], str]) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                said = work()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as stream:
            said = stream.read()
        os.waitpid(child, 0)
        if said.startswith("PermissionError") and "setgid" in said:
            pytest.skip("this process may not give up root")
        return said

    return call
