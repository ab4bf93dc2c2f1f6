"""From the rows of a file to the facts of a task: bad rows end the reading or are counted, ids are unique."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from rhstudy.data.facts import Fact, LeftOutRowError, UnbuildableRowError
from rhstudy.errors import require

OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """What a file gave.

    Attributes:
        facts: one per usable row, in file order.
        rejected: row id -> reason, for rows left out under ``on_bad_row = "skip"``.
    """

    facts: list[Fact]
    rejected: dict[str, str]


def gather_facts(rows: Iterable[tuple[str, str, Callable[[], Fact]]], name: str, on_bad_row: OnBadRow) -> TaskRows:
    """Build the fact of every row.

    Args:
        rows: (where it stands, for messages; row id; what builds its fact).
        name: dotted name of the option that named the file, for messages.
        on_bad_row: ``error`` raises at the first row that cannot become a fact; ``skip`` leaves it out and tells why.

    Raises:
        InputError: an id seen before; a bad row under ``error``; no usable row.
    """
    facts: dict[str, Fact] = {}
    rejected: dict[str, str] = {}
    for where, row_id, build in rows:
        try:
            new = row_id not in facts and row_id not in rejected
            require(new, f"{name}.id", "be unique", row_id, "Mend the file", where)
            facts[row_id] = build()
        except UnbuildableRowError as error:
            if on_bad_row == "error" and not isinstance(error, LeftOutRowError):
                raise
            rejected[row_id] = str(error)
    require(bool(facts), name, "have at least one usable row", f"<{len(rejected)} bad rows>", "Check the file")
    return TaskRows(list(facts.values()), rejected)


def derived_id(prefix: str, *texts: str) -> str:
    """A row id from the row's own texts, for files without ids."""
    joined = "\x1f".join(texts)
    return f"{prefix}-{hashlib.sha256(joined.encode()).hexdigest()[:12]}"
