"""Which trial is whose: claimed, alive, dead, ended, counted. Looking up and deciding is one step of one worker.

A trial is RUNNING with the identity of its worker's process and the time of its last heartbeat. One whose worker is
dead is failed and then enqueued again: a trial ends once, so a worker that ends it at the same moment is first or too
late, and a kill in between loses nothing, since a failed trial without a retry (known by its history) is enqueued by
the next worker. A trial that failed by itself has an ``error`` and is not retried. A worker that was only silent, and
comes back, finds its trial failed: what it measured is not counted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rhstudy.errors import PrunedTrialError, masked, message
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.halving import tries_before, without_rungs
from rhstudy.sweep.patience import LONGEST_WAIT_S
from rhstudy.sweep.storage import STALE_AFTER_HEARTBEATS, OpenSweep, retry
from rhstudy.tracking.process import is_alive, is_dead, is_suspended, process_tags

CLAIM, HEARTBEAT, SECONDS, ERROR = "claim", "heartbeat", "seconds", "error"
_log = logging.getLogger(__name__)


class LostTrialError(PrunedTrialError):
    """Another worker gave this one's trial up for dead and enqueued it again. Exit code 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A trial, and those that were lost with their workers until now."""

    trial: optuna.Trial
    lost: list[FrozenTrial]


def claim(sweep: OpenSweep, config: SweepConfig) -> Claim | None:
    """Take the next trial, after those of dead workers were enqueued again; None when the budget is spent.

    While the storage is away the whole step is tried again.
    """

    def step() -> Claim | None:
        with sweep.holding():
            trials = fail_dead_trials(sweep, config)
            if is_spent(trials, config):
                return None
            sweep.guard.require_held()
            trial = sweep.study.ask()
            mark_mine(trial)
            return Claim(trial=trial, lost=lost_trials(trials))

    return sweep.patience.call(step)


def tell(sweep: OpenSweep, trial: optuna.Trial, state: TrialState, value: float | Sequence[float] | None) -> bool:
    """End `trial`; False when another worker gave it up for dead before, which stands: a trial ends once."""

    return sweep.patience.call(lambda: _is_told(sweep, trial, state, value))


def _is_told(
    sweep: OpenSweep, trial: optuna.Trial | int, state: TrialState, value: float | Sequence[float] | None = None
) -> bool:
    try:
        return sweep.study.tell(trial, value, state, skip_if_finished=True).state == state
    except optuna.exceptions.UpdateFinishedTrialError:  # between looking and writing
        return False


