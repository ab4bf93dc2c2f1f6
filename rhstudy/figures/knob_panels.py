"""Plots of a search knob by knob: a panel for each, and maps of pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.figures.canvas import GREY, empty_figure, legend_below, open_frame
from rhstudy.figures.searches import CORNER, CORNER_LABEL, TRIAL, Goal, SearchKnob, SearchPoint, complete, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_COLOURS = "viridis"
_TRIAL_NUMBER = "trial"


def search_slices(points: Sequence[SearchPoint], knobs: Sequence[SearchKnob], goal: Goal) -> Any:
    """A quantity over each knob, a panel a knob, coloured by the number of the trial.

    Args:
        points: all trials; a panel holds the complete ones in which its knob mattered.
        knobs: those that some complete trial has.
        goal: the quantity.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    shown = complete(points, goal.name)
    colours = _trial_colours(shown)
    figure, panels = _grid(len(knobs))
    for place, (axes, knob) in enumerate(zip(panels, knobs, strict=True)):
        own = [point for point in shown if knob.name in point.params]
        across = _categories(axes, own, knob, goal) if knob.choices else _numbers(axes, own, knob)
        _scatter(axes, own, across, goal.of(own), c=[point.number for point in own], **colours)
        missing = f" (n = {len(own)})" if len(own) < len(shown) else ""
        axes.set_title(f"{knob.name.replace('_', ' ')}{missing}", fontsize=9)
        axes.tick_params(labelsize=8)
        if place % _COLUMNS == 0:
            axes.set_ylabel(goal.label, fontsize=9)
        open_frame(axes, "both")
    figure.suptitle(f"{goal.heading} over each knob, n = {len(shown)} complete trials", fontsize=10)
    _colour_bar(figure, panels, colours, _TRIAL_NUMBER)
    _corner_legend(figure, shown)
    return figure


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = empty_figure(1.4 + 2.7 * columns, 1.0 + 2.4 * rows)
    first = figure.add_subplot(rows, columns, 1)
    return figure, [first, *(figure.add_subplot(rows, columns, place, sharey=first) for place in range(2, count + 1))]


def _trial_colours(points: Sequence[SearchPoint]) -> dict[str, Any]:
    numbers = [point.number for point in points]
    return {"cmap": _COLOURS, "vmin": min(numbers), "vmax": max(*numbers, min(numbers) + 1)}


def _numbers(axes: Axes, points: Sequence[SearchPoint], knob: SearchKnob) -> Any:
    if knob.log:
        log_axis(axes.set_xscale, axes.xaxis)
    return np.array([point.params[knob.name] for point in points], dtype=float)


def _categories(axes: Axes, points: Sequence[SearchPoint], knob: SearchKnob, goal: Goal) -> Any:
    """Places across, spread so that equal ones are told apart, and the median of each choice."""
    places = {choice: place for place, choice in enumerate(knob.choices)}
    for choice, place in places.items():
        own = goal.of([point for point in points if point.params[knob.name] == choice])
        if len(own):
            axes.hlines(np.median(own), place - 0.34, place + 0.34, color=GREY, lw=1.4)
    axes.set_xticks(range(len(places)), [choice.replace("_", "\n") for choice in knob.choices])
    axes.set_xlim(-0.6, len(places) - 0.4)
    spread = [(point.number * 0.618) % 1 * 0.5 - 0.25 for point in points]
    return np.array([places[point.params[knob.name]] for point in points], dtype=float) + spread


def _scatter(axes: Axes, points: Sequence[SearchPoint], across: Any, up: Any, *, c: Any, **how: Any) -> None:
    """Trials as dots and corners as diamonds."""
    is_corner, colours = np.array([bool(point.corner) for point in points], dtype=bool), np.array(c, dtype=float)
    for chosen, look in ((~is_corner, TRIAL), (is_corner, CORNER)):
        axes.scatter(across[chosen], up[chosen], c=colours[chosen], **look, **how)


