"""Plots of a study's arms: F1 against a predictor, F1 by recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.figures.canvas import BLUE, GREY, ORANGE, canvas, legend_beside, number
from rhstudy.figures.labels import label_points
from rhstudy.shapes import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPoint:
    """One arm in a plot.

    Attributes:
        recipe: its recipe, the label.
        predictor: value on the x axis; NaN leaves the arm out of `recall_scatter`.
        f1: mean F1, 0-1.
        low: lower end of the F1 interval over examples, NaN when undefined.
        high: upper end.
        contains_real: drawn in another colour.
        is_point: False for the reference and untuned arms, drawn grey and outside the correlation.
    """

    recipe: str
    predictor: float
    f1: float
    low: float
    high: float
    contains_real: bool = False
    is_point: bool = True

    @property
    def colour(self) -> str:
        """By role: a point, a point that saw real examples, or none."""
        return GREY if not self.is_point else ORANGE if self.contains_real else BLUE


def arm_points(group: Mapping[str, Any], predictor: str) -> list[ArmPoint]:
    """The arms of one group of `rhstudy.stats.analysis.analyze_arms` (as read from analysis.json) for plotting."""
    return [
        ArmPoint(
            recipe=arm["recipe"],
            predictor=number(arm[predictor]),
            f1=number(arm["f1"]["estimate"]),
            low=number(arm["f1"]["low"]),
            high=number(arm["f1"]["high"]),
            contains_real=arm["contains_real"],
            is_point=not (arm["is_reference"] or arm["is_untuned"]),
        )
        for arm in group["arms"]
    ]


def _by_recipe(arms: Sequence[ArmPoint]) -> dict[str, list[ArmPoint]]:
    grouped: dict[str, list[ArmPoint]] = {}
    for arm in arms:
        grouped.setdefault(arm.recipe, []).append(arm)
    return grouped


def recall_scatter(arms: Sequence[ArmPoint], *, predictor: str, n: int, rho: float | None, p: float | None) -> Any:
    """F1 against a predictor: a large labelled mark per recipe (mean over seeds), a small one with interval per seed.

    Args:
        arms: every arm; those without a predictor value or F1 are left out and counted in the title.
        predictor: what the x axis shows, for instance ``head recall``.
        n: recipes in the correlation.
        rho: Spearman's rho, None when undefined.
        p: its permutation p, None when undefined.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(7.5, 5.5)
    shown = [arm for arm in arms if np.isfinite(arm.predictor) and np.isfinite(arm.f1)]
    centres: list[tuple[str, float, float]] = []
    for recipe, seeds in _by_recipe(shown).items():
        for arm in seeds:
            axes.errorbar(arm.predictor, arm.f1, yerr=_bar(arm), fmt="o", ms=3, lw=0.8, color=arm.colour, alpha=0.45)
        x, y = (float(np.mean([getattr(arm, name) for arm in seeds])) for name in ("predictor", "f1"))
        axes.scatter([x], [y], s=60, color=seeds[0].colour, marker="o" if seeds[0].is_point else "D", zorder=3)
        centres.append((recipe, x, y))
    _limits(axes, shown)
    figures = f"rho = {_shown(rho, '.2f')}, p = {_shown(p, '.3g')}, n = {n} recipes"
    missing = f", {len(arms) - len(shown)} arms without a value" if len(shown) < len(arms) else ""
    axes.set_title(f"F1 and {predictor}: {figures}{missing}", fontsize=10)
    axes.set(xlabel=f"{predictor} (grey: reference and untuned, no points)", ylabel="F1 on the real task")
    _legend(axes, shown)
    label_points(axes, centres)  # last: labels are placed in the final layout
    return figure


def _shown(value: float | None, spec: str) -> str:
    return "n/a" if value is None or np.isnan(value) else format(value, spec)


def _bar(arm: ArmPoint) -> list[list[float]] | None:
    if not np.isfinite([arm.low, arm.high]).all():
        return None
    return [[max(0.0, arm.f1 - arm.low)], [max(0.0, arm.high - arm.f1)]]


def _limits(axes: Axes, arms: Sequence[ArmPoint]) -> None:
    if not arms:
        return
    values = [arm.predictor for arm in arms]
    room = 0.12 * (max(values) - min(values)) or 0.1
    axes.set_xlim(min(values) - room, max(values) + room)
    ends = [value for arm in arms for value in (arm.f1, arm.high) if np.isfinite(value)]
    axes.set_ylim(min(0.0, *ends) - 0.03 * max(ends), 1.12 * max(ends) + 0.01)


def _legend(axes: Axes, arms: Sequence[ArmPoint]) -> None:
    roles = {BLUE: "recipe", ORANGE: "recipe with real examples", GREY: "reference, untuned"}
    present = {arm.colour for arm in arms}
    handles = [axes.scatter([], [], color=colour, label=name) for colour, name in roles.items() if colour in present]
    if handles:
        legend_beside(axes, handles)


def arm_bars(arms: Sequence[ArmPoint]) -> Any:
    """F1 of every recipe as a bar (mean over seeds), best first, each seed a dot with its interval over examples.

    Args:
        arms: every arm, reference and untuned among them; a recipe without F1 is named with "n/a".

    Returns:
        The `matplotlib.figure.Figure`.
    """
    grouped = _by_recipe(arms)
    means = {recipe: _mean_f1(seeds) for recipe, seeds in grouped.items()}
    order = sorted(means, key=lambda recipe: (np.isnan(means[recipe]), -np.nan_to_num(means[recipe]), recipe))
    figure, axes = canvas(7.5, 1.4 + 0.36 * len(order))
    for row, recipe in enumerate(order):
        axes.barh(row, np.nan_to_num(means[recipe]), color=grouped[recipe][0].colour, alpha=0.5, height=0.7)
        seeds = [arm for arm in grouped[recipe] if np.isfinite(arm.f1)]
        for offset, arm in zip(_spread(len(seeds)), seeds, strict=True):
            axes.errorbar(arm.f1, row + offset, xerr=_bar(arm), fmt="o", ms=3, lw=0.9, color="black")
    axes.set_yticks(range(len(order)), [name if np.isfinite(means[name]) else f"{name} (n/a)" for name in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_title("F1 by recipe, best first", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_xlabel("F1 on the real task (dots: seeds with intervals over examples)")
    _legend(axes, arms)
    return figure


def _mean_f1(seeds: Sequence[ArmPoint]) -> float:
    known = [arm.f1 for arm in seeds if np.isfinite(arm.f1)]
    return float(np.mean(known)) if known else float("nan")


def _spread(count: int) -> Float[np.ndarray, " count"]:
    return np.linspace(-0.2, 0.2, count) if count > 1 else np.zeros(count)
