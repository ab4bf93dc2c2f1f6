"""Many workers on one storage: killed at any moment they lose nothing, and do nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from fakes import Fake, FakeSweep, fake_sweep
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from rhstudy.sweep.claims import owner_of
from rhstudy.tracking.process import end_stale_runs
from rhstudy.tracking.recorder import RunRecord

NUM_TRIALS, NUM_WORKERS, NUM_KILLS = 16, 3, 5


def trials_of(sweep: FakeSweep) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(sweep.config.storage))
    known = sweep.config.name in optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=sweep.config.name, storage=storage).get_trials() if known else []


def at_work(sweep: FakeSweep) -> set[int]:
    """Pids of the processes that have a trial."""
    running = [trial for trial in trials_of(sweep) if trial.state == TrialState.RUNNING]
    return {int(owner_of(trial).get("rhstudy.pid", 0)) for trial in running}


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def run_of(sweep: FakeSweep, stage: str) -> list[RunRecord]:
    return sweep.recorder.find_runs({"rhstudy.stage": stage})


@pytest.mark.slow
def test_workers_killed_at_random_lose_no_trial_and_double_none(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=NUM_TRIALS, max_retries=100)
    fake = Fake(seconds=0.05, log=tmp_path / "log")
    draw, num_kills = random.Random(3), 0
    workers = [sweep.fork(fake) for _ in range(NUM_WORKERS)]
    limit = time.monotonic() + 200
    while workers and time.monotonic() < limit:
        time.sleep(0.05)
        workers = [pid for pid in workers if not ended(pid)]
        busy = [pid for pid in workers if pid in at_work(sweep)] if num_kills < NUM_KILLS else []
        if busy:
            time.sleep(draw.uniform(0.0, 0.2))  # into measuring, recording, telling, claiming
            pid = draw.choice(busy)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            num_kills += 1
            workers[workers.index(pid)] = sweep.fork(fake)
    assert not workers, "workers hang"
    end_stale_runs(sweep.recorder)  # as the command does when it starts
    result = sweep()

    trials = trials_of(sweep)
    states = Counter(trial.state for trial in trials)
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert states[TrialState.COMPLETE] == NUM_TRIALS
    assert result.facts["num_complete"] == result.facts["num_trials"] == NUM_TRIALS
    assert num_kills == NUM_KILLS
    assert 0 < states[TrialState.FAIL] <= NUM_KILLS
    retries = Counter(
        trial.system_attrs["retry_history"][-1] for trial in trials if "retry_history" in trial.system_attrs
    )
    assert retries == {trial.number: 1 for trial in trials if trial.state == TrialState.FAIL}
    runs = {run.tags["rhstudy.sweep.trial"]: run for run in run_of(sweep, "trial")}
    assert len(runs) == len(run_of(sweep, "trial"))
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            run = runs[str(trial.number)]
            assert (run.status, run.run_id) == ("FINISHED", trial.user_attrs["run_id"])
            assert run.metrics["objective"] == trial.value
    assert {run.status for run in runs.values()} <= {"FINISHED", "KILLED"}
    (parent,) = run_of(sweep, "sweep")
    assert parent.status == "FINISHED"
    assert {run.parent_run_id for run in runs.values()} == {parent.run_id}


def test_workers_together_keep_to_the_number_of_trials(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=7)
    workers = [sweep.fork(Fake(seconds=0.1)) for _ in range(3)]
    for pid in workers:
        assert os.waitpid(pid, 0)[1] == 0
    trials = trials_of(sweep)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    assert len({tuple(trial.params.items()) for trial in trials}) == 7  # no worker draws what another drew
    assert {owner_of(trial)["rhstudy.pid"] for trial in trials} == set(map(str, workers))
    assert [run.status for run in run_of(sweep, "sweep")] == ["FINISHED"]


def test_a_silent_worker_of_another_machine_loses_its_trial(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=3, corners=False)
    sweep(num_trials=1)
    storage = JournalStorage(JournalFileBackend(sweep.config.storage))
    study = optuna.load_study(study_name="fake", storage=storage)
    for age_s in (10_000.0, 10.0):  # long dead, and only just silent
        trial = study.ask()
        process = {"rhstudy.host": "another", "rhstudy.pid": "7"}
        trial.set_user_attr("claim", {"process": process, "started": time.time() - 20_000.0})
        trial.set_user_attr("heartbeat", time.time() - age_s)
    result = sweep()
    states = [trial.state for trial in trials_of(sweep)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE]
    assert result.facts["num_lost_workers"] == 1
    (parent,) = run_of(sweep, "sweep")
    assert (parent.status, parent.tags["rhstudy.host"]) == ("RUNNING", "another")


def test_a_journal_that_was_cut_in_a_line_goes_on(sweep: FakeSweep) -> None:
    sweep(num_trials=2)
    with open(sweep.config.storage, "ab") as journal:
        journal.write(b'{"op_code": 4, "worker_id": "half a li')
    assert sweep(num_trials=4).facts["num_complete"] == 4
    lines = Path(sweep.config.storage).read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") for line in lines)
