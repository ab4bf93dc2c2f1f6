"""Plots of a sweep's check on the real task: F1 against each signal by way of choosing, regret of each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.figures.canvas import (
    BLUE,
    GREY,
    ORANGE,
    canvas,
    empty_figure,
    interval_bars,
    legend_below,
    number,
    open_frame,
)
from rhstudy.figures.labels import label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "weighted_head_recall": "weighted head recall",
    "head_recall": "head recall",
    "real_nll": "-real_nll, nats per token",
}
_SHORT = {"weighted_head_recall": "W", "head_recall": "R", "real_nll": "L", "corners": "C"}
_LINES = ("--", ":")


def signal_scatter(findings: Mapping[str, Any]) -> Any:
    """F1 on the real task against every signal, a panel each; letters say which ways of choosing named a recipe.

    Args:
        findings: ``validation.json``.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure = empty_figure(4.2 * len(findings["signals"]), 4.6)
    panels = figure.subplots(1, len(findings["signals"]), sharey=True, squeeze=False)[0]
    named = [
        _panel(axes, findings, name, signal)
        for axes, (name, signal) in zip(panels, findings["signals"].items(), strict=True)
    ]
    panels[0].set_ylabel(f"F1 on the real task ({findings['num_eval_rows']} rows)")
    key = ", ".join(f"{short} {way.replace('_', ' ')}" for way, short in _SHORT.items())
    lines = " and ".join(f"{style} {name}" for name, style in zip(findings["beside"], _LINES, strict=False))
    legend = f"orange: chosen by the panel's signal; letters: by {key}, none at random; lines: F1 of {lines}"
    figure.supxlabel(legend, fontsize=8)
    for axes, centres in zip(panels, named, strict=True):  # last: labels are placed in the final layout
        others = [(x, y) for letters, x, y in centres if not letters]
        label_points(axes, [mark for mark in centres if mark[0]], others)
    return figure


def _panel(
    axes: Axes, findings: Mapping[str, Any], name: str, signal: Mapping[str, Any]
) -> list[tuple[str, float, float]]:
    """One signal; returns the letters of each mark and its place."""
    centres: list[tuple[str, float, float]] = []
    for row in findings["recipes"]:
        x, y = number(row["signals"][name]), number(row["f1"]["estimate"])
        if not np.isfinite([x, y]).all():
            continue
        colour = ORANGE if name in row["chosen_by"] else BLUE
        sides = interval_bars([y], [number(row["f1"]["low"])], [number(row["f1"]["high"])])
        axes.errorbar(x, y, yerr=sides, fmt="o", color=colour, ms=5, lw=0.8, capsize=2, alpha=0.9)
        centres.append(("".join(_SHORT.get(way, "") for way in row["chosen_by"]), x, y))
    for item, style in zip(findings["beside"].values(), _LINES, strict=False):
        axes.axhline(number(item["f1"]["estimate"]), color=GREY, lw=1, ls=style)
    found = signal["correlation"]
    ends = [number(found[key]) for key in ("estimate", "low", "high")]
    shown = (
        "rho undefined" if np.isnan(ends[0]) else f"rho {ends[0]:.2f} [{ends[1]:.2f}, {ends[2]:.2f}], n = {found['n']}"
    )
    axes.set_title(shown.replace("[nan, nan]", "(no interval)"), fontsize=9)
    axes.set_xlabel(_NAMES.get(name, name))
    open_frame(axes, "both")
    return centres


def regret_bars(ways: Sequence[Mapping[str, Any]]) -> Any:
    """Regret in F1 of each way of choosing with its interval; a mark for the cross-fitted one.

    Args:
        ways: of ``validation.json``.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    figure, axes = canvas(6.5, 0.9 + 0.5 * max(len(ways), 1))
    for place, way in enumerate(ways):
        value, low, high = (number(way["regret"][key]) for key in ("estimate", "low", "high"))
        if np.isnan(value):
            axes.annotate(f"n/a: {way['regret']['reason']}", (0, place), (4, 0), textcoords="offset points",
                          fontsize=7, va="center", color=GREY)  # fmt: skip
            continue
        sides = interval_bars([value], [low], [high])
        axes.barh(place, value, height=0.6, color=GREY if way["way"] in ("random", "corners") else BLUE, alpha=0.85)
        axes.errorbar(value, place, xerr=sides, color="black", lw=1, capsize=3)
        axes.plot(number(way["cross_fitted_regret"]), place, marker="D", color=ORANGE, ms=5)
    axes.plot([], [], marker="D", color=ORANGE, ls="", label="cross-fitted: without the luck of the best")
    axes.set_yticks(range(len(ways)), [way["way"].replace("_", " ") for way in ways])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xlabel("regret: F1 below the best evaluated recipe")
    open_frame(axes, "x")
    legend_below(figure)
    return figure
