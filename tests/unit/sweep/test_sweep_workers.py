"""Many workers on one storage: killed at any moment they lose nothing, and do nothing twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import optuna
import pytest
from fakes import Fake, FakeSweep, fake_sweep
from optuna.trial import TrialState
from storages import (
    assert_nothing_is_lost_or_doubled,
    kill_at_random,
    num_kills,
    run_of,
    states_of,
    storage_of,
    trials_of,
)

from rhstudy.sweep.claims import owner_of


@pytest.mark.slow
def test_workers_killed_at_random_lose_no_trial_and_double_none(world: Path, tmp_path: Path) -> None:
    wanted = num_kills(5)
    sweep = fake_sweep(world, tmp_path, num_trials=10 + wanted, max_retries=100)
    killed = kill_at_random(sweep, Fake(seconds=0.3), 3, wanted, limit_s=60 + 10 * wanted)
    assert killed == wanted
    assert "FAIL" in states_of(sweep)
    assert_nothing_is_lost_or_doubled(sweep, killed)


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
    study = optuna.load_study(study_name="fake", storage=storage_of(sweep))
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