def _colour_bar(figure: Figure, panels: Sequence[Axes], colours: Mapping[str, Any], label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    shades = ScalarMappable(Normalize(colours["vmin"], colours["vmax"]), colours["cmap"])
    bar = figure.colorbar(shades, ax=list(panels), label=label, fraction=0.04, pad=0.02, aspect=30)
    bar.locator = MaxNLocator(nbins=8, integer=label == _TRIAL_NUMBER)
    bar.ax.tick_params(labelsize=8)


def _corner_legend(figure: Figure, points: Sequence[SearchPoint]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", marker="o", ms=5, color=GREY, label="trial")]
    if any(point.corner for point in points):
        handles.append(Line2D([], [], ls="", marker="D", ms=5.5, mfc="none", mec="black", label=CORNER_LABEL))
    legend_below(figure, handles=handles)


def search_contours(points: Sequence[SearchPoint], pairs: Sequence[tuple[SearchKnob, SearchKnob]], goal: Goal) -> Any:
    """A quantity over pairs of numeric knobs: trials, and straight interpolation between them.

    Args:
        points: all trials.
        pairs: each with enough trials, see `spans_a_plane`.
        goal: the quantity.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    shown = complete(points, goal.name)
    values = goal.of(shown)
    low, high = float(values.min()), float(values.max())
    scale = {"cmap": _COLOURS, "vmin": low, "vmax": high if high > low else low + 1}
    figure = empty_figure(1.6 + 3.2 * len(pairs), 3.9)
    panels = [figure.add_subplot(1, len(pairs), place + 1) for place in range(len(pairs))]
    for axes, pair in zip(panels, pairs, strict=True):
        own = [point for point in shown if all(knob.name in point.params for knob in pair)]
        _contour(axes, own, pair, goal, scale)
    title = f"{goal.heading} over pairs of knobs, straight interpolation between trials"
    figure.suptitle(title, fontsize=10)
    _colour_bar(figure, panels, scale, goal.label)
    _corner_legend(figure, shown)
    return figure


def _contour(
    axes: Axes, points: Sequence[SearchPoint], pair: tuple[SearchKnob, SearchKnob], goal: Goal, scale: Mapping[str, Any]
) -> None:
    from matplotlib.tri import Triangulation

    places, index = np.unique(_unit_square(points, pair), axis=0, return_inverse=True)
    counts = np.bincount(index.ravel())
    means = np.bincount(index.ravel(), weights=goal.of(points)) / counts
    triangles = Triangulation(places[:, 0], places[:, 1]).triangles
    across, up = (np.array([point.params[knob.name] for point in points], dtype=float) for knob in pair)
    first = np.unique(index.ravel(), return_index=True)[1]
    levels = np.linspace(scale["vmin"], scale["vmax"], 13)
    levels[[0, -1]] += np.array([-1e-6, 1e-6]) * float(np.ptp(levels))  # the ends themselves would stay white
    mesh = Triangulation(across[first], up[first], triangles)
    axes.tricontourf(mesh, means, levels=levels, cmap=scale["cmap"])
    _scatter(axes, points, across, up, c=goal.of(points), **scale)
    axes.use_sticky_edges = False  # else marks at an end of their range are cut in half
    axes.margins(0.05)
    for knob, set_scale, axis in ((pair[0], axes.set_xscale, axes.xaxis), (pair[1], axes.set_yscale, axes.yaxis)):
        if knob.log:
            log_axis(set_scale, axis)
        axis.set_label_text(knob.name.replace("_", " "), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title(f"n = {len(points)}", fontsize=9)


def _unit_square(points: Sequence[SearchPoint], pair: tuple[SearchKnob, SearchKnob]) -> Any:
    """Both knobs on 0-1, as their axes show them: neighbours are near on the page."""
    columns = []
    for knob in pair:
        values = np.array([point.params[knob.name] for point in points], dtype=float)
        values = np.log(values) if knob.log else values
        columns.append((values - values.min()) / (float(np.ptp(values)) or 1.0))
    return np.stack(columns, axis=1)


def spans_a_plane(points: Sequence[SearchPoint], pair: tuple[SearchKnob, SearchKnob]) -> bool:
    """Whether at least four complete trials with both knobs lie at different places that are not all on a line."""
    own = [point for point in points if all(knob.name in point.params for knob in pair)]
    if len(own) < 4:
        return False
    places = np.unique(_unit_square(own, pair), axis=0)
    rank = np.linalg.matrix_rank(places - places.mean(axis=0), tol=1e-3)
    return bool(len(places) >= 4 and rank == 2)
