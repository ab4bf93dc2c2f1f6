"""What is costly to make and wanted again by later stages of one process, kept in memory while a study asks for it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

Kept = TypeVar("Kept")
_shelves: ContextVar[dict[str, OrderedDict[Hashable, Any]] | None] = ContextVar("shelves", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Inside the block things are kept; all of them are let go at its end. A block inside another changes nothing."""
    if _shelves.get() is not None:
        yield
        return
    token = _shelves.set({})
    try:
        yield
    finally:
        _shelves.reset(token)


def is_keeping() -> bool:
    """Whether a `keeping` block is open."""
    return _shelves.get() is not None


def kept(kind: str, key: Hashable, make: Callable[[], Kept], *, most: int = 1) -> Kept:
    """What `make` gives; inside `keeping`, what it gave the last time for the same `key`.

    Args:
        kind: name of the shelf.
        key: everything the value depends on. The value is shared: nobody may change it.
        make: makes the value.
        most: so many of a kind are kept, those used last.
    """
    value: Kept | None = take(kind, key)
    if value is None:
        value = make()
    put(kind, key, value, most=most)
    return value


def take(kind: str, key: Hashable) -> Any:
    """Take a value off its shelf, to change it and `put` it back; None where there is none."""
    shelves = _shelves.get()
    return None if shelves is None else shelves.get(kind, OrderedDict()).pop(key, None)


def put(kind: str, key: Hashable, value: Any, *, most: int = 1) -> None:
    """Put a value on its shelf, inside `keeping`; beyond `most` those used longest ago are let go."""
    shelves = _shelves.get()
    if shelves is None:
        return
    shelf = shelves.setdefault(kind, OrderedDict())
    shelf[key] = value
    while len(shelf) > most:
        shelf.popitem(last=False)


def clear(kind: str) -> None:
    """Let go of everything of one kind, for instance to free memory for another."""
    shelves = _shelves.get()
    if shelves is not None:
        shelves.pop(kind, None)
