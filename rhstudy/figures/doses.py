"""Plots of a knockout: what each dose costs, beside matched random heads, and what each head alone costs."""

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
from rhstudy.figures.one_model import heads_image
from rhstudy.shapes import Float
from rhstudy.types import HeadSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class DosePoint:
    """One dose of a knockout; NaN where undefined.

    Attributes:
        dose: heads knocked out.
        top: mean mark with the top heads knocked out.
        low: lower end of its interval over examples.
        high: upper end.
        random: mean over draws of matched random heads.
        random_low: the lowest draw.
        random_high: the highest draw.
        is_all: the dose is all retrieval heads.
    """

    dose: int
    top: float
    low: float
    high: float
    random: float
    random_low: float
    random_high: float
    is_all: bool = False


def dose_points(doses: Sequence[Mapping[str, Any]], metric: str) -> list[DosePoint]:
    """The doses of a ``necessity.json`` for plotting; doses that could not be given are left out."""
    return [
        DosePoint(
            dose=plan["dose"],
            top=number(plan[metric]["top"]["estimate"]),
            low=number(plan[metric]["top"]["low"]),
            high=number(plan[metric]["top"]["high"]),
            random=number(plan[metric]["random"]["estimate"]),
            random_low=number(plan[metric]["random"]["low"]),
            random_high=number(plan[metric]["random"]["high"]),
            is_all=plan["is_all_retrieval_heads"],
        )
        for plan in doses
        if not plan["reason"]
    ]


def dose_curve(points: Sequence[DosePoint], *, baseline: Mapping[str, Any], metric: str, title: str) -> Any:
    """A mark against the number of heads knocked out: the top heads with intervals, matched random heads as a band.

    Args:
        points: the doses, rising.
        baseline: the statistic with nothing knocked out, with ``estimate``, ``low`` and ``high``.
        metric: ``f1``, ``exact_match`` or ``gold_logp``.
        title: which model, whose heads.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(7.0, 4.6)
    places = np.arange(len(points))
    _draw_baseline(axes, baseline)
    _draw_random(axes, places, points)
    _draw_top(axes, places, points)
    axes.set_xticks(places, [f"{p.dose}\nall retrieval heads" if p.is_all else str(p.dose) for p in points])
    axes.set_xlim(-0.5, max(len(points) - 0.5, 0.5))
    if metric != "gold_logp":
        axes.set_ylim(bottom=0)
    axes.set_xlabel("heads knocked out")
    axes.set_ylabel(METRIC_NAMES.get(metric, metric))
    axes.set_title(title, fontsize=10)
    open_frame(axes)
    legend_below(figure)
    return figure


def drop_map(drops: Float[np.ndarray, "layers heads"], heads: HeadSet, *, metric: str, title: str) -> Any:
    """What knocking out each head alone takes away, layers down and heads across; heads not tried are left blank.

    Args:
        drops: mean without a knockout minus mean with it, NaN where a head was not tried.
        heads: the retrieval heads, which are ringed.
        metric: ``f1``, ``exact_match`` or ``gold_logp``.
        title: which model, whose heads.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        InputError: a head of `heads` lies outside `drops`.
    """
    top = float(np.abs(drops[np.isfinite(drops)]).max(initial=0.0)) or 1.0
    label = f"drop of {METRIC_NAMES.get(metric, metric)}"
    return heads_image(drops, heads, label=label, title=title, scale={"cmap": "PuOr_r", "vmin": -top, "vmax": top})


def _draw_baseline(axes: Axes, baseline: Mapping[str, Any]) -> None:
    level, low, high = (number(baseline[name]) for name in ("estimate", "low", "high"))
    if np.isfinite([low, high]).all():
        axes.axhspan(low, high, color=GREY, alpha=0.08, lw=0)
    axes.axhline(level, color=GREY, lw=1.3, ls=(0, (5, 3)), label=f"nothing knocked out: {level:.3f} (shade: interval)")


def _draw_random(axes: Axes, places: Any, points: Sequence[DosePoint]) -> None:
    low, middle, high = ([getattr(p, name) for p in points] for name in ("random_low", "random", "random_high"))
    axes.fill_between(places, low, high, color=BLUE, alpha=0.18, lw=0, label="matched random heads, range of draws")
    axes.vlines(places, low, high, color=BLUE, alpha=0.5, lw=1)  # a dose whose neighbours have no draws shows its range
    axes.plot(places, middle, color=BLUE, lw=1.6, marker="s", ms=4, label="matched random heads, mean of draws")


def _draw_top(axes: Axes, places: Any, points: Sequence[DosePoint]) -> None:
    top, low, high = ([getattr(p, name) for p in points] for name in ("top", "low", "high"))
    label = "top heads by retrieval score, interval over examples"
    axes.errorbar(
        places, top, yerr=interval_bars(top, low, high), color=ORANGE, lw=1.8, elinewidth=1, capsize=3, marker="o",
        ms=5, label=label, zorder=3,
    )  # fmt: skip
