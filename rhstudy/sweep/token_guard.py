"""A lock of workers that reach their storage through a proxy alone: a token that one of them holds at a time.

A token is a trial of a study of its own, ``NAME.guard``: of those who set it from WAITING to RUNNING one succeeds. The
lowest unfinished one counts, so of two made at once each has its turn. A holder that died is found out at once on its
own host, elsewhere by its silence.
"""

from __future__ import annotations

import contextlib
import random
import time

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from rhstudy.tracking.process import is_dead, process_tags

PROCESS = "process"
_SHORTEST_S, _LONGEST_S = 0.02, 0.5
_UNLESS_ENDED = contextlib.suppress(UpdateFinishedTrialError)
"""Somebody else may end a token meanwhile."""


class TokenGuard:
    """See the module; a `rhstudy.sweep.guard.Guard`.

    Args:
        storage: where the tokens are.
        name: of the sweep.
        stale_s: a holder on another host that is silent for so long lost its token.
    """

    def __init__(self, storage: BaseStorage, name: str, stale_s: float) -> None:
        self._storage, self._stale_s = storage, stale_s
        study = optuna.create_study(storage=storage, study_name=f"{name}.guard", load_if_exists=True)
        self._study_id = study._study_id
        self._held: int | None = None

    def acquire(self) -> bool:
        """See `Guard`."""
        seen: dict[int, float] = {}
        pause_s = _SHORTEST_S
        while True:
            token = self._token()
            if token is None:
                waiting = optuna.trial.create_trial(state=TrialState.WAITING)
                self._storage.create_new_trial(self._study_id, template_trial=waiting)
                continue
            if token.state == TrialState.WAITING and self._takes(token):
                return True
            with _UNLESS_ENDED:
                self._drop_if_left(token, seen)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_S)

    def release(self) -> None:
        """See `Guard`."""
        held, self._held = self._held, None
        if held is not None:
            with _UNLESS_ENDED:
                self._storage.set_trial_state_values(held, TrialState.COMPLETE, [0.0])

    def require_held(self) -> None:
        """See `Guard`."""
        if self._held is None or self._storage.get_trial(self._held).state != TrialState.RUNNING:
            raise ConnectionError("another worker ended the token of this one, which was silent for too long")

    def _token(self) -> FrozenTrial | None:
        states = (TrialState.WAITING, TrialState.RUNNING)
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False, states=states)
        return min(trials, key=lambda trial: trial.number, default=None)

    def _takes(self, token: FrozenTrial) -> bool:
        with _UNLESS_ENDED:
            if self._storage.set_trial_state_values(token._trial_id, TrialState.RUNNING):
                self._held = token._trial_id
                self._storage.set_trial_user_attr(token._trial_id, PROCESS, process_tags())
        return self._held is not None

    def _drop_if_left(self, token: FrozenTrial, seen: dict[int, float]) -> None:
        """End a token whose holder is gone; `seen` is since when this worker has seen which one held."""
        if token.state != TrialState.RUNNING:
            return
        since = seen.setdefault(token._trial_id, time.monotonic())
        if is_dead(token.user_attrs.get(PROCESS, {})) or time.monotonic() - since > self._stale_s:
            self._storage.set_trial_state_values(token._trial_id, TrialState.FAIL)
