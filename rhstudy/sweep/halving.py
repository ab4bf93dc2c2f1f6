"""Optuna's successive halving and Hyperband, for which a trial that was enqueued again counts once: by its last try.

Both keep what a trial reported at a rung with the trial. Optuna's retry copies these records, so that a trial whose
worker died would compete twice, and be let through the rungs that it had reached before. Here a retry begins without
them (`without_rungs`), and the try before it competes no more.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import optuna
from optuna.pruners import HyperbandPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

_RUNG = "completed_rung_"


class Halving(SuccessiveHalvingPruner):
    """See the module."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give `trial` up."""
        return super().prune(_counted_once(study), trial)


class Hyperband(HyperbandPruner):
    """See the module."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give `trial` up."""
        return super().prune(_counted_once(study), trial)


def without_rungs(trial: FrozenTrial) -> FrozenTrial:
    """A copy of `trial` that has reached no rung yet, to be enqueued again."""
    found = copy.deepcopy(trial)
    found.system_attrs = {name: value for name, value in found.system_attrs.items() if not name.startswith(_RUNG)}
    return found


def tries_before(trial: FrozenTrial) -> list[int]:
    """Numbers of the tries before this one, as `RetryHeartbeatStaleTrialCallback` writes them."""
    return list(trial.system_attrs.get("retry_history", []))


def _counted_once(study: optuna.Study) -> optuna.Study:
    found = copy.copy(study)
    found._storage = cast(BaseStorage, _LastTries(study._storage))
    return found


class _LastTries:
    """A storage that shows no trial that was enqueued again; all else is as in the one behind it."""

    def __init__(self, storage: Any) -> None:
        self._behind = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        """Trials in `states` (None: any) but those that were enqueued again."""
        trials = self._behind.get_all_trials(study_id, deepcopy=deepcopy)
        again = {number for trial in trials for number in tries_before(trial)}
        return [trial for trial in trials if trial.number not in again and (states is None or trial.state in states)]
