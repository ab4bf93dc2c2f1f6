"""Plots of an analysis: estimates with intervals side by side, residuals of the pooled fit, the noise ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhstudy.figures.canvas import BLUE, GREY, ORANGE, canvas, legend_beside, number
from rhstudy.figures.labels import label_points

NUM_NAMED = 5
"""Residuals that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """One line of a forest plot; NaN ends leave the bar out, a NaN estimate leaves the label with "n/a".

    Attributes:
        label: what was estimated.
        estimate: the value.
        low: lower end of its interval.
        high: upper end.
        is_claim: drawn in the colour of the claim, not of a rival.
    """

    label: str
    estimate: float
    low: float
    high: float
    is_claim: bool = False


def forest_row(label: str, record: Mapping[str, Any], *, is_claim: bool = False) -> ForestRow:
    """The row of a `Statistic` as read from JSON."""
    ends = (number(record[key]) for key in ("estimate", "low", "high"))
    estimate, low, high = ends
    return ForestRow(label=label, estimate=estimate, low=low, high=high, is_claim=is_claim)


def correlation_rows(analysis: Mapping[str, Any], predictor: str) -> list[ForestRow]:
    """Spearman's rho of every predictor in every group of an ``analysis.json``."""
    return [
        forest_row(f"{group['task']}, {group['model']}: {name}", found["all"], is_claim=name == predictor)
        for group in analysis["groups"]
        for name, found in group["correlations"].items()
    ]


def slope_rows(analysis: Mapping[str, Any]) -> list[ForestRow]:
    """The pooled slope by every model and on every subset of an ``analysis.json``, all in F1 per unit."""
    pooled, rows = analysis["pooled"], []
    for key, subset in (("all", "all recipes"), ("without_flagged", "without real examples")):
        found = pooled[key]
        if key != "all" and found["recipes"] == pooled["all"]["recipes"]:
            continue
        rows.append(forest_row(f"{subset}: wild cluster bootstrap", found["slope"], is_claim=True))
        rows.append(forest_row(f"{subset}: cluster-robust t", found["clustered"]))
        rows += [forest_row(f"{subset}: {name}", found["sensitivity"][name]) for name in ("mixed", "gee")]
    return rows


def forest(rows: Sequence[ForestRow], *, title: str, label: str) -> Any:
    """Estimates with intervals, one a line, and a line at 0.

    Args:
        rows: from above to below.
        title: of the plot.
        label: of the x axis.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(8.0, 1.3 + 0.3 * max(len(rows), 1))
    for place, row in enumerate(rows):
        colour = ORANGE if row.is_claim else BLUE
        if np.isfinite([row.low, row.high]).all():
            axes.hlines(place, row.low, row.high, color=colour, lw=1.8)
        if np.isfinite(row.estimate):
            axes.plot([row.estimate], [place], marker="s" if row.is_claim else "o", ms=5, color=colour)
    axes.axvline(0, color=GREY, lw=1, ls=(0, (4, 3)))
    names = [row.label if np.isfinite(row.estimate) else f"{row.label} (n/a)" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    return figure


def residual_plot(points: Sequence[Mapping[str, Any]], *, predictor: str) -> Any:
    """Residuals of the pooled fit against the fitted values, a colour per task and model, the largest ones named.

    Args:
        points: ``points`` of a side of ``pooled``, with ``recipe``, ``group``, ``fitted``, ``residual``.
        predictor: whose fit it is.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    from matplotlib import colormaps

    figure, axes = canvas(7.0, 4.6)
    groups = sorted({point["group"] for point in points})
    colours = colormaps["tab10"]
    for index, group in enumerate(groups):
        own = [point for point in points if point["group"] == group]
        fitted, residuals = ([float(point[key]) for point in own] for key in ("fitted", "residual"))
        axes.scatter(fitted, residuals, s=22, color=colours(index % 10), label=group)
    axes.axhline(0, color=GREY, lw=1)
    axes.set(xlabel=f"F1 fitted from {predictor} within task and model", ylabel="residual F1")
    axes.set_title(f"Residuals of the pooled fit on {predictor}, {len(points)} cells", fontsize=10)
    if groups:
        legend_beside(axes)
    ordered = sorted(points, key=lambda item: -abs(item["residual"]))
    marks = [(point["recipe"], float(point["fitted"]), float(point["residual"])) for point in ordered]
    # last: labels are placed in the final layout
    label_points(axes, marks[:NUM_NAMED], [(fitted, residual) for _, fitted, residual in marks[NUM_NAMED:]])
    return figure


def ceiling_plot(group: Mapping[str, Any], measures: Sequence[str]) -> Any:
    """Each measure of the reference's other seeds (the noise ceiling) beside that of every recipe's arms.

    Args:
        group: one group of an ``analysis.json``.
        measures: names of the measures, from above to below.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(7.5, 1.6 + 0.36 * len(measures))
    points = [arm for arm in group["arms"] if not (arm["is_reference"] or arm["is_untuned"])]
    for place, name in enumerate(measures):
        found = [number(arm[name]) for arm in points]
        axes.plot(found, [place] * len(found), ls="", marker="o", ms=4, color=BLUE, alpha=0.5)
        axes.plot([number(group["noise_ceiling"][name])], [place], ls="", marker="D", ms=7, color=ORANGE)
    axes.plot([], [], ls="", marker="o", ms=4, color=BLUE, label="arms of recipes")
    axes.plot([], [], ls="", marker="D", ms=7, color=ORANGE, label="other seeds of the reference, mean")
    axes.set_yticks(range(len(measures)), [name.replace("_", " ") for name in measures], fontsize=8)
    axes.set_ylim(len(measures) - 0.4, -0.6)
    axes.set_xlabel("agreement with the reference's heads")
    axes.set_title(f"Noise ceiling: {group['task']}, {group['model']}", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    legend_beside(axes)
    return figure
