"""Outcomes of knockouts and patches as users bring them: CSV, Parquet or JSON lines, a row per example and condition.

Columns: ``example_id``, ``kind`` (``baseline``, ``top``, ``random``; of patches ``recipient``, ``donor``, ``patched``),
``f1``; of knockouts ``dose``, ``draw`` (which random set); optional ``task``, ``model``, ``cluster``, ``mode``,
``scope``, ``positions``, ``of_set``, ``exact_match``, ``gold_nll``, ``short_f1``, ``short_nll``, ``text_nll``. Empty
cells are unknown. ``outcomes.jsonl`` of the stage `intervene` is such a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rhstudy.errors import InputError, message, require
from rhstudy.stats.causal import Experiment
from rhstudy.stats.table_file import read_table

KINDS = ("baseline", "top", "random", "recipient", "donor", "patched")
_NUMBERS = ("f1", "exact_match", "gold_nll", "short_f1", "short_nll", "text_nll", "dose", "draw")
_TEXTS = ("task", "model", "example_id", "kind", "cluster", "mode", "scope", "positions", "of_set")


def read_experiments(path: Path, name: str, task: str) -> list[Experiment]:
    """The experiments of a file, one per task and model, in the order of their names.

    Args:
        path: the file.
        name: dotted name of the option that holds it, for messages.
        task: what to call the task where the file has no such column.

    Raises:
        InputError: not readable, a missing column, a mark that is no number, or no row of a known kind.
    """
    rows = _json_lines(path, name) if path.suffix.lower() == ".jsonl" else read_table(path, name)
    for column in ("example_id", "kind", "f1"):
        require(column in rows.columns, f"column {column}", "be in the outcomes", list(rows.columns), "Add it", name)
    values: dict[str, Any] = {column: _numbers(rows, column, name) for column in _NUMBERS if column in rows.columns}
    values |= {column: _texts(rows, column) for column in _TEXTS if column in rows.columns}
    found = pd.DataFrame(values)
    found["task"] = found["task"].replace("", task) if "task" in found.columns else task
    found["model"] = found["model"] if "model" in found.columns else ""
    known = found["kind"].isin(KINDS)
    require(bool(known.any()), "column kind", f"hold one of {', '.join(KINDS)}", sorted(set(found["kind"]))[:3],
            "Name what was done", name)  # fmt: skip
    if "dose" not in found.columns:
        found["dose"] = np.nan
    return [
        Experiment(task=str(key[0]), model=str(key[1]), rows=_records(part))
        for key, part in found[known].groupby(["task", "model"], sort=True)
    ]


def _records(part: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in part.to_dict("records")]


def _json_lines(path: Path, name: str) -> pd.DataFrame:
    require(path.is_file(), name, "be an existing file", str(path), "Check the path")
    try:
        rows = pd.read_json(path, lines=True, dtype=False)
    except (ValueError, OSError) as error:
        raise InputError(message(name, "be readable JSON lines", str(path), f"The parser says: {error}")) from error
    require(len(rows) > 0, name, "have at least one row", "<0 rows>", "Check the file", str(path))
    return rows


def _numbers(rows: pd.DataFrame, column: str, name: str) -> pd.Series[Any]:
    given = rows[column].replace("", np.nan)
    values = pd.to_numeric(given, errors="coerce").astype(float)
    wrong: Sequence[Any] = list(given[values.isna() & given.notna() & (given.astype(str).str.lower() != "nan")][:1])
    require(not wrong, f"column {column}", "hold numbers", wrong, "Leave unknown cells empty", name)
    return values


def _texts(rows: pd.DataFrame, column: str) -> list[str]:
    return ["" if item is None or (isinstance(item, float) and np.isnan(item)) else str(item) for item in rows[column]]
