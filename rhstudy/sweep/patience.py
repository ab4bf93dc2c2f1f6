"""A storage that is away, for instance a database that is started again, is waited for; what was asked is asked again.

Asked again is only what may be done twice: reading, and writing a value in its place. Creating a trial or ending one is
repeated with the whole decision it is part of, under the guard (`Patience.call` around it).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage

from rhstudy.errors import AwayStorageError, StudyError, masked, message
from rhstudy.sweep.proxy import is_lost_call

FIRST_WAIT_S, LONGEST_WAIT_S, REMINDER_S = 0.1, 10.0, 60.0
_ONCE = ("create_new_study", "delete_study", "create_new_trial", "set_trial_state_values")
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Patience:
    """How long a worker waits for its storage, and whether it waits now.

    Attributes:
        back_at: when the storage came back the last time (seconds since the epoch; 0.0: it was never away). Who was
            silent before may have been so because of the storage.
    """

    def __init__(self, storage: str) -> None:
        """Args: storage: its path or URL, for messages."""
        self._storage = storage
        self._seconds = 0.0
        self._away_since: float | None = None
        self._reminded = 0.0
        self._calls = threading.local()
        self.back_at = 0.0

    def wait_up_to(self, seconds: float) -> None:
        """From here on wait so long, at most, for a storage that is away; 0 = not at all."""
        self._seconds = seconds

    def call(self, do: Callable[[], _Result]) -> _Result:
        """What `do` gives, which is called again while the storage is away; a call inside another is a part of it.

        Raises:
            AwayStorageError: the storage stayed away for too long; from then on nothing is waited for.
            BaseException: what else `do` raises.
        """
        if getattr(self._calls, "inside", False):
            return do()
        wait_s = FIRST_WAIT_S
        while True:
            try:
                result = self.once(do)
            except Exception as error:
                if not is_away(error):
                    raise
                self._require_time_left(error)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._note_back()
                return result

    def once(self, do: Callable[[], _Result]) -> _Result:
        """What `do` gives, called once: a storage that is away raises its own error."""
        outer = getattr(self._calls, "inside", False)
        self._calls.inside = True
        try:
            return do()
        finally:
            self._calls.inside = outer

    def _require_time_left(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        left_s = self._away_since + self._seconds - now
        if left_s <= 0:
            self._seconds = 0.0
            raise away_error(self._storage, error) from error
        if now - self._reminded > REMINDER_S:
            self._reminded = now
            text = "storage %s is away, trying again for %.0f s (%s)"
            _log.warning(text, masked(self._storage), left_s, _first_line(error))

    def _note_back(self) -> None:
        if self._away_since is not None:
            _log.warning("storage %s is back", masked(self._storage))
            self._away_since, self._reminded, self.back_at = None, 0.0, time.time()


def away_error(storage: str, error: BaseException) -> AwayStorageError:
    """What a worker ends with when its storage stays away."""
    remedy = f"Start the same command again when it does: trials that ended are kept ({_first_line(error)})"
    return AwayStorageError(message("storage", "answer", storage, remedy))


def _first_line(error: BaseException) -> str:
    """The innermost cause: Optuna and SQLAlchemy wrap it into advice of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return masked(f"{type(error).__name__}: {error}").strip().partition("\n")[0]


def is_away(error: BaseException | None) -> bool:
    """Whether `error` says that the storage cannot be reached or written now: a lost connection, a full disk."""
    from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, PendingRollbackError, ProgrammingError

    if isinstance(error, StudyError) or error is None:
        return False
    if isinstance(error, OSError | PendingRollbackError) or is_lost_call(error):
        return True
    if isinstance(error, DBAPIError):  # drivers have several classes, and a plain one, for a server that went away
        return not isinstance(error, DataError | IntegrityError | ProgrammingError)
    return isinstance(error, optuna.exceptions.StorageInternalError) and is_away(error.__cause__)


def patient(storage: BaseStorage, patience: Patience) -> BaseStorage:
    """`storage`, whose calls that may be done twice are repeated while it is away."""
    names = [name for name in vars(BaseStorage) if not name.startswith("_")]
    inner = optuna.storages.get_storage(storage)
    methods: dict[str, Any] = {name: _method(inner, name, patience) for name in names}
    found: BaseStorage = type("PatientStorage", (BaseStorage,), methods)()
    return found


def _method(inner: BaseStorage, name: str, patience: Patience) -> Callable[..., Any]:
    plain = getattr(inner, name)

    def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) if name in _ONCE else patience.call(lambda: plain(*args, **kwargs))

    return call
