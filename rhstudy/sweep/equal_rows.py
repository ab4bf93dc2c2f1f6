"""Equally many distinct rows in every trial of a sweep, fixed at its start from what its space can ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rhstudy.data.knobs import Dimension, Knobs, preset
from rhstudy.stages import make_data
from rhstudy.sweep.config import SweepConfig, budget_dimensions, dimensions

NEEDLES_WITH_AN_END = ("real", "rewritten")
"""Rows and recorded facts come to an end; other needles are invented without one."""


def with_equal_rows(config: SweepConfig) -> SweepConfig:
    """`config` with a number of distinct rows that every recipe of its space has at every budget of it.

    Where all have enough for the largest budget, or `data.num_distinct` is given, nothing is changed. Every worker
    finds the same number.

    Raises:
        InputError: see `rhstudy.data.build.num_distinct_of`.
    """
    if config.data.num_distinct:
        return config
    budgets = {item.name: item for item in budget_dimensions(config)}
    most = int(_ends(budgets.get("num_examples"), config.data.num_examples)[-1])
    recipes = [preset(config.reference_recipe, config.data.task), *_limited_recipes(config)]
    found = most
    for num_tokens in _ends(budgets.get("num_tokens"), config.data.num_tokens):
        data = replace(config.data, num_examples=most, num_tokens=int(num_tokens))
        found = min(found, make_data.with_equal_rows(data, recipes, config.model).num_distinct)
    if found == most:
        return config
    return replace(config, data=replace(config.data, num_distinct=min(found, config.data.num_examples)))


def _ends(dimension: Dimension | None, default: float) -> list[float]:
    """The values of a knob between which all others lie."""
    if dimension is None:
        return [default]
    return sorted({dimension.low or 0.0, dimension.high or 0.0})


def _choices(space: Mapping[str, Dimension], name: str, base: Knobs) -> tuple[str, ...]:
    return space[name].choices if name in space else (getattr(base, name),)


def _limited_recipes(config: SweepConfig) -> Iterator[Knobs]:
    """The recipes of the space that use most rows or recorded facts; what others take is a part of that."""
    space, base = {item.name: item for item in dimensions(config)}, config.base
    levels: Iterable[str] = _choices(space, "concept_expression", base)
    other = space.get("rewritten_share")
    levels = dict.fromkeys((*levels, *(("rewritten",) if other and other.high == 1 else ())))
    no_others: dict[str, Any] = dict.fromkeys(
        ("rewritten_share", "templated_diverse_share", "templated_share", "symbolic_share"), 0.0
    )
    limited = bool(base.question_words or base.row_labels)
    for level in levels:
        for context in _choices(space, "context_diversity", base):
            shares = [0.0] if level == "real" else _ends(space.get("real_fraction"), base.real_fraction)
            endless = level not in NEEDLES_WITH_AN_END and max(shares) == 0
            if endless or (limited and level != "real"):
                continue
            alone: dict[str, Any] = {"concept_expression": level, "context_diversity": context, **no_others}
            alone["distinct_share"] = _ends(space.get("distinct_share"), base.distinct_share)[-1]
            for share in shares:
                yield dataclasses.replace(base, **alone, real_fraction=share)
