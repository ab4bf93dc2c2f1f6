"""Which trial is whose: started, alive, dead, counted. Everything here is called with the sweep's guard held.

A trial is RUNNING with the identity of its worker's process and, in a journal, the time of its last heartbeat. One
whose worker is dead is enqueued again and then failed, in this order, so that a kill in between loses nothing; whoever
finds both knows from the retry's history that it is there. A trial that failed by itself has an ``error`` and is not
retried.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.storage import STALE_AFTER_HEARTBEATS, OpenSweep, retry
from rhstudy.tracking.process import is_alive, is_dead, process_tags

PROCESS, HEARTBEAT, STARTED, SECONDS, ERROR = "process", "heartbeat", "started", "seconds", "error"
_log = logging.getLogger(__name__)


def mark_mine(trial: optuna.Trial) -> None:
    """Write into `trial` whose it is."""
    trial.set_user_attr(STARTED, time.time())
    trial.set_user_attr(HEARTBEAT, time.time())
    trial.set_user_attr(PROCESS, process_tags())


@contextlib.contextmanager
def heartbeats(trial: optuna.Trial, every_s: float) -> Iterator[None]:
    """Say every `every_s` seconds that the trial's worker lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            try:
                trial.set_user_attr(HEARTBEAT, time.time())
            except Exception as error:  # the trial itself finds out what is wrong with the storage
                _log.warning("no heartbeat of trial %d: %s", trial.number, error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fail_dead_trials(sweep: OpenSweep, config: SweepConfig) -> list[FrozenTrial]:
    """Enqueue the trials of dead workers again and fail them; returns those whose death was found now."""
    trials = sweep.study.get_trials()
    retried = {number for trial in trials for number in _history(trial)}
    enqueue = retry(config)
    dead = [trial for trial in trials if trial.state == TrialState.RUNNING and _is_stale(trial, sweep, config)]
    lost = [trial for trial in trials if trial.state == TrialState.FAIL and ERROR not in trial.user_attrs]
    for trial in [*dead, *lost]:
        if trial.number not in retried:
            enqueue(sweep.study, trial)
    for trial in dead:
        sweep.study.tell(trial.number, state=TrialState.FAIL)
        _log.warning("trial %d was left by a worker that is gone; it is enqueued again", trial.number)
    return dead


def _history(trial: FrozenTrial) -> list[int]:
    """Numbers of the tries before this one, as `RetryHeartbeatStaleTrialCallback` writes them."""
    return list(trial.system_attrs.get("retry_history", []))


def _is_stale(trial: FrozenTrial, sweep: OpenSweep, config: SweepConfig) -> bool:
    """Whether nobody works on a RUNNING trial.

    It is marked under the guard in which it was started: without a mark of its own its worker died in between.
    """
    process, history = trial.user_attrs.get(PROCESS), _history(trial)
    earlier = sweep.study.get_trials(deepcopy=False)[history[-1]].user_attrs if history else {}
    inherited = bool(history) and earlier.get(STARTED) == trial.user_attrs.get(STARTED)
    if process is None or inherited or is_dead(process):
        return True
    if is_alive(process) or sweep.heartbeats:
        return False
    return time.time() - float(trial.user_attrs[HEARTBEAT]) > STALE_AFTER_HEARTBEATS * config.heartbeat_s


def num_counted(trials: list[FrozenTrial]) -> int:
    """Trials that use up the budget: at work, ended, or failed by themselves."""
    return sum(map(_counts, trials))


def _counts(trial: FrozenTrial) -> bool:
    ended = trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    return ended or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)


def seconds_spent(trials: list[FrozenTrial]) -> float:
    """Time of all workers on trials up to now; what a dead worker spent is not known."""
    running = [trial for trial in trials if trial.state == TrialState.RUNNING and STARTED in trial.user_attrs]
    ended = sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in trials if trial.state.is_finished())
    return ended + sum(time.time() - float(trial.user_attrs[STARTED]) for trial in running)


def is_spent(sweep: OpenSweep, config: SweepConfig) -> bool:
    """Whether the budget allows no further trial."""
    trials = sweep.study.get_trials(deepcopy=False)
    by_number = 0 < config.num_trials <= num_counted(trials)
    return by_number or 0 < config.max_seconds <= seconds_spent(trials)


def workers_at_work(trials: list[FrozenTrial]) -> list[Mapping[str, Any]]:
    """Process tags of the workers that have a RUNNING trial and are not known to be dead."""
    running = [trial.user_attrs.get(PROCESS, {}) for trial in trials if trial.state == TrialState.RUNNING]
    return [process for process in running if process and not is_dead(process)]
