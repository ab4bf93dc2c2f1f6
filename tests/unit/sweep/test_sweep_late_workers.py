"""A worker that was given up for dead and comes back: what it does then is not counted and overwrites nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from fakes import Fake, FakeSweep, fake_sweep
from optuna.trial import TrialState
from storages import run_of, states_of, storage_of, trials_of

from rhstudy.data.knobs import Knobs
from rhstudy.sweep import claims
from rhstudy.sweep.course import Course
from rhstudy.sweep.measure import Measured
from rhstudy.tracking.process import is_alive, is_suspended, process_tags
from rhstudy.types import Estimate


def wait_until(found: object, limit_s: float = 60.0) -> None:
    assert callable(found)
    limit = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < limit, "waited for nothing"
        time.sleep(0.05)


def test_a_suspended_worker_loses_its_trial_and_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_AFTER_HEARTBEATS", 1)
    sweep = fake_sweep(world, tmp_path, num_trials=3, heartbeat_s=1)
    # It suspends itself, while it measures: suspended with the lock of the journal it would suspend all.
    late = sweep.fork(Fake(before=lambda number: os.kill(os.getpid(), signal.SIGSTOP) if number == 1 else None))
    wait_until(lambda: is_suspended({"rhstudy.pid": str(late)}))
    time.sleep(1.1)
    facts = sweep().facts
    assert (facts["num_trials"], facts["num_complete"], facts["num_lost_workers"]) == (3, 3, 1)
    before = trials_of(sweep)
    os.kill(late, signal.SIGCONT)
    assert os.waitpid(late, 0)[1] == 0
    assert [(trial.state, trial.value) for trial in trials_of(sweep)] == [
        (trial.state, trial.value) for trial in before
    ]
    assert [trial.state.name for trial in before].count("FAIL") == 1
    (lost,) = [trial for trial in before if trial.state == TrialState.FAIL]
    assert sweep.recorder.get_run(lost.user_attrs["run_id"]).status == "KILLED"
    assert {run.status for run in [*run_of(sweep, "trial"), *run_of(sweep, "sweep")]} == {"FINISHED", "KILLED"}
    assert "must be at work, got <given up" in (tmp_path / f"stderr.{late}").read_text()


@pytest.mark.parametrize("numbers", [{}, {"real_nll": 0.5}])
def test_what_a_late_worker_measured_is_not_counted(sweep: FakeSweep, numbers: dict[str, float]) -> None:
    """It notices when it writes into the trial, or, with nothing to write, when it ends it."""
    measured = []

    def measure(knobs: Knobs, run_id: str, course: Course) -> Measured:
        measured.append(run_id)
        if len(measured) == 2:  # another worker gives it up meanwhile
            optuna.load_study(study_name="fake", storage=storage_of(sweep)).tell(1, state=TrialState.FAIL)
        return Measured(value=Estimate(float(len(measured))), numbers=numbers)

    facts = sweep(measure, num_trials=3).facts
    assert states_of(sweep) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert (facts["num_trials"], facts["num_complete"], facts["num_lost_workers"]) == (3, 3, 1)
    trials = trials_of(sweep)
    assert [trial.value for trial in trials] == [1.0, None, 3.0, 4.0]
    assert trials[2].params == trials[1].params
    statuses = [sweep.recorder.get_run(run_id).status for run_id in measured]
    assert statuses == ["FINISHED", "KILLED", "FINISHED", "FINISHED"]


def test_a_trial_that_was_ended_twice_is_enqueued_once(sweep: FakeSweep) -> None:
    def fails_twice(number: int) -> None:
        if number in (1, 2):
            optuna.load_study(study_name="fake", storage=storage_of(sweep)).tell(number - 1, state=TrialState.FAIL)

    sweep(Fake(before=fails_twice), num_trials=2)
    assert states_of(sweep) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert [trial.system_attrs.get("retry_history") for trial in trials_of(sweep)] == [None, [0], [0, 1], None]


def test_a_stopped_process_is_suspended() -> None:
    assert not is_suspended(process_tags())
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    assert is_suspended(process_tags(pid))
    assert is_alive(process_tags(pid))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not is_suspended({"rhstudy.pid": str(pid)})
