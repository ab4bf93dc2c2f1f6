"""Tables that users bring: CSV or Parquet with a row per arm, and per example if they have it.

Arm table: ``task``, ``model``, ``recipe``, ``seed``, ``f1``, and the predictor (``head_recall``); optional rivals and
further measures (`rhstudy.stats.frame.NUMBERS`), ``head_recall@RULE`` columns (the same recall by another rule or
reference: ``@0.05``, ``@top10``, ``@ref25``), flags (`FLAGS`), ``recipe_digest``. Example table: ``task``, ``model``,
``recipe``, ``seed``, ``example_id``, ``f1``, optional ``exact_match``; an empty F1 is an unscored example. Empty cells
and NaN are unknown; every text column is read as text, so a recipe may be called ``10`` or ``None``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rhstudy.errors import InputError, message, require
from rhstudy.stats.frame import FLAGS, KEYS, NUMBERS, arm_name, is_variant
from rhstudy.types import Prediction

TABLE_SUFFIXES = (".csv", ".parquet")
UNTUNED = ("untuned", "untuned_native")
_TEXTS = ("task", "model", "recipe", "recipe_digest", "example_id")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_EMPTY = ["", "nan", "NaN", "NA", "N/A", "null", "None"]


def read_table(path: Path, name: str) -> pd.DataFrame:
    """The rows of a CSV or Parquet file with text, numbers, seeds and flags in their types.

    Args:
        path: the file.
        name: dotted name of the option that holds it, for messages.

    Raises:
        InputError: no file, another suffix, not readable, no rows, a column twice, or a cell of the wrong kind.
    """
    suffix = path.suffix.lower()
    require(suffix in TABLE_SUFFIXES, name, "be a .csv or .parquet file", str(path), "Export the table as CSV")
    require(path.is_file(), name, "be an existing file", str(path), "Check the path")
    try:
        rows = _read_csv(path, name) if suffix == ".csv" else pd.read_parquet(path)
    except InputError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(message(name, f"be a readable {suffix} file", str(path), f"Reading failed: {text}")) from error
    require(len(rows) > 0, name, "have at least one row", "<0 rows>", "Check the file", str(path))
    return _typed(rows.rename(columns=lambda column: str(column).strip()), name)


def _read_csv(path: Path, name: str) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = [item.strip() for item in next(csv.reader(stream), [])]
    _check_header(header, name, str(path))
    numbers = {column: _EMPTY for column in header if column in NUMBERS or is_variant(column)}
    texts = dict.fromkeys([column for column in header if column not in numbers], str)
    return pd.read_csv(
        path, encoding="utf-8-sig", skipinitialspace=True, dtype=texts, keep_default_na=False, na_values=numbers
    )  # fmt: skip


def _check_header(header: Sequence[str], name: str, where: str) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    require(not twice, name, "name every column once", twice, "Rename or drop the repeats", where)


def _typed(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    _check_header(list(rows.columns), name, "")
    typed: dict[str, Any] = {}
    for column in rows.columns:
        values = rows[column]
        if column in _TEXTS:
            typed[column] = [item if isinstance(item, str) else _text(item) for item in values]
        elif column == "seed":
            typed[column] = [_whole(item) for item in values]
        elif column in FLAGS or column == "is_reference_arm":
            typed[column] = [_truth(item, column, name) for item in values]
        else:
            typed[column] = values.to_numpy()
    return pd.DataFrame(typed)


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else str(value)


def _whole(value: Any) -> Any:
    """A seed as a whole number; what is none stays as it is and is refused with the table."""
    text = str(value).strip().removesuffix(".0")
    return int(text) if text.lstrip("-").isdigit() else value


def _truth(value: Any, column: str, name: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    text = _text(value).strip().lower().removesuffix(".0")
    require(text in _TRUTHS, f"column {column}", "hold true or false", value, "Write true or false", name)
    return _TRUTHS[text]


def table_arms(rows: pd.DataFrame, reference_recipe: str, predictor: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """`rows` as an arm table for `rhstudy.stats.analysis.analyze_arms`, and the columns that nothing reads.

    Without a column ``is_reference`` the arms of `reference_recipe` are the reference (and have seen real examples);
    without ``is_untuned`` recipes called ``untuned`` and ``untuned_native`` are baselines.

    Raises:
        InputError: `predictor` is no column.
    """
    known = (*KEYS, *FLAGS, *NUMBERS, "recipe_digest", "is_reference_arm")
    remedy = "Add it, or name another with --statistics.predictor"
    require(predictor in rows.columns, f"column {predictor}", "be in the arm table", list(rows.columns), remedy)
    arms = rows.copy()
    if "recipe" in arms.columns and "is_reference" not in arms.columns:
        arms["is_reference"] = arms["recipe"] == reference_recipe
    if "recipe" in arms.columns and "is_untuned" not in arms.columns:
        arms["is_untuned"] = arms["recipe"].isin(UNTUNED)
    if "contains_real" not in arms.columns and "is_reference" in arms.columns:
        arms["contains_real"] = arms["is_reference"]
    ignored = tuple(column for column in rows.columns if column not in known and not is_variant(column))
    return arms, ignored


def table_predictions(rows: pd.DataFrame) -> Mapping[str, Sequence[Prediction]]:
    """Arm name -> a prediction per row of an example table.

    Raises:
        InputError: a missing column, an example twice in one arm, or marks that are no numbers.
    """
    for column in (*KEYS, "example_id", "f1"):
        require(column in rows.columns, f"column {column}", "be in the example table", list(rows.columns), "Add it")
    keys = [*KEYS, "example_id"]
    twice = rows[rows.duplicated(keys)].head(1)[keys].to_numpy().tolist()
    require(not twice, "example table", "have one row per arm and example", twice, "Drop the repeats")
    f1, exact = (_marks(rows, column) for column in ("f1", "exact_match"))
    names: Iterable[str] = (arm_name(*key) for key in rows[list(KEYS)].itertuples(index=False))
    found: dict[str, list[Prediction]] = {}
    clusters = rows["cluster"].map(_text) if "cluster" in rows.columns else [""] * len(rows)
    columns = (rows["example_id"].astype(str), f1.tolist(), exact.tolist(), clusters)
    for arm, *cells in zip(names, *columns, strict=True):
        found.setdefault(arm, []).append(_prediction(*cells))
    return found


def _marks(rows: pd.DataFrame, column: str) -> pd.Series[Any]:
    if column not in rows.columns:
        return pd.Series(np.nan, index=rows.index)
    values = pd.to_numeric(rows[column], errors="coerce")
    wrong = rows[column][values.isna() & ~rows[column].isna() & (rows[column].astype(str).str.strip() != "")]
    require(wrong.empty, f"column {column}", "hold numbers", list(wrong[:1]), "Leave unknown cells empty")
    return values


def _prediction(example_id: str, f1: float, exact_match: float, cluster: str) -> Prediction:
    return Prediction(
        example_id=example_id,
        text="",
        answers=(),
        f1=f1,
        exact_match=exact_match,
        gold_nll=float("nan"),
        num_prompt_tokens=0,
        num_new_tokens=0,
        unscored="no mark in the table" if np.isnan(f1) else "",
        cluster=cluster,
    )
