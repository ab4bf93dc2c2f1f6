"""A sweep in PostgreSQL: workers keep to its budget, and a killed one's trial is done by the next."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
from fakes import Fake, fake_sweep

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))

from tracking_server import postgres


@pytest.mark.slow
def test_workers_of_a_postgres_keep_to_the_budget_and_retry_a_killed_trial(world: Path, tmp_path: Path) -> None:
    with postgres() as url:
        sweep = fake_sweep(world, tmp_path, storage=url, num_trials=5)
        hanging = sweep.fork(Fake(seconds=600.0))
        limit = time.monotonic() + 60
        while not sweep.recorder.find_runs({"rhstudy.stage": "trial"}) and time.monotonic() < limit:
            time.sleep(0.1)
        os.kill(hanging, signal.SIGKILL)
        os.waitpid(hanging, 0)
        workers = [sweep.fork(Fake(seconds=0.1)) for _ in range(2)]
        assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]
        facts = sweep().facts
        assert (facts["num_trials"], facts["num_complete"], facts["num_lost_workers"]) == (5, 5, 1)
        study = optuna.load_study(study_name="fake", storage=url)
        lost, retried = (study.trials[number].params for number in (0, retry_of(study, 0)))
        assert lost == retried
        study._storage.remove_session()


def retry_of(study: optuna.Study, number: int) -> int:
    (found,) = [trial.number for trial in study.trials if trial.system_attrs.get("retry_history") == [number]]
    return found
