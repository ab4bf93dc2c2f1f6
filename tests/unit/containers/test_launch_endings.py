from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping

import pytest
from fake_engine import FakeContainer, FakeEngine
from mlflow.exceptions import MlflowException

from rhstudy.containers import launch
from rhstudy.containers.container import Ended
from rhstudy.containers.launch import (
    close_launch,
    close_run,
    end_abandoned,
    ended_tags,
    launch_environment,
    launch_tags,
    new_launch,
    patiently,
    reason_of,
    status_of,
)
from rhstudy.errors import InputError, StudyError, UnreachableStoreError
from rhstudy.tracking.process import process_tags
from rhstudy.tracking.recorder import Recorder

DEAD = json.dumps({**process_tags(), "rhstudy.process_start_time": "1"})
ALIVE = json.dumps(process_tags())


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (Ended(exit_code=0), "FINISHED"),
        (Ended(exit_code=0, stopped=True), "FINISHED"),
        (Ended(exit_code=0, out_of_memory=True), "FINISHED"),
        (Ended(exit_code=1), "FAILED"),
        (Ended(exit_code=2), "FAILED"),
        (Ended(exit_code=139), "FAILED"),
        (Ended(exit_code=1, stopped=True), "KILLED"),
        (Ended(exit_code=130), "KILLED"),
        (Ended(exit_code=137), "KILLED"),
        (Ended(exit_code=143), "KILLED"),
        (Ended(exit_code=137, out_of_memory=True), "FAILED"),
        (Ended(exit_code=137, out_of_memory=True, stopped=True), "FAILED"),
        (Ended(exit_code=None), "FAILED"),
        (Ended(exit_code=None, stopped=True), "KILLED"),
    ],
)
def test_the_status_is_what_happened(ended: Ended, status: str) -> None:
    assert status_of(ended) == status


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (
            Ended(exit_code=None),
            "Docker engine must answer until the container ends, got <contact lost>. Start",
        ),
        (
            Ended(exit_code=None, stopped=True),
            "command must end by itself, got <stopped>. Start the same",
        ),
        (
            Ended(exit_code=137, out_of_memory=True, last_lines=("rhstudy: x",)),
            "container memory must hold the command, got <killed: out of memory>. Raise memory. Start the same command",
        ),
        (
            Ended(exit_code=2, last_lines=("a", "rhstudy: old", "rhstudy: seed must be at least 0, got -1.", "note")),
            "seed must be at least 0, got -1.",
        ),
        (Ended(exit_code=143), "command must end by itself, got <exit code 143: killed by a signal>. Start the same"),
        (Ended(exit_code=0), "command must end its run, got <exit code 0, the run still RUNNING>. Look at its output"),
        (
            Ended(exit_code=3, last_lines=("one", "two", "three", "four")),
            "command must end with exit code 0, got <exit code 3>. Its last words: two | three | four.",
        ),
        (Ended(exit_code=3), "command must end with exit code 0, got <exit code 3>. Its last words: nothing."),
    ],
)
def test_the_reason_is_the_commands_own_word_or_what_is_known(ended: Ended, said: str) -> None:
    assert reason_of(ended).startswith(said)


def test_long_last_words_keep_their_end() -> None:
    assert reason_of(Ended(exit_code=1, last_lines=("x" * 5000 + " the end",))).endswith(" the end.")
    assert len(reason_of(Ended(exit_code=1, last_lines=("x" * 5000,)))) < 800


def test_a_launch_is_named_for_the_process_and_for_the_run() -> None:
    name = new_launch()
    assert name != new_launch()
    environment, tags = launch_environment(name), launch_tags(name)
    assert environment["RHSTUDY_LAUNCH"] == tags["rhstudy.launch"] == name
    launcher = json.loads(environment["RHSTUDY_LAUNCHER"])
    assert launcher == json.loads(tags["rhstudy.launcher"])
    assert launcher["rhstudy.pid"] == str(os.getpid())


