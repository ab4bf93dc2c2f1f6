"""What tests read from a sweep's storage, of whatever kind, and workers killed at random."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import optuna
from fakes import Fake, FakeSweep
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import NullPool

from rhstudy.sweep.claims import owner_of
from rhstudy.tracking.process import end_stale_runs
from rhstudy.tracking.recorder import RunRecord


def num_kills(usual: int) -> int:
    """How often workers are killed at random: `usual`, or as often as ``RHSTUDY_NUM_KILLS`` says (wanted once: 100)."""
    return int(os.environ.get("RHSTUDY_NUM_KILLS", usual))


def storage_of(sweep: FakeSweep) -> BaseStorage:
    text = str(sweep.config.storage)
    if "://" not in text:
        return JournalStorage(JournalFileBackend(text))
    # No connection is kept, which a forked worker would share.
    return RDBStorage(
        text, engine_kwargs={"poolclass": NullPool}, skip_compatibility_check=True, skip_table_creation=True
    )


def trials_of(sweep: FakeSweep) -> list[FrozenTrial]:
    storage = storage_of(sweep)
    known = sweep.config.name in optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=sweep.config.name, storage=storage).get_trials() if known else []


def states_of(sweep: FakeSweep) -> list[str]:
    return [trial.state.name for trial in trials_of(sweep)]


def at_work(sweep: FakeSweep) -> set[int]:
    """Pids of the processes that have a trial."""
    running = [trial for trial in trials_of(sweep) if trial.state == TrialState.RUNNING]
    return {int(owner_of(trial).get("rhstudy.pid", 0)) for trial in running}


def run_of(sweep: FakeSweep, stage: str) -> list[RunRecord]:
    return sweep.recorder.find_runs({"rhstudy.stage": stage})


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def kill_at_random(sweep: FakeSweep, fake: Fake, num_workers: int, num_kills: int, limit_s: float) -> int:
    """Let workers do the sweep, and kill and replace one of them again and again; returns how often."""
    draw, killed = random.Random(3), 0
    workers = [sweep.fork(fake) for _ in range(num_workers)]
    limit = time.monotonic() + limit_s
    while workers and time.monotonic() < limit:
        time.sleep(0.05)
        workers = [pid for pid in workers if not ended(pid)]
        busy = [pid for pid in workers if pid in at_work(sweep)] if killed < num_kills else []
        if busy:
            time.sleep(draw.uniform(0.0, 0.2))  # into measuring, recording, telling, claiming
            pid = draw.choice(busy)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            workers[workers.index(pid)] = sweep.fork(fake)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not workers, "workers hang"
    return killed


def assert_nothing_is_lost_or_doubled(sweep: FakeSweep, num_kills: int) -> None:
    """Every trial is complete, once, however many workers were killed (at most `num_kills`); prints the record."""
    end_stale_runs(sweep.recorder)  # as the command does when it starts
    facts, num_trials = sweep().facts, sweep.config.num_trials
    trials = trials_of(sweep)
    states = Counter(trial.state for trial in trials)
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}
    assert states[TrialState.COMPLETE] == facts["num_complete"] == facts["num_trials"] == num_trials
    assert states[TrialState.FAIL] <= num_kills
    retries = Counter(
        trial.system_attrs["retry_history"][-1] for trial in trials if "retry_history" in trial.system_attrs
    )
    assert retries == {trial.number: 1 for trial in trials if trial.state == TrialState.FAIL}
    runs = {run.tags["rhstudy.sweep.trial"]: run for run in run_of(sweep, "trial")}
    assert len(runs) == len(run_of(sweep, "trial"))
    for trial in trials:
        run = runs.get(str(trial.number))
        if trial.state == TrialState.COMPLETE:
            assert run is not None
            assert (run.status, run.run_id) == ("FINISHED", trial.user_attrs["run_id"])
            assert run.metrics["objective"] == trial.value
        else:
            assert run is None or run.status == "KILLED"
    (parent,) = run_of(sweep, "sweep")
    assert parent.status == "FINISHED"
    assert {run.parent_run_id for run in runs.values()} == {parent.run_id}
    ends = Counter(run.status for run in runs.values())
    print(
        f"at most {num_kills} killed: of {num_trials} trials {states[TrialState.COMPLETE]} complete, each once; "
        f"{states[TrialState.FAIL]} tries lost with their workers, {sum(retries.values())} enqueued again; "
        f"runs of trials {dict(ends)}"
    )
