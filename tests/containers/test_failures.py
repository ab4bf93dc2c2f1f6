"""Whatever ends a container, the run says so, nothing is left behind, and the same command goes on from there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from launching import CALLER, arguments, as_another_caller
from projects import Project
from small_study import LIMIT_S, at_work, finish, ours, started, top_run, wait_for
from tracking_server import free_port

from rhstudy.tracking.mlflow_recorder import MlflowRecorder


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
def test_an_artifact_folder_of_somebody_else(make_small: Callable[[Path], Project], open_folder: Path) -> None:
    small = make_small(open_folder)
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