def test_tags_of_an_end() -> None:
    assert ended_tags(Ended(exit_code=None)) == {"rhstudy.container.exit_code": "unknown"}
    assert ended_tags(Ended(exit_code=3, peak_memory_bytes=7)) == {
        "rhstudy.container.exit_code": "3",
        "rhstudy.container.peak_memory_bytes": "7",
    }


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (Ended(exit_code=0), "KILLED"),
        (Ended(exit_code=1), "FAILED"),
        (Ended(exit_code=137), "KILLED"),
        (Ended(exit_code=None), "FAILED"),
    ],
)
def test_runs_left_by_a_launch_get_its_end_and_no_others(recorder: Recorder, ended: Ended, status: str) -> None:
    ours = [recorder.create_run("a", "detect", tags={"rhstudy.launch": "one"}) for _ in range(2)]
    done = recorder.create_run("b", "detect", tags={"rhstudy.launch": "one"})
    recorder.end_run(done, "FINISHED")
    others = [recorder.create_run("c", "detect", tags=tags) for tags in ({"rhstudy.launch": "two"}, {})]
    close_launch(recorder, "one", ended)
    for run_id in ours:
        record = recorder.get_run(run_id)
        assert record.status == record.tags["rhstudy.ended_as"] == status
        assert record.tags["rhstudy.exit_code"] == str(ended.exit_code)
        assert record.tags["rhstudy.error"] == reason_of(ended)
        assert record.tags["rhstudy.ended_by"] == "launcher"
    assert recorder.get_run(done).status == "FINISHED"
    assert [recorder.get_run(run_id).status for run_id in others] == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize(
    ("said", "ended", "status", "corrected"),
    [
        ("RUNNING", Ended(exit_code=0), "FINISHED", False),
        ("RUNNING", Ended(exit_code=3), "FAILED", True),
        ("RUNNING", Ended(exit_code=143, stopped=True), "KILLED", True),
        ("FINISHED", Ended(exit_code=0), "FINISHED", False),
        ("FINISHED", Ended(exit_code=1), "FAILED", True),
        ("FAILED", Ended(exit_code=0), "FAILED", False),
        ("KILLED", Ended(exit_code=1), "KILLED", False),
        ("FAILED", Ended(exit_code=137), "FAILED", False),
    ],
)
def test_a_launched_run_ends_as_it_says_or_as_its_process_did(
    recorder: Recorder, said: str, ended: Ended, status: str, corrected: bool
) -> None:
    run_id = recorder.create_run("a", "detect", tags={"rhstudy.error": "its own word"})
    if said in ("FINISHED", "FAILED", "KILLED"):
        recorder.end_run(run_id, said)  # type: ignore[arg-type]
    assert close_run(recorder, run_id, ended) == status
    record = recorder.get_run(run_id)
    assert record.status == status
    assert record.tags["rhstudy.container.exit_code"] == str(ended.exit_code)
    assert record.tags["rhstudy.error"] == (reason_of(ended) if corrected else "its own word")
    assert record.tags.get("rhstudy.ended_as") == (status if corrected else None)


def container(status: str, name: str, launcher: str) -> FakeContainer:
    return FakeContainer(FakeEngine(), status=status, labels={"rhstudy.launch": name, "rhstudy.launcher": launcher})


def launched(recorder: Recorder, name: str, launcher: str, **tags: str) -> str:
    return recorder.create_run("a", "detect", tags={"rhstudy.launch": name, "rhstudy.launcher": launcher, **tags})


