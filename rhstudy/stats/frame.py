"""The tidy arm table: one row per fine-tuned model (recipe x seed x task x base model), and its recipe points.

The unit of every correlation is the recipe, the mean over its seeds. Arms of the reference's own recipe are the noise
ceiling and untuned models are baselines: both are shown in tables and are never points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from rhstudy.errors import InputError, message, require
from rhstudy.shapes import Bool, Float
from rhstudy.types import Estimate

KEYS = ("task", "model", "recipe", "seed")
FLAGS = ("is_reference", "contains_real", "is_untuned")
FRACTIONS = (
    "exact_match",
    "head_recall",
    "weighted_head_recall",
    "precision",
    "jaccard",
    "average_precision",
)
SIGNED_FRACTIONS = ("f1", "chance_corrected_recall", "layer_stratified_recall", "cosine", "pearson", "spearman")
"""At most 1; F1 corrected for chance (SummHay) falls below 0 where a model cites worse than at random."""
AMOUNTS = ("num_retrieval_heads", "real_nll", "train_loss", "weight_change_norm")
NUMBERS = (*FRACTIONS, *SIGNED_FRACTIONS, *AMOUNTS)
HEAD_COLUMNS: Mapping[str, str] = {"recall": "head_recall", "weighted_recall": "weighted_head_recall"}
"""Names of `rhstudy.heads.compare.head_measures` that the table spells differently."""

VARIANT = "head_recall@"
"""Columns with this beginning hold head recall by another rule or reference; see `rhstudy.stats.variants`."""
NOT_RECORDED = "not recorded"
_MAX_NAMED = 1_000
MEAN_DECIMALS = 12  # (0.4 + 0.5) / 2 and (0.3 + 0.6) / 2 differ in the 17th decimal: a tie, not an order


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One fine-tuned (or untuned) model and everything measured on it.

    Attributes:
        task: for instance ``mdqa``.
        model: the base model.
        recipe: name of the training data recipe; ``untuned`` for the baseline.
        seed: of data draw, order and adapter.
        recipe_digest: hash of the recipe's knobs; empty when unknown.
        is_reference: made by the reference's own recipe (noise ceiling, never a point).
        is_reference_arm: the very model whose heads are the reference; exactly one per task and model.
        contains_real: trained on at least one real example; every test is repeated without such arms.
        is_untuned: baseline without training, no recipe and never a point.
        measures: column of `NUMBERS` -> value, NaN with its reason; columns left out are NaN, "not recorded".
    """

    task: str
    model: str
    recipe: str
    seed: int
    recipe_digest: str = ""
    is_reference: bool = False
    is_reference_arm: bool = False
    contains_real: bool = False
    is_untuned: bool = False
    measures: Mapping[str, Estimate] = field(default_factory=dict)


def arm_name(task: str, model: str, recipe: str, seed: int) -> str:
    """The key of an arm: ``task/model/recipe/seed``."""
    return f"{task}/{model}/{recipe}/{seed}"


def is_variant(column: str) -> bool:
    """Whether `column` holds head recall by another rule or against another reference."""
    return column.startswith(VARIANT) and len(column) > len(VARIANT)


def variants_of(frame: pd.DataFrame) -> list[str]:
    """The variant columns of a table, in its order."""
    return [name for name in map(str, frame.columns) if is_variant(name)]


