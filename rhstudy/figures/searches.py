"""Plots of a search over recipes: its course, which knobs mattered, one quantity against another.

Optuna's own matplotlib plots are experimental, set a style for the whole process and put all knobs into one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.figures.canvas import BLUE, GREY, ORANGE, canvas, legend_below, open_frame
from rhstudy.figures.labels import label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CORNER_LABEL = "corner of the paper, base of the search"
CORNER: dict[str, Any] = {"marker": "D", "s": 34, "edgecolors": "black", "linewidths": 0.9, "zorder": 4}
TRIAL: dict[str, Any] = {"marker": "o", "s": 22, "edgecolors": "white", "linewidths": 0.4, "zorder": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPoint:
    """One trial of a search.

    Attributes:
        number: of the trial.
        state: ``complete``, ``infeasible``, ``pruned`` or ``failed``; only complete ones have values that compare.
        values: quantity -> what was measured: objectives, costs.
        params: knob -> value; a knob that did not matter in this trial is left out.
        corner: the paper's corner that it is, or ``base``, or empty.
    """

    number: int
    state: str
    values: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    corner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchKnob:
    """One knob of a search.

    Attributes:
        name: of the knob.
        choices: of a categorical knob; empty for numbers.
        log: steps are multiplicative.
    """

    name: str
    choices: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A quantity that a search makes as high or as low as it can.

    Attributes:
        name: of the quantity, a key of `SearchPoint.values`.
        maximize: high is good.
    """

    name: str
    maximize: bool = True

    @property
    def label(self) -> str:
        """As axes name it."""
        return self.name.replace("_", " ").replace("gpu", "GPU").replace("nll", "NLL")

    @property
    def heading(self) -> str:
        """As titles begin with it."""
        return self.label[:1].upper() + self.label[1:]

    def of(self, points: Sequence[SearchPoint]) -> Any:
        """Its value in each of `points`."""
        return np.array([point.values[self.name] for point in points], dtype=float)


def complete(points: Sequence[SearchPoint], *quantities: str) -> list[SearchPoint]:
    """Complete trials in which all `quantities` were measured."""
    ended = [point for point in points if point.state == "complete"]
    return [point for point in ended if all(np.isfinite(point.values.get(name, np.nan)) for name in quantities)]


def search_history(points: Sequence[SearchPoint], goal: Goal) -> Any:
    """A quantity by trial with the best so far as a line, corners named, trials without a value along the bottom.

    Args:
        points: all trials, one of them complete.
        goal: the quantity.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(7.5, 4.4)
    shown = complete(points, goal.name)
    numbers, values = np.array([point.number for point in shown]), goal.of(shown)
    best = (np.maximum if goal.maximize else np.minimum).accumulate(values)
    stair = steps(numbers.tolist(), best.tolist())
    axes.plot(*zip(*stair, strict=True), color=ORANGE, lw=1.6, label="best so far")
    is_corner = np.array([bool(point.corner) for point in shown])
    plain, corners = ~is_corner, is_corner
    axes.scatter(numbers[plain], values[plain], color=BLUE, label="trial", **TRIAL)
    if corners.any():
        axes.scatter(numbers[corners], values[corners], color=ORANGE, label=CORNER_LABEL, **CORNER)
    _mark_ended(axes, points)
    axes.set(xlabel="trial", ylabel=goal.label)
    axes.set_title(f"Course of the search: {len(shown)} complete of {len(points)} trials", fontsize=10)
    axes.margins(x=0.04, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(axes)
    legend_below(figure, 5)
    places = list(zip(numbers.tolist(), values.tolist(), strict=True))
    named = [(point.corner, *place) for point, place in zip(shown, places, strict=True) if point.corner]
    others = [place for place, other in zip(places, plain, strict=True) if other]
    label_points(axes, named, others, stair)
    return figure


def steps(across: Sequence[float], up: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of a stair that holds each height until the next place."""
    places = list(zip(across, up, strict=True))
    turns = [(x, height) for (x, _), (_, height) in zip(places[1:], places, strict=False)]
    return [place for pair in itertools.zip_longest(places, turns) for place in pair if place is not None]