def test_only_runs_whose_launcher_and_container_are_gone_are_ended(recorder: Recorder) -> None:
    gone = {name: launched(recorder, name, DEAD) for name in ("nowhere", "exited", "dead", "created")}
    living = {
        "running": launched(recorder, "running", DEAD),
        "paused": launched(recorder, "paused", DEAD),
        "ours": launched(recorder, "ours", ALIVE),
        "about to start": launched(recorder, "about to start", ALIVE),
        "told nothing": launched(recorder, "told nothing", "{no json"),
        "told a number": launched(recorder, "told a number", "3"),
        "by hand": recorder.create_run("a", "detect", tags=process_tags()),
    }
    known = [container(name, name, DEAD) for name in ("exited", "dead", "created", "running", "paused")]
    known += [container("created", "about to start", ALIVE), container("exited", "other", ALIVE)]
    assert sorted(end_abandoned(recorder, FakeEngine(known=known))) == sorted(gone.values())
    for run_id in gone.values():
        record = recorder.get_run(run_id)
        assert (record.status, record.tags["rhstudy.ended_by"]) == ("KILLED", "stale")
        assert record.tags["rhstudy.error"] == "its container ended without a word"
    assert {recorder.get_run(run_id).status for run_id in living.values()} == {"RUNNING"}
    removed = [item.labels["rhstudy.launch"] for item in known if "remove" in item.calls]
    assert removed == ["exited", "dead", "created"]


def test_a_process_on_the_host_that_outlived_its_launcher_is_left_alone(recorder: Recorder) -> None:
    alive = launched(recorder, "host", DEAD, **process_tags())
    over = subprocess.Popen(["true"])
    tags = process_tags(over.pid)
    over.wait()
    dead = launched(recorder, "over", DEAD, **{**tags, "rhstudy.process_start_time": "1"})
    assert end_abandoned(recorder, FakeEngine()) == [dead]
    assert recorder.get_run(alive).status == "RUNNING"


@pytest.mark.parametrize("engine", [None, FakeEngine(is_away=True), FakeEngine(refuses_to_list="no")])
def test_without_an_engine_nobody_can_tell(recorder: Recorder, engine: FakeEngine | None) -> None:
    run_id = launched(recorder, "x", DEAD)
    assert end_abandoned(recorder, engine) == []
    assert recorder.get_run(run_id).status == "RUNNING"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr(launch.time, "sleep", naps.append)
    return naps


@pytest.mark.parametrize("error", [MlflowException("away"), ConnectionError("away"), OSError(28, "full")])
def test_a_store_that_comes_back_is_waited_for(slept: list[float], error: Exception) -> None:
    answers: list[Exception | None] = [error, error, None]

    def work() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    patiently("the end", 60, work)
    assert (len(slept), answers) == (2, [])


def test_a_store_that_stays_away_is_named(slept: list[float]) -> None:
    def work() -> None:
        raise ConnectionRefusedError

    wanted = "tracking store must answer to record the run's end, got <ConnectionRefusedError>. Start the same command"
    with pytest.raises(StudyError, match=wanted):
        patiently("the run's end", 0, work)
    assert not slept


def test_what_waiting_cannot_mend_is_raised_at_once(slept: list[float]) -> None:
    def work() -> None:
        raise InputError("no such run")

    with pytest.raises(InputError, match="no such run"):
        patiently("the end", 60, work)
    assert not slept


def test_a_real_run_of_a_store_that_was_away_is_closed(
    make_mlflow: Callable[[], Recorder], slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make_mlflow()
    run_id = recorder.create_run("a", "detect")
    set_tags, failures = recorder.set_tags, [MlflowException("away")]

    def away_once(of: str, tags: Mapping[str, str]) -> None:
        if failures:
            raise failures.pop()
        set_tags(of, tags)

    monkeypatch.setattr(recorder, "set_tags", away_once)
    ended = Ended(exit_code=None)

    def close() -> None:
        close_run(recorder, run_id, ended)

    patiently("the end", 60, close)
    assert recorder.get_run(run_id).status == "FAILED"


def test_a_tracking_server_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    answers = iter([UnreachableStoreError("away"), UnreachableStoreError("away"), None])

    def work() -> None:
        error = next(answers)
        if error is not None:
            raise error

    patiently("the end", 60, work)
    assert next(answers, "asked three times") == "asked three times"
