"""Two machines, one stage: who works, who waits, who is taken for gone. A machine is a work folder of its own."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from stage_examples import ToyBody, toy_spec

from rhstudy.tracking import leases, stage_run
from rhstudy.tracking.process import ENDED_BY_TAG
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import DIGEST_TAG, StageResult, StageRun, run_stage, stage_digest


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.05)


def elsewhere(recorder: Recorder, digest: str, silent_for_s: float) -> str:
    """A RUNNING run of a machine we know nothing of, renewed `silent_for_s` ago."""
    tags = {DIGEST_TAG: digest, "rhstudy.host": "far away", leases.ALIVE_TAG: f"{time.time() - silent_for_s:.0f}"}
    return recorder.create_run("elsewhere", "detect", tags=tags)


def test_a_stage_another_machine_works_on_is_waited_for(
    recorder: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = threading.Event()
    results: list[StageResult] = []

    def slow(run: StageRun) -> dict[str, float]:
        began.set()
        time.sleep(0.5)
        (run.output_dir / "scores.txt").write_text("theirs")
        return {"f1": 0.5}

    other = threading.Thread(target=lambda: results.append(run_stage(recorder, toy_spec(tmp_path / "far"), slow)))
    other.start()
    assert began.wait(30)
    body = ToyBody("ours")
    with caplog.at_level(logging.INFO):
        here = run_stage(recorder, toy_spec(tmp_path / "here"), body)
    other.join()
    assert (body.calls, here.reused) == (0, True)
    assert here.run_id == results[0].run_id
    assert f"run {here.run_id}" in caplog.text
    assert "is doing this stage; waiting for it" in caplog.text


def test_a_machine_that_fell_silent_is_taken_for_gone(recorder: Recorder, tmp_path: Path) -> None:
    spec = toy_spec(tmp_path)
    lost = elsewhere(recorder, stage_digest(spec), leases.LOST_AFTER_S + 60)
    result = run_stage(recorder, spec, ToyBody())
    assert not result.reused
    record = recorder.get_run(lost)
    assert (record.status, record.tags[ENDED_BY_TAG]) == ("KILLED", "stale")


def test_when_the_other_machine_fails_the_stage_is_done_here(recorder: Recorder, tmp_path: Path) -> None:
    spec = toy_spec(tmp_path)
    other = elsewhere(recorder, stage_digest(spec), 0)
    threading.Timer(0.3, lambda: recorder.end_run(other, "FAILED")).start()
    body = ToyBody()
    assert not run_stage(recorder, spec, body).reused
    assert body.calls == 1
    assert recorder.get_run(other).status == "FAILED"


def test_of_two_that_begin_at_the_same_moment_one_withdraws(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's run appears after we looked and before ours was made."""
    spec, others = toy_spec(tmp_path), list[str]()
    looked = stage_run.wait_for_workers

    def look(store: Recorder, tags: dict[str, str]) -> bool:
        waited = looked(store, tags)
        if not others:
            others.append(elsewhere(store, tags[DIGEST_TAG], 0))
            threading.Timer(0.3, lambda: store.end_run(others[0], "KILLED")).start()
        return waited

    monkeypatch.setattr(stage_run, "wait_for_workers", look)
    body = ToyBody()
    result = run_stage(recorder, spec, body)
    assert body.calls == 1
    ours = [run for run in recorder.find_runs() if run.run_id not in (result.run_id, *others)]
    assert [(run.status, run.tags[ENDED_BY_TAG]) for run in ours] == [("KILLED", "withdrawn")]
    assert others[0] in ours[0].tags["mlflow.note.content"]


def test_a_run_says_that_it_is_at_work(recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.05)
    seen = []

    def body(run: StageRun) -> dict[str, float]:
        first = recorder.get_run(run.run_id).tags[leases.ALIVE_TAG]
        limit = time.monotonic() + 20
        while recorder.get_run(run.run_id).tags[leases.ALIVE_TAG] == first and time.monotonic() < limit:
            time.sleep(0.05)
        seen.extend([first, recorder.get_run(run.run_id).tags[leases.ALIVE_TAG]])
        return {}

    run_stage(recorder, toy_spec(tmp_path), body)
    assert float(seen[1]) > float(seen[0])
    assert not [thread for thread in threading.enumerate() if thread.name == "rhstudy-lease" and thread.is_alive()]
