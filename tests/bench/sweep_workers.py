"""Many workers of one sweep on one storage: trials lost, trials done twice, and time against the ideal.

    python tests/bench/sweep_workers.py --storage journal
    python tests/bench/sweep_workers.py --storage postgres

Each worker is a process that runs the sweep's own code, but for the measurement, which sleeps; it is forked with
everything imported. PostgreSQL is Debian's, started here, with its usual fsync. The ideal is trials x sleep / workers;
the clock runs from the moment when all workers have joined to the end of the last one. Prints one JSON record.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "unit" / "sweep"), str(TESTS / "e2e")]

import optuna
from fakes import Fake, FakeSweep, fake_sweep
from tiny_hub import write_data, write_model
from tracking_server import postgres_server

from rhstudy.sweep.run import run


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[str]:
    """Path or URL of an empty storage."""
    if kind == "postgres":
        with postgres_server(options="") as server:
            yield server.url
    else:
        yield f"sqlite:///{folder}/bench.db" if kind == "sqlite" else f"{folder}/bench.journal"


def work(sweep: FakeSweep, ready: Any, fake: Fake) -> None:
    """One worker: joins, waits until all have, does trials."""

    def make(*given: Any) -> Fake:
        ready.wait()
        return fake

    run(dataclasses.replace(sweep.config, worker=True), sweep.recorder, make)


def timed(sweep: FakeSweep, num_workers: int, fake: Fake) -> dict[str, float]:
    """Seconds in which all workers joined, and then did all trials."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(num_workers + 1)
    workers = [context.Process(target=work, args=(sweep, ready, fake)) for _ in range(num_workers)]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    ready.wait(timeout=300)
    joined = time.monotonic()
    for worker in workers:
        worker.join()
    ended = time.monotonic()
    codes = [worker.exitcode for worker in workers]
    if any(codes):
        raise SystemExit(f"workers ended with {codes}")
    return {"join_s": joined - start, "trials_s": ended - joined}


def counted(sweep: FakeSweep, log: Path) -> dict[str, int]:
    """What became of the trials: by the storage, and by the log that each measurement writes a line into."""
    url = str(sweep.config.storage)
    backend = optuna.storages.journal.JournalFileBackend
    opened = url if "://" in url else optuna.storages.JournalStorage(backend(url))
    trials = optuna.load_study(study_name=sweep.config.name, storage=opened).trials
    measured = Counter(log.read_text(encoding="utf-8").splitlines())
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    runs = {trial.user_attrs["run_id"] for trial in complete}
    values = Counter(tuple(sorted(trial.params.items())) for trial in trials)
    return {
        "num_complete": len(complete),
        "num_others": len(trials) - len(complete),
        "num_lost": sum(run_id not in measured for run_id in runs) + sweep.config.num_trials - len(complete),
        "num_doubled": sum(count - 1 for count in measured.values()) + sum(count - 1 for count in values.values()),
        "num_runs_left": len(sweep.recorder.find_runs({"rhstudy.stage": "trial"}, "RUNNING")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["journal", "postgres", "sqlite"], default="journal")
    parser.add_argument("--num-workers", type=int, default=8)
    parser.add_argument("--num-trials", type=int, default=200)
    parser.add_argument("--sleep-s", type=float, default=1.0)
    parser.add_argument("--sampler", default="random")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, storage_of(given.storage, Path(name)) as url:
        folder = Path(name)
        write_data(folder / "data")
        write_model(folder / "model")
        sweep = fake_sweep(folder, folder, storage=url, num_trials=given.num_trials, sampler=given.sampler)
        fake = Fake(seconds=given.sleep_s, log=folder / "log")
        seconds = timed(sweep, given.num_workers, fake)
        ideal_s = given.num_trials * given.sleep_s / given.num_workers
        counts = counted(sweep, folder / "log")
    ratio = seconds["trials_s"] / ideal_s
    print(
        json.dumps({"bench": "sweep_workers", **vars(given), **counts, **seconds, "ideal_s": ideal_s, "ratio": ratio})
    )


if __name__ == "__main__":
    main()
