"""From suggested values to a recipe and back: conditions between knobs, shares that sum to at most 1, the corners."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Dimension, Knobs, corners
from rhstudy.data.relevance import recipe_digest
from rhstudy.errors import InputError
from rhstudy.sweep.course import Budget

_SHARES = (
    ("rewritten_share", "templated_diverse_share", "templated_share", "symbolic_share"),
    ("passages_context_share", "templated_context_share", "on_topic_context_share", "filler_context_share"),
)

BASE = "base"
"""Among the corners: the recipe at which all other knobs stand."""


@runtime_checkable
class Suggests(Protocol):
    """Where values come from; an Optuna trial is one."""

    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, /, *, log: bool) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """One of `choices`."""


def suggest(trial: Suggests, space: Sequence[Dimension], base: Knobs, task: str) -> Knobs:
    """A recipe from the space.

    A knob that does not matter beside the values before it is not asked for and stands at its default. Shares of one
    kind (of wordings, of distractors) that sum to more than 1 are all divided by their sum; the main level then has
    none.

    Args:
        trial: where the values come from.
        space: knobs in the order of `Knobs`.
        base: where all other knobs stand.
        task: name of the task.

    Returns:
        The recipe, named by its content: equal recipes share their runs.

    Raises:
        InputError: the values make no recipe.
    """
    values: dict[str, Any] = {item.name: getattr(base, item.name) for item in dataclasses.fields(Knobs)}
    for dimension in space:
        matters = dimension.matters({**values, "task": task})
        values[dimension.name] = _value(trial, dimension) if matters else dimension.default
    for names in _SHARES:
        total = sum(values[name] for name in names)
        if total > 1:
            values |= {name: values[name] / total for name in names}
    knobs = Knobs(**values)
    return dataclasses.replace(knobs, name=f"recipe-{recipe_digest(knobs, task)[:12]}")


def suggest_budget(trial: Suggests, space: Sequence[Dimension], data: DataConfig) -> Budget:
    """How much a trial trains on: from `space`, and as `data` says where it is not searched."""
    chosen = {dimension.name: int(_value(trial, dimension)) for dimension in space}
    return Budget(**{"num_examples": data.num_examples, "num_tokens": data.num_tokens, **chosen})


def budget_values(space: Sequence[Dimension]) -> dict[str, int]:
    """The values of `space` nearest to the sweep's own budget: the paper's corners are tried with it."""
    return {item.name: int(min(max(item.default, item.low or 0), item.high or 0)) for item in space}


def _value(trial: Suggests, dimension: Dimension) -> Any:
    if dimension.kind == "categorical":
        return trial.suggest_categorical(dimension.name, dimension.choices)
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if dimension.kind == "int":
        return trial.suggest_int(dimension.name, int(low), int(high), log=dimension.log)
    return trial.suggest_float(dimension.name, low, high, log=dimension.log)


class _Given:
    """Suggests the values of one recipe and notes them; a level's own (0) is given by the end of the range `own`."""

    def __init__(self, knobs: Knobs, own: str) -> None:
        self.knobs, self.own, self.values = knobs, own, dict[str, Any]()

    def _number(self, name: str, low: float, high: float) -> Any:
        value = getattr(self.knobs, name)
        if value < low:
            value = low if self.own == "low" else high
        self.values[name] = min(value, high)
        return self.values[name]

    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float:
        """See `Suggests`."""
        return float(self._number(name, low, high))

    def suggest_int(self, name: str, low: int, high: int, /, *, log: bool) -> int:
        """See `Suggests`."""
        return int(self._number(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """See `Suggests`."""
        value = getattr(self.knobs, name)
        self.values[name] = value if value in choices else choices[0]
        return self.values[name]


def values_of(knobs: Knobs, space: Sequence[Dimension], base: Knobs, task: str) -> dict[str, Any] | None:
    """The values that `suggest` makes `knobs` of (up to its name); None where it lies outside the space."""
    for own in ("low", "high"):
        given = _Given(knobs, own)
        try:
            found = suggest(given, space, base, task)
        except InputError:
            continue
        if recipe_digest(found, task) == recipe_digest(knobs, task):
            return given.values
    return None


def corner_values(space: Sequence[Dimension], base: Knobs, task: str) -> Mapping[str, dict[str, Any]]:
    """Name -> values of each of the paper's corners that lies in the space."""
    found = {name: values_of(knobs, space, base, task) for name, knobs in corners(task).items()}
    return {name: values for name, values in found.items() if values is not None}


def first_values(space: Sequence[Dimension], base: Knobs, task: str) -> Mapping[str, dict[str, Any]]:
    """What a sweep tries first: the base where it lies in the space and is no corner; then corners."""
    found = corner_values(space, base, task)
    known = [recipe_digest(corners(task)[name], task) for name in found]
    values = None if recipe_digest(base, task) in known else values_of(base, space, base, task)
    return found if values is None else {BASE: values, **found}
