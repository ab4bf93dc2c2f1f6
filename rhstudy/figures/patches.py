"""Plots of patching: how each set of a donor's heads changes a recipient, beside random heads and the null patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.figures.canvas import (
    BLUE,
    GREY,
    METRIC_NAMES,
    ORANGE,
    canvas,
    interval_bars,
    legend_below,
    number,
    open_frame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETS = {
    "intersection": "intersection",
    "complement": "complement",
    "retrieval": "all retrieval\nheads of the real model",
}
_WIDTH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPoint:
    """One set of heads put in; NaN where undefined.

    Attributes:
        name: of the set.
        num_heads: its size.
        change: mean change of the mark.
        low: lower end of its interval over examples.
        high: upper end.
        random: mean change over draws of matched random heads.
        random_low: the lowest draw.
        random_high: the highest draw.
        null: mean change the same set makes between two seeds of the real-data model.
    """

    name: str
    num_heads: int
    change: float
    low: float
    high: float
    random: float
    random_low: float
    random_high: float
    null: float


def patch_points(patches: Sequence[Mapping[str, Any]], positions: str, metric: str) -> list[PatchPoint]:
    """The sets of a ``patching.json`` at one kind of rows; sets that could not be given are left out."""
    return [
        PatchPoint(
            name=patch["of_set"],
            num_heads=patch["num_heads"],
            change=number(patch[metric]["change"]["estimate"]),
            low=number(patch[metric]["change"]["low"]),
            high=number(patch[metric]["change"]["high"]),
            random=number(patch[metric]["random_change"]["estimate"]),
            random_low=number(patch[metric]["random_change"]["low"]),
            random_high=number(patch[metric]["random_change"]["high"]),
            null=number(patch["null"][metric]["estimate"] if patch["null"] else None),
        )
        for patch in patches
        if patch["positions"] == positions and not patch["reason"]
    ]


def patch_bars(points: Sequence[PatchPoint], models: Mapping[str, Any], metric: str, title: str) -> Any:
    """A mark's change by set: bars with intervals between the recipient's level (0) and the donor's.

    Args:
        points: the sets, in order.
        models: of the metric: ``recipient``, ``donor`` and ``gap``, each a statistic as JSON.
        metric: ``f1``, ``exact_match`` or ``gold_logp``.
        title: which models, which rows.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(7.0, 4.6)
    places = np.arange(len(points))
    _draw_levels(axes, models)
    change, low, high = ([getattr(p, name) for p in points] for name in ("change", "low", "high"))
    axes.bar(places, change, _WIDTH, color=ORANGE, alpha=0.75, label="patched, interval over examples")
    bars = interval_bars(change, low, high)
    axes.errorbar(places, change, yerr=bars, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    _draw_controls(axes, places, points)
    names = [f"{_SETS.get(p.name, p.name.replace('_', ' '))}\n{p.num_heads} heads" for p in points]
    axes.set_xticks(places, names, fontsize=8)
    axes.set_xlim(-0.6, max(len(points) - 0.4, 0.6))
    axes.set_ylabel(f"change of {METRIC_NAMES.get(metric, metric)}")
    axes.set_title(title, fontsize=10)
    open_frame(axes)
    legend_below(figure)
    return figure


def _draw_levels(axes: Axes, models: Mapping[str, Any]) -> None:
    recipient, donor, gap = (number(models[name]["estimate"]) for name in ("recipient", "donor", "gap"))
    low, high = (number(models["gap"][name]) for name in ("low", "high"))
    axes.axhline(0, color=GREY, lw=1.3, label=f"recipient: {recipient:.3f}")
    if np.isfinite([low, high]).all():
        axes.axhspan(low, high, color=GREY, alpha=0.1, lw=0)
    axes.axhline(gap, color=GREY, lw=1.3, ls=(0, (5, 3)), label=f"donor: {donor:.3f} (shade: interval of the gap)")


def _draw_controls(axes: Axes, places: Any, points: Sequence[PatchPoint]) -> None:
    low, middle, high = ([getattr(p, name) for p in points] for name in ("random_low", "random", "random_high"))
    beside = places + _WIDTH * 0.68
    axes.vlines(beside, low, high, color=BLUE, alpha=0.6, lw=2)
    label = "matched random heads, mean and range of draws"
    axes.plot(beside, middle, color=BLUE, lw=0, marker="s", ms=4, label=label)
    if np.isfinite([p.null for p in points]).any():
        label = "null patch between two seeds of the real-data model"
        axes.plot(places, [p.null for p in points], color="black", lw=0, marker="D", mfc="white", ms=5, label=label)