def note(trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
    """Write `attributes` into `trial`, unless it is another worker's by now."""
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        for name, given in attributes.items():
            trial.set_user_attr(name, given)


def mark_mine(trial: optuna.Trial) -> None:
    """Write into `trial` whose it is, and since when."""
    trial.set_user_attr(CLAIM, {"process": process_tags(), "started": time.time()})


def owner_of(trial: FrozenTrial) -> dict[str, str]:
    """Process tags of the worker that claimed `trial`; empty when none did."""
    return dict(trial.user_attrs.get(CLAIM, {}).get("process", {}))


def _started(trial: FrozenTrial) -> float:
    return float(trial.user_attrs[CLAIM]["started"])


@contextlib.contextmanager
def heartbeats(sweep: OpenSweep, trial: optuna.Trial, every_s: float) -> Iterator[None]:
    """Say every `every_s` seconds that the trial's worker lives, and while the storage is away try more often."""
    ended = threading.Event()

    def beat() -> None:
        wait_s = every_s
        while not ended.wait(wait_s):
            try:
                sweep.patience.once(lambda: trial.set_user_attr(HEARTBEAT, time.time()))
                wait_s = every_s
            except optuna.exceptions.UpdateFinishedTrialError:
                _log.warning("trial %d was given up by another worker: this one was silent for too long", trial.number)
                return
            except Exception as error:  # the trial itself finds out what is wrong with the storage
                wait_s = min(every_s, LONGEST_WAIT_S)
                _log.warning("no heartbeat of trial %d: %s", trial.number, masked(str(error)))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def while_mine(trial: optuna.Trial) -> Iterator[None]:
    """A block that writes into `trial`.

    Raises:
        LostTrialError: the trial was given to another worker meanwhile.
    """
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise lost(trial) from error


def lost(trial: optuna.Trial) -> LostTrialError:
    """What is said of `trial` when it was given to another worker."""
    remedy = "It is enqueued again, and what this worker measured is not counted"
    return LostTrialError(message(f"trial {trial.number}", "be at work", "<given up, its worker was silent>", remedy))


def fail_dead_trials(sweep: OpenSweep, config: SweepConfig) -> list[FrozenTrial]:
    """Fail the trials of dead workers and enqueue them again; with the guard held. Returns all trials."""
    trials = sweep.study.get_trials(deepcopy=False)
    dead = [trial for trial in trials if trial.state == TrialState.RUNNING and _is_stale(trial, trials, sweep, config)]
    for trial in dead:
        sweep.guard.require_held()
        if _is_told(sweep, trial.number, TrialState.FAIL):
            _log.warning("trial %d was left by a worker that is gone", trial.number)
    if dead:
        trials = sweep.study.get_trials(deepcopy=False)
    retried = {number for trial in trials for number in tries_before(trial)}
    for trial in lost_trials(trials):
        if trial.number not in retried:
            sweep.guard.require_held()
            retry(config)(sweep.study, without_rungs(trial))
    return trials


def lost_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that failed with their worker, not by themselves."""
    return [trial for trial in trials if trial.state == TrialState.FAIL and ERROR not in trial.user_attrs]


def _is_stale(trial: FrozenTrial, trials: list[FrozenTrial], sweep: OpenSweep, config: SweepConfig) -> bool:
    """Whether nobody works on a RUNNING trial.

    It is marked under the guard in which it was started: without a mark of its own its worker died in between. Whoever
    looks has no trial: one of its own was left when the storage went away in the middle of a claim.
    """
    process, history = owner_of(trial), tries_before(trial)
    inherited = bool(history) and trials[history[-1]].user_attrs.get(CLAIM) == trial.user_attrs.get(CLAIM)
    if not process or inherited or process == process_tags() or is_dead(process):
        return True
    if is_alive(process) and not is_suspended(process):
        return False
    last = max(_started(trial), float(trial.user_attrs.get(HEARTBEAT, 0.0)), sweep.patience.back_at)
    return time.time() - last > STALE_AFTER_HEARTBEATS * config.heartbeat_s


def num_counted(trials: list[FrozenTrial]) -> int:
    """Trials that use up the budget: at work, ended, or failed by themselves."""
    return sum(map(_counts, trials))


def _counts(trial: FrozenTrial) -> bool:
    ended = trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
    return ended or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)


def seconds_spent(trials: list[FrozenTrial]) -> float:
    """Time of all workers on trials up to now; what a dead worker spent is not known."""
    running = [trial for trial in trials if trial.state == TrialState.RUNNING and owner_of(trial)]
    ended = sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in trials if trial.state.is_finished())
    return ended + sum(time.time() - _started(trial) for trial in running)


def is_spent(trials: list[FrozenTrial], config: SweepConfig) -> bool:
    """Whether the budget allows no further trial."""
    by_number = 0 < config.num_trials <= num_counted(trials)
    return by_number or 0 < config.max_seconds <= seconds_spent(trials)


def workers_at_work(trials: list[FrozenTrial]) -> list[Mapping[str, Any]]:
    """Process tags of the workers that have a RUNNING trial and are not known to be dead."""
    running = [owner_of(trial) for trial in trials if trial.state == TrialState.RUNNING]
    return [process for process in running if process and not is_dead(process)]
