"""Whatever ends a container, the run says so, nothing is left behind, and the same command goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
from commands import data_values, study_values, write_config
from launching import CALLER, arguments, as_another_caller
from projects import SETTINGS, Project
from tracking_server import free_port

from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.process import LAUNCH_TAG
from rhstudy.tracking.recorder import Recorder

LIMIT_S = 240


@pytest.fixture
def small(make_project: Callable[[Path], Project], world: Path, tmp_path: Path) -> Project:
    """A project with a study of a minute and its data."""
    project = make_project(tmp_path)
    shutil.copytree(world, tmp_path / "world")
    values = study_values(tmp_path / "world", recipes=["real", "symbolic"], ceiling_seeds=[], baselines=[])
    values["data"] = data_values(tmp_path / "world", num_examples=24)
    values["training"] = {**values["training"], "num_epochs": 6}
    write_config(tmp_path / "study.toml", values)
    _ = project.store  # made once: a test that looks while MLflow makes it would break it
    return project


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


def test_a_container_that_is_killed(engine: docker.DockerClient, small: Project) -> None:
    with started(small, {}) as process:
        store = small.store
        wait_for(at_work(engine, small, store), process).kill("SIGKILL")
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 137
    assert "exit code 137: killed by a signal" in err
    run = top_run(store)
    assert (run.status, run.tags["rhstudy.container.exit_code"]) == ("KILLED", "137")
    assert "killed by a signal" in run.tags["rhstudy.error"]
    assert {item.status for item in store.find_runs()} == {"FINISHED", "KILLED"}
    wait_for(lambda: not ours(engine, small))
    finish(small)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_interrupted(engine: docker.DockerClient, small: Project, number: signal.Signals) -> None:
    with started(small, {}) as process:
        store = small.store
        wait_for(at_work(engine, small, store), process)
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    run = top_run(store)
    assert run.status == "KILLED"
    assert "start the same command again" in run.tags["rhstudy.error"].lower()
    assert not store.find_runs(status="RUNNING")
    wait_for(lambda: not ours(engine, small))


def test_a_launcher_that_is_killed_leaves_its_container_to_finish(engine: docker.DockerClient, small: Project) -> None:
    with started(small, {}) as process:
        store = small.store
        wait_for(at_work(engine, small, store), process)
        process.kill()
    wait_for(lambda: [item for item in ours(engine, small) if item.status == "exited"])
    assert {run.status for run in store.find_runs()} == {"FINISHED"}
    finish(small)
    wait_for(lambda: not ours(engine, small))


def test_launcher_and_container_both_killed(engine: docker.DockerClient, small: Project) -> None:
    with started(small, {}) as process:
        store = small.store
        container = wait_for(at_work(engine, small, store), process)
        process.kill()
        process.wait()
        container.kill("SIGKILL")
    left = [run.run_id for run in store.find_runs(status="RUNNING")]
    assert left  # the study; arm and stage too, unless they ended just then
    finish(small)
    assert {store.get_run(run_id).status for run_id in left} == {"KILLED"}
    wait_for(lambda: not ours(engine, small))


@pytest.mark.skipif("RHSTUDY_DOCKER_DOWN" not in os.environ, reason="RHSTUDY_DOCKER_DOWN and .._UP are not given")
def test_an_engine_that_is_stopped(engine: docker.DockerClient, small: Project) -> None:
    with started(small, {"patience_s": 2}) as process:
        store = small.store
        wait_for(at_work(engine, small, store), process)
        try:
            subprocess.run(shlex.split(os.environ["RHSTUDY_DOCKER_DOWN"]), check=True, capture_output=True)
            _, err = process.communicate(timeout=LIMIT_S)
        finally:
            subprocess.run(shlex.split(os.environ["RHSTUDY_DOCKER_UP"]), check=True, capture_output=True)
    assert process.returncode != 0
    assert "Start the" in err
    assert top_run(store).status in ("KILLED", "FAILED")
    assert not store.find_runs(status="RUNNING")
    finish(small)
    wait_for(lambda: not ours(engine, small))


def test_an_image_that_is_not_there(small: Project) -> None:
    with started(small, {"image": "nowhere.invalid/rhstudy:1"}) as process:
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "image nowhere.invalid/rhstudy:1 must be possible on this engine" in err
    run = top_run(small.store)
    assert (run.status, run.tags["rhstudy.exit_code"]) == ("FAILED", "1")
    assert "nowhere.invalid" in run.tags["rhstudy.error"]


def test_a_container_out_of_memory(small: Project, engine: docker.DockerClient) -> None:
    with started(small, {"memory": "120m"}) as process:
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 137
    assert "container memory must hold the command, got <killed: out of memory>" in err
    assert top_run(small.store).status == "FAILED"
    wait_for(lambda: not ours(engine, small))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another caller")
def test_an_artifact_folder_of_somebody_else(small: Project) -> None:
    folder = small.folder / "mlartifacts"
    folder.mkdir()
    done = as_another_caller(small, [*arguments("docker"), "-P", "config=study.toml"], not_theirs=folder)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"mounted folder must be writable for uid {CALLER}" in done.stderr
    assert "Change its owner to the calling user" in done.stderr
    assert top_run(small.store).status == "FAILED"


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A tracking server with its own database and artifacts."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    process = subprocess.Popen(
        command, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read())
        return False

    try:
        wait_for(answers)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def served(small: Project) -> Iterator[tuple[Callable[[], Any], str]]:
    """A function that starts the project's tracking server (again), and its address; killed at the end."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        yield (lambda: stack.enter_context(server(small.folder, port))), f"http://127.0.0.1:{port}"


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_tracking_server_that_is_away_for_a_while(
    engine: docker.DockerClient, small: Project, served: tuple[Callable[[], Any], str]
) -> None:
    serve, uri = served
    running = serve()
    store = MlflowRecorder(uri, "", system_metrics=False)
    with started(small, {}, MLFLOW_TRACKING_URI=uri) as process:
        wait_for(at_work(engine, small, store), process)
        kill(running)
        time.sleep(4)
        assert process.poll() is None
        serve()
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    assert {run.status for run in store.find_runs()} == {"FINISHED"}


def test_a_tracking_server_that_is_away_for_longer_than_anybody_waits(
    engine: docker.DockerClient, small: Project, served: tuple[Callable[[], Any], str]
) -> None:
    serve, uri = served
    running = serve()
    store = MlflowRecorder(uri, "", system_metrics=False)
    impatient = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    with started(small, {"patience_s": 3}, **impatient) as process:
        wait_for(at_work(engine, small, store), process)
        kill(running)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "tracking store must answer to record the run's end" in err
    wait_for(lambda: not ours(engine, small))
    serve()
    assert store.find_runs(status="RUNNING")  # nobody could say that they ended
    finish(small, MLFLOW_TRACKING_URI=uri)
