"""The project backend in this process: with a context of a command line around it, and without one."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import PROJECT_DOCKER_ARGS, PROJECT_SYNCHRONOUS

from rhstudy.containers import backend, runtime
from rhstudy.containers.backend import ProjectBackend
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.recorder import RunRecord

Launch = Callable[..., Any]


@pytest.fixture
def store(make_mlflow: Callable[[], MlflowRecorder], monkeypatch: pytest.MonkeyPatch) -> MlflowRecorder:
    recorder = make_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setattr(runtime, "_SAMPLE_S", 0.02)
    return recorder


@pytest.fixture
def launch(here: Path, store: MlflowRecorder) -> Launch:
    """Starts a shell script as the entry point of a project."""

    def start(script: str = "exit 0", docker_args: dict[str, str] | None = None, **config: Any) -> Any:
        point = {"command": f"sh -c {shlex.quote(script)}"}
        (here / "mlproject").write_text(yaml.safe_dump({"entry_points": {"main": point}}), encoding="utf-8")
        values = {"runtime": "host", "stop_timeout_s": 5, PROJECT_DOCKER_ARGS: docker_args, PROJECT_SYNCHRONOUS: True}
        return ProjectBackend().run(str(here), "main", {}, None, {**values, **config}, store.uri, "0")

    return start


@pytest.fixture
def command_line() -> click.Context:
    """What `mlflow run` is while it calls a backend."""
    context = click.Context(click.Command("run"))
    context.params = {"run_name": "my name"}
    return context


def only_run(store: MlflowRecorder) -> RunRecord:
    (record,) = store.find_runs()
    return record


def test_from_python_a_run_is_followed_until_asked_for(launch: Launch, store: MlflowRecorder) -> None:
    submitted = launch("exit 0")
    assert submitted.wait()
    record = only_run(store)
    assert submitted.run_id == record.run_id
    assert submitted.get_status() == record.status == "FINISHED"
    assert (
        record.tags.items()
        >= {
            "mlflow.project.backend": "rhstudy",
            "mlflow.project.entryPoint": "main",
            "rhstudy.runtime": "host",
            "rhstudy.runtime_reason": "asked for",
            "rhstudy.container.exit_code": "0",
        }.items()
    )


def test_a_failing_command_is_a_failed_run_that_says_why(
    launch: Launch, store: MlflowRecorder, command_line: click.Context, caplog: pytest.LogCaptureFixture
) -> None:
    assert not launch("echo 'rhstudy: seed must be at least 0.' >&2; exit 7").wait()
    assert only_run(store).status == "FAILED"
    assert only_run(store).tags["rhstudy.error"] == "seed must be at least 0."
    assert only_run(store).tags["rhstudy.exit_code"] == "7"
    with command_line, caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as stop:
        launch("exit 7")
    assert stop.value.code == 7
    assert "command must end with exit code 0, got <exit code 7>" in caplog.text


def test_on_the_command_line_a_good_run_has_ended_and_has_its_name(
    launch: Launch, store: MlflowRecorder, command_line: click.Context
) -> None:
    with command_line:
        assert launch("sleep 0.2").get_status() == "FINISHED"
    assert only_run(store).name == "my name"


REFUSED = [
    ({"runtime": "docker"}, 1, "Docker engine must answer, got <no answer at"),
    ({"variant": "cuda"}, 2, "variant must be auto, cpu or cuNNN, got 'cuda'"),
    ({"imagee": "x"}, 2, "imagee must be a known key"),
    ({"docker_args": {"user": "1"}}, 2, "-A must name an argument this backend knows, got 'user'"),
]


@pytest.mark.parametrize(("config", "code", "said"), REFUSED)
@pytest.mark.parametrize("on_the_command_line", [False, True])
def test_what_is_refused_leaves_a_failed_run_with_the_message(
    launch: Launch,
    store: MlflowRecorder,
    command_line: click.Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    code: int,
    said: str,
    on_the_command_line: bool,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    if on_the_command_line:
        with command_line, pytest.raises(SystemExit) as stop:
            launch(**config)
        assert stop.value.code == code
    else:
        with pytest.raises(ExecutionException, match=said):
            launch(**config)
    record = only_run(store)
    assert record.status == record.tags["rhstudy.ended_as"] == "FAILED"
    assert record.tags["rhstudy.exit_code"] == str(code)
    assert record.tags["rhstudy.error"].startswith(said)


def test_a_program_that_is_not_there_is_refused_too(launch: Launch, store: MlflowRecorder, here: Path) -> None:
    (here / "mlproject").write_text("entry_points: {main: {command: no-such-program}}", encoding="utf-8")
    with pytest.raises(ExecutionException, match="command must be a program of this machine, got 'no-such-program'"):
        ProjectBackend().run(str(here), "main", {}, None, {"runtime": "host"}, store.uri, "0")
    assert only_run(store).status == "FAILED"


def test_a_cancelled_run_is_killed(launch: Launch, store: MlflowRecorder, here: Path) -> None:
    submitted = launch("touch ready; sleep 60")
    while not (here / "ready").exists():
        time.sleep(0.01)
    submitted.cancel()
    assert submitted.get_status() == only_run(store).status == "KILLED"
    assert not submitted.wait()


def send_when(ready: Path, number: signal.Signals) -> threading.Thread:
    def send() -> None:
        limit = time.monotonic() + 120
        while not ready.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_on_the_command_line_kills_the_run(
    launch: Launch, store: MlflowRecorder, command_line: click.Context, here: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    sender = send_when(here / "ready", number)
    with command_line, pytest.raises(KeyboardInterrupt):
        launch("touch ready; sleep 60")
    sender.join()
    assert only_run(store).status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_image_is_built_kills_the_run(
    launch: Launch,
    store: MlflowRecorder,
    command_line: click.Context,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*arguments: Any) -> None:
        (here / "ready").touch()
        time.sleep(30)

    monkeypatch.setattr(backend, "start", build)
    sender = send_when(here / "ready", signal.SIGTERM)
    with command_line, pytest.raises(KeyboardInterrupt):
        launch()
    sender.join()
    assert only_run(store).status == "KILLED"
    assert only_run(store).tags["rhstudy.error"] == "KeyboardInterrupt: SIGTERM"


def test_a_store_that_stays_away_is_an_error_and_no_hang(
    launch: Launch, store: MlflowRecorder, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    submitted = launch("while [ ! -e go ]; do sleep 0.02; done", patience_s=0)
    submitted._recorder.end_run = _away
    (here / "go").touch()
    with caplog.at_level(logging.ERROR):
        assert not submitted.wait()
    assert "tracking store must answer to record the run's end, got <ConnectionError>" in caplog.text
    assert submitted.get_status() == "FAILED"


def _away(*arguments: Any) -> None:
    raise ConnectionError("away")


class Finalized:
    """Something whose finalizer a signal meets."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_kills_the_run_all_the_same(
    launch: Launch, store: MlflowRecorder, command_line: click.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = backend.start

    def start(*arguments: Any) -> Any:
        found = started(*arguments)
        Finalized()
        return found

    monkeypatch.setattr(backend, "start", start)
    with command_line, pytest.raises(KeyboardInterrupt):
        launch("sleep 60")
    assert only_run(store).status == "KILLED"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_signal_is_found_while_waiting(launch: Launch, store: MlflowRecorder) -> None:
    submitted = launch("sleep 60")
    caught = threading.Event()

    def drop(_number: object, _frame: object) -> None:
        if not caught.is_set():
            caught.set()
            Finalized()

    before = signal.signal(signal.SIGUSR1, drop)
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            submitted.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
        submitted.cancel()
    assert caught.is_set()
    assert only_run(store).status == "KILLED"