def _mark_ended(axes: Axes, points: Sequence[SearchPoint]) -> None:
    """Trials without a value, along the lower edge."""
    for state, marker in (("infeasible", "1"), ("pruned", "|"), ("failed", "x")):
        numbers = [point.number for point in points if point.state == state]
        if numbers:
            edge = axes.get_xaxis_transform()
            heights = np.full(len(numbers), 0.025)
            axes.scatter(numbers, heights, marker=marker, s=28, color=GREY, lw=1.2, transform=edge, label=state)


def importance_bars(importance: Mapping[str, float], *, evaluator: str, goal: Goal, n: int, note: str = "") -> Any:
    """Importance of each knob as a bar, the greatest above.

    Args:
        importance: knob -> share, 0-1.
        evaluator: by which method; in the title.
        goal: importance for what.
        n: complete trials.
        note: what the method leaves out; below the title.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    order = sorted(importance, key=lambda name: -importance[name])
    figure, axes = canvas(6.5, 1.5 + 0.3 * len(order))
    values = [importance[name] for name in order]
    bars = axes.barh(range(len(order)), values, color=BLUE, alpha=0.75, height=0.65)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order], fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(values) or 1)
    axes.set_xlabel("share of importance")
    title = f"Importance of knobs for {goal.label}\n{evaluator}, n = {n} complete trials"
    axes.set_title(f"{title}{', ' if note else ''}{note}", fontsize=10)
    open_frame(axes, "x")
    return figure


def log_axis(set_scale: Callable[[str], None], axis: Any) -> None:
    """A logarithmic axis that is labelled with plain numbers, also within one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def pareto_front(points: Sequence[SearchPoint], goals: tuple[Goal, Goal]) -> list[SearchPoint]:
    """The complete trials that no other beats in one of two quantities without losing in the other, best first.

    Of trials that are equal in both the earliest is taken.
    """
    signs = [-1.0 if goal.maximize else 1.0 for goal in goals]
    costs = {
        point.number: [sign * point.values[goal.name] for sign, goal in zip(signs, goals, strict=True)]
        for point in points
    }
    front: list[SearchPoint] = []
    for point in sorted(points, key=lambda one: (*costs[one.number], one.number)):
        if not front or costs[point.number][1] < costs[front[-1].number][1]:
            front.append(point)
    return front


def pareto_plot(points: Sequence[SearchPoint], goals: tuple[Goal, Goal]) -> Any:
    """A quantity against another, with the trials that none beats in both as a line; these and corners are named.

    Args:
        points: all trials, one with both quantities.
        goals: up and across.

    Returns:
        The `matplotlib.figure.Figure`.
    """
    up, across = goals
    figure, axes = canvas(7.5, 4.8)
    shown = complete(points, up.name, across.name)
    front = pareto_front(shown, goals)
    costs = across.of(shown)
    if costs.min() > 0 and costs.max() > 8 * costs.min():
        log_axis(axes.set_xscale, axes.xaxis)
    stair = steps(across.of(front)[::-1].tolist(), up.of(front)[::-1].tolist())
    axes.plot(*zip(*stair, strict=True), color=ORANGE, lw=1.4)
    for kind, colour, look in ((shown, BLUE, TRIAL), (front, ORANGE, TRIAL)):
        name = "trial that no other beats in both" if kind is front else "trial"
        axes.scatter(across.of(kind), up.of(kind), color=colour, label=name, **look)
    corners = [point for point in shown if point.corner]
    if corners:
        colours = [ORANGE if point in front else BLUE for point in corners]
        axes.scatter(across.of(corners), up.of(corners), color=colours, label=CORNER_LABEL, **CORNER)
    axes.set(xlabel=_with_unit(across), ylabel=_with_unit(up))
    axes.set_title(f"{up.heading} against {across.label}, n = {len(shown)} complete trials", fontsize=10)
    axes.margins(0.08)
    open_frame(axes, "both")
    legend_below(figure, 3)
    places = {point.number: (point.values[across.name], point.values[up.name]) for point in shown}
    named = [point for point in shown if point.corner or point in front]
    names = [(point.corner or f"trial {point.number}", *places[point.number]) for point in named]
    label_points(axes, names, [places[point.number] for point in shown if point not in named], stair)
    return figure


def _with_unit(goal: Goal) -> str:
    return f"{goal.label} ({'higher' if goal.maximize else 'lower'} is better)"
