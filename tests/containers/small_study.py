"""Launching a study of a minute, and what is asked of it while it runs: for the tests that end it.

Not in `conftest.py`, of which several folders have one by the same name.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import docker
from projects import SETTINGS, Project

from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.process import LAUNCH_TAG
from rhstudy.tracking.recorder import Recorder

LIMIT_S = 240


@contextlib.contextmanager
def started(project: Project, settings: Mapping[str, Any], **changes: str) -> Iterator[subprocess.Popen[str]]:
    """`mlflow run` of the small study, by our backend; killed at the end of the block when it still runs."""
    command = [sys.executable, "-m", "mlflow", "run", ".", "--experiment-name", "failures", "-P", "config=study.toml"]
    command += ["--backend", "rhstudy", "--backend-config", json.dumps({**SETTINGS, **settings})]
    environment = project.environment(**changes)
    with subprocess.Popen(
        command, cwd=project.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(project: Project, **changes: str) -> None:
    """Start the same command again: it goes on and finishes; what was finished before is not done twice."""
    store = MlflowRecorder(changes.get("MLFLOW_TRACKING_URI", project.uri), "", system_metrics=False)
    before = {run.run_id for run in stages(store, "FINISHED")}
    with started(project, {}, **changes) as process:
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    digests = [run.tags["rhstudy.stage_digest"] for run in stages(store, "FINISHED")]
    assert len(digests) == len(set(digests)) == 12
    assert before <= {run.run_id for run in stages(store, "FINISHED")}
    assert not store.find_runs(status="RUNNING")


def stages(store: Recorder, status: Any = None) -> list[Any]:
    return [run for run in store.find_runs(status=status) if "rhstudy.stage_digest" in run.tags]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended before: {process.communicate()}")
        time.sleep(0.1)
    raise AssertionError("it took too long")


def ours(engine: docker.DockerClient, project: Project) -> list[Any]:
    """Containers of this project's launches."""
    found = engine.containers.list(all=True, filters={"label": LAUNCH_TAG}, ignore_removed=True)
    return [item for item in found if item.attrs["Config"]["WorkingDir"] == str(project.folder)]


def at_work(engine: docker.DockerClient, project: Project, store: Recorder) -> Any:
    """The running container, once it has finished a stage and is at the next."""

    def found() -> Any:
        running = [item for item in ours(engine, project) if item.status == "running"]
        return running[0] if running and stages(store, "FINISHED") and stages(store, "RUNNING") else None

    return found


def top_run(store: Recorder) -> Any:
    """The latest launched run."""
    return next(run for run in store.find_runs() if not run.parent_run_id)