def head_columns(measures: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """`rhstudy.heads.compare.head_measures` under the table's column names."""
    return {HEAD_COLUMNS.get(name, name): value for name, value in measures.items()}


def arm_frame(rows: Sequence[ArmRow]) -> pd.DataFrame:
    """The validated arm table of `rows`; errors as `validate_frame`.

    Raises:
        InputError: a measure that is no column.
    """
    return validate_frame(pd.DataFrame([_record(row) for row in rows]))


def _record(row: ArmRow) -> dict[str, Any]:
    unknown = sorted(name for name in set(row.measures) - set(NUMBERS) if not is_variant(name))
    where = arm_name(row.task, row.model, row.recipe, row.seed)
    require(not unknown, "ArmRow.measures", "name columns of the arm table", unknown, f"Valid: {NUMBERS}", where)
    fixed = {name: getattr(row, name) for name in (*KEYS, *FLAGS, "recipe_digest", "is_reference_arm")}
    reasons = {name: item.reason for name, item in row.measures.items() if item.reason}
    names = (*NUMBERS, *filter(is_variant, row.measures))
    values = {name: row.measures[name].value if name in row.measures else np.nan for name in names}
    return {**fixed, **values, "reasons": reasons}


def validate_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A sorted copy of `frame` with every column of the arm table, each checked.

    Args:
        frame: needs ``task``, ``model``, ``recipe``, ``seed`` and ``f1``. Other columns of `NUMBERS` default to NaN,
            flags to false, ``recipe_digest`` to empty, ``reasons`` (column -> why NaN, one mapping a row) to empty,
            ``is_reference_arm`` to the lowest seed of the reference recipe (per task and model). ``head_recall@...``
            columns are kept, other unknown columns dropped.

    Returns:
        Columns of `KEYS`, ``recipe_digest``, `FLAGS`, ``is_reference_arm``, `NUMBERS`, variants, ``reasons``, ``arm``;
        sorted by `KEYS`.

    Raises:
        InputError: no rows, a missing column, a wrong type or range, a repeated key, a recipe name with two digests
            (or the reverse), or contradicting flags.
    """
    require(len(frame) > 0, "arm table", "have at least one row", "<empty>", "Finish at least one arm")
    for name in (*KEYS, "f1"):
        require(name in frame.columns, f"column {name}", "be in the arm table", list(frame.columns), "Add it")
    checked = _typed_keys(frame)
    for name in FLAGS:
        checked[name] = _flag_column(frame, name)
    for name in (*NUMBERS, *variants_of(frame)):
        checked[name] = _number_column(frame, name)
    reasons = frame["reasons"].tolist() if "reasons" in frame.columns else [{} for _ in range(len(frame))]
    reasons = [dict(item) if isinstance(item, Mapping) else {} for item in reasons]
    checked["reasons"] = pd.Series(reasons, dtype=object)
    checked["arm"] = [arm_name(*key) for key in zip(*(checked[name].tolist() for name in KEYS), strict=True)]
    checked["is_reference_arm"] = _reference_arms(checked, frame)
    _check_ranges(checked)
    _check_identity(checked)
    return checked.sort_values(list(KEYS), ignore_index=True)


def _typed_keys(frame: pd.DataFrame) -> pd.DataFrame:
    checked = pd.DataFrame(index=range(len(frame)))
    for name in ("task", "model", "recipe"):
        values = frame[name].tolist()
        wrong = [value for value in values if not isinstance(value, str) or not value]
        require(not wrong, f"column {name}", "hold non-empty text", wrong[:1], "Name every row")
        checked[name] = values
    seeds = frame["seed"].tolist()
    wrong = [value for value in seeds if isinstance(value, bool) or not isinstance(value, int | np.integer)]
    require(not wrong, "column seed", "hold whole numbers", wrong[:1], "Give each arm its root seed")
    checked["seed"] = [int(value) for value in seeds]
    digests = frame.get("recipe_digest")
    checked["recipe_digest"] = (
        [""] * len(frame)
        if digests is None
        else [value if isinstance(value, str) else "" for value in digests.tolist()]
    )
    return checked


def _flag_column(frame: pd.DataFrame, name: str) -> list[bool]:
    values = frame[name].tolist() if name in frame.columns else [False] * len(frame)
    wrong = [value for value in values if not isinstance(value, bool | np.bool_)]
    require(not wrong, f"column {name}", "hold true or false", wrong[:1], "Leave the column out for all false")
    return [bool(value) for value in values]


def _number_column(frame: pd.DataFrame, name: str) -> Float[np.ndarray, " arms"]:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    try:
        values = frame[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        remedy = f"Leave unknown cells empty: {error}"
        raise InputError(message(f"column {name}", "hold numbers", "<other values>", remedy)) from error
    require(not np.isinf(values).any(), f"column {name}", "hold finite numbers or NaN", "<inf>", "Mend the arm")
    return np.asarray(values)


def _reference_arms(checked: pd.DataFrame, frame: pd.DataFrame) -> list[bool]:
    """The given column; the lowest seed of the reference recipe for a task and model where it marks none."""
    given = pd.Series(_flag_column(frame, "is_reference_arm"))
    group = [checked["task"], checked["model"]]
    seeds = checked["seed"].where(checked["is_reference"])
    lowest = checked["is_reference"] & (seeds == seeds.groupby(group).transform("min"))
    return [bool(value) for value in (given | (lowest & ~given.groupby(group).transform("any"))).tolist()]


def _check_ranges(checked: pd.DataFrame) -> None:
    limits = {
        **dict.fromkeys((*FRACTIONS, *variants_of(checked)), (0.0, 1.0, "be between 0 and 1")),
        **dict.fromkeys(SIGNED_FRACTIONS, (-np.inf, 1.0, "be at most 1")),
        **dict.fromkeys(AMOUNTS, (0.0, np.inf, "be at least 0")),
    }
    for name, (low, high, must) in limits.items():
        values = checked[name]
        beyond = (values < low - 1e-9) | (values > high + 1e-9)
        where = ", ".join(checked["arm"][beyond][:1])
        require(not beyond.any(), f"column {name}", must, list(values[beyond][:1]), "Mend the arm", where)


def _check_identity(checked: pd.DataFrame) -> None:
    repeated = list(checked["arm"][checked.duplicated(list(KEYS))][:1])
    require(not repeated, "arm table", "have one row per task, model, recipe and seed", repeated, "Drop the repeats")
    known = checked[checked["recipe_digest"] != ""]
    for one, other in (("recipe", "recipe_digest"), ("recipe_digest", "recipe")):
        counts = known.groupby(["task", one])[other].nunique()
        several = [str(key[1]) for key in counts[counts > 1].index]
        remedy = "Give each recipe its own name"
        require(not several, f"column {one}", f"have one {other} each within a task", several[:1], remedy)
    stray = list(checked["arm"][checked["is_reference_arm"] & ~checked["is_reference"]][:1])
    require(not stray, "column is_reference_arm", "mark an arm of the reference recipe", stray, "Set is_reference too")
    counted = checked.groupby(["task", "model"])["is_reference_arm"].sum()
    several = ["/".join(map(str, key)) for key in counted[counted > 1].index]
    require(not several, "column is_reference_arm", "mark one arm per task and model", several[:1], "Mark the others 0")
    both = list(checked["arm"][checked["is_reference"] & checked["is_untuned"]][:1])
    require(not both, "column is_untuned", "exclude is_reference", both, "An untuned model is no trained reference")


@dataclass(frozen=True, slots=True, eq=False)
class RecipePoints:
    """The points of a correlation between a predictor and F1: one per recipe, mean over seeds.

    Attributes:
        recipes: names, sorted.
        x: the predictor.
        f1: mean F1, 0-1.
        num_seeds: arms behind each point.
        contains_real: whether any arm of the recipe saw a real example.
        dropped: arms left out because predictor or F1 is NaN, each with the reason.
    """

    recipes: tuple[str, ...]
    x: Float[np.ndarray, " recipes"]
    f1: Float[np.ndarray, " recipes"]
    num_seeds: tuple[int, ...]
    contains_real: Bool[np.ndarray, " recipes"]
    dropped: tuple[str, ...] = ()

    def without_flagged(self) -> RecipePoints:
        """The points of recipes that never saw a real example."""
        keep = np.flatnonzero(~self.contains_real)
        return RecipePoints(
            recipes=tuple(self.recipes[index] for index in keep),
            x=self.x[keep],
            f1=self.f1[keep],
            num_seeds=tuple(self.num_seeds[index] for index in keep),
            contains_real=self.contains_real[keep],
            dropped=self.dropped,
        )


def recipe_points(frame: pd.DataFrame, predictor: str) -> RecipePoints:
    """Points of F1 against `predictor` for one task and model; reference and untuned arms are no points.

    An arm whose predictor or F1 is NaN is left out of its recipe's mean, so both means are over the same seeds.

    Args:
        frame: a validated arm table of one task and one model.
        predictor: a column of `NUMBERS` other than F1.

    Raises:
        InputError: unknown predictor, or more than one task or model.
    """
    valid = [name for name in (*NUMBERS, *variants_of(frame)) if name != "f1"]
    require(predictor in valid, "predictor", "be a column of the arm table", predictor, f"Valid: {', '.join(valid)}")
    groups = frame[["task", "model"]].drop_duplicates()
    require(len(groups) == 1, "arm table", "hold one task and model", f"<{len(groups)} groups>", "Split it first")
    arms = frame[~frame["is_reference"] & ~frame["is_untuned"]]
    whole = arms[predictor].notna() & arms["f1"].notna()
    dropped = left_out(arms[~whole], (predictor, "f1"))
    grouped = arms[whole].groupby("recipe", sort=True)
    means = grouped[[predictor, "f1"]].mean()
    return RecipePoints(
        recipes=tuple(str(name) for name in means.index),
        x=means[predictor].to_numpy(dtype=np.float64).round(MEAN_DECIMALS),
        f1=means["f1"].to_numpy(dtype=np.float64).round(MEAN_DECIMALS),
        num_seeds=tuple(int(count) for count in grouped.size()),
        contains_real=grouped["contains_real"].any().to_numpy(dtype=bool),
        dropped=dropped,
    )


def left_out(arms: pd.DataFrame, names: Sequence[str]) -> tuple[str, ...]:
    """Why `arms` were left out: a sentence a reason, with the first three arms; of the first 1,000 arms."""
    told: dict[str, list[str]] = {}
    for row in arms.head(_MAX_NAMED).to_dict("records"):
        missing = [name for name in names if np.isnan(row[name])]
        why = ", ".join(f"{name} is NaN: {cell_reason(row, name)}" for name in missing)
        told.setdefault(why, []).append(f"{row['recipe']} seed {row['seed']}")
    found = tuple(_left_out_line(own, why) for why, own in told.items())
    hidden = max(0, len(arms) - _MAX_NAMED)
    return (*found, f"and {hidden} more arms") if hidden else found


def _left_out_line(own: Sequence[str], why: str) -> str:
    if len(own) <= 3:
        return f"left out {', '.join(own)} ({why})"
    return f"left out {len(own)} arms, {', '.join(own[:3])}, ... ({why})"


def cell_reason(row: Mapping[Any, Any], name: str) -> str:
    """Why the cell `name` of an arm (a row as a mapping) is NaN."""
    return str(row["reasons"].get(name, NOT_RECORDED))
