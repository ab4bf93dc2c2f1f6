"""Starting `mlflow run` as a person would, or as another person."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment
from projects import SETTINGS, Project

CALLER = 23456
"""A user id that neither this machine nor the image knows."""
PLACES = ("mlflow", "docker", "host")
"""MLflow's own Docker backend; ours in a container; ours on the host."""


def arguments(place: str) -> list[str]:
    """The options that choose a place."""
    if place == "mlflow":
        # As many threads as in the other places, or sums are rounded differently.
        threads = f"env=OMP_NUM_THREADS={environment(Path())['OMP_NUM_THREADS']}"
        return ["-A", "network=host", "-A", f"user={os.getuid()}:{os.getgid()}", "-A", threads]
    return ["--backend", "rhstudy", "--backend-config", json.dumps({**SETTINGS, "runtime": place})]


def mlflow_run(project: Project, options: list[str]) -> subprocess.CompletedProcess[str]:
    """`mlflow run` of the project folder."""
    command = [sys.executable, "-m", "mlflow", "run", ".", "--experiment-name", "containers", *options]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=project.folder, env=project.environment(PATH=path), capture_output=True, text=True, check=False
    )


def as_another_caller(
    project: Project, options: list[str], not_theirs: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`mlflow run` by user `CALLER`, who owns the project folder but for `not_theirs`, and may talk to the engine.

    The folder must be one that others may enter, as those of the fixture `open_folder`.

    Fails the test where no Python of this machine can be run by others.
    """
    engine = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    who = {"user": CALLER, "group": CALLER, "extra_groups": [engine.stat().st_gid]}
    for path in [project.folder, *project.folder.rglob("*")]:
        if path != not_theirs:
            os.chown(path, CALLER, CALLER, follow_symlinks=False)
    path = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    variables = project.environment(USER="somebody", LOGNAME="somebody") | {"PYTHONPATH": path}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            known = subprocess.run(
                [python, "-c", "import mlflow, rhstudy"],
                cwd="/",
                env=variables,
                capture_output=True,
                check=False,
                **who,
            )  # type: ignore[call-overload]
        except OSError:
            continue
        if known.returncode == 0:
            command = [python, "-m", "mlflow", "run", ".", "--experiment-name", "containers", *options]
            return subprocess.run(
                command, cwd=project.folder, env=variables, capture_output=True, text=True, check=False, **who
            )  # type: ignore[call-overload,no-any-return]
    return pytest.fail("no Python here that another user can run")
