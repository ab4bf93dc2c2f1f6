"""Every error a user can cause, with one message shape: what must hold, what was got, what to do.

`<dotted name> must <condition>, got <value> (<where>). <remedy>.`

`InputError` is the caller's to mend (exit code 2); `StudyError` is a failure of the work itself (exit code 1).
"""

from __future__ import annotations

import re
from typing import Any

_URI_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+@")
_SECRET_VALUE = re.compile(r"((?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", re.IGNORECASE)


class StudyError(Exception):
    """The work failed: disk full, engine gone, loss not finite. Exit code 1."""

    exit_code = 1


class InputError(StudyError, ValueError):
    """Bad input: the caller can mend it and nothing was lost. Exit code 2."""

    exit_code = 2


class UnreachableStoreError(StudyError):
    """The tracking server gave no answer for longer than its client retries: resume later. Exit code 1."""


class AwayStorageError(StudyError):
    """The storage of a sweep's trials stayed away for longer than its workers wait: resume later. Exit code 1."""


class InterruptedRunError(StudyError):
    """SIGINT or SIGTERM arrived: the run is recorded as KILLED and can be resumed. Exit code 1."""


class PrunedTrialError(StudyError):
    """A trial of a sweep was given up because it promised little: its run is recorded as KILLED. Exit code 1."""


def masked(text: str) -> str:
    """`text` without the user names and passwords that URIs in it carry: ``http://ada:pw@host`` -> ``http://***@host``."""
    return _SECRET_VALUE.sub(r"\1***", _URI_LOGIN.sub("***@", text))


def _shown(got: Any) -> str:
    try:
        return repr(got)
    except RecursionError:
        return f"<a {type(got).__name__} of too many levels>"


def message(name: str, must: str, got: Any, remedy: str, where: str = "") -> str:
    """The one message shape; credentials inside URIs are masked.

    Args:
        name: dotted name of the offending value, for instance ``model.dtype``.
        must: the condition without the word "must", for instance ``be at least 1``.
        got: the value received, printed with `repr` and cut at 200 characters.
        remedy: one sentence that says what to do, without the final full stop.
        where: file, row or key at fault; empty when the name says it all.
    """
    # Masked before it is cut: a login without its "@" is not recognised any more.
    shown = masked(got if isinstance(got, str) and got.startswith("<") else _shown(got))
    shown = shown if len(shown) <= 200 else shown[:197] + "..."
    place = f" ({where})" if where else ""
    return masked(f"{name} must {must}, got {shown}{place}. {remedy.rstrip('.')}.")


def require(condition: bool, name: str, must: str, got: Any, remedy: str, where: str = "") -> None:
    """Raise `InputError` with the house message unless `condition` holds.

    Args: as `message`.

    Raises:
        InputError: `condition` is false.
    """
    if not condition:
        raise InputError(message(name, must, got, remedy, where))
