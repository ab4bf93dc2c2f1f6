"""The figures of a sweep: what its trials allow is drawn, and what they do not is left out with the reason."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from rhstudy.data.knobs import Dimension
from rhstudy.figures.canvas import save_png
from rhstudy.figures.knob_panels import search_contours, search_slices, spans_a_plane
from rhstudy.figures.searches import (
    Goal,
    SearchKnob,
    SearchPoint,
    complete,
    importance_bars,
    pareto_plot,
    search_history,
)
from rhstudy.sweep.claims import SECONDS
from rhstudy.sweep.course import INFEASIBLE
from rhstudy.sweep.importance import Importance

FIGURES = "figures"
NUM_IN_CONTOURS = 3
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_FANOVA_NOTE = "knobs of every trial only"
_log = logging.getLogger(__name__)

Drawing = tuple[str, str, Callable[[], Any]]
"""Name of a figure, why it is left out or nothing, and what draws it."""


def draw_figures(
    folder: Path,
    study: optuna.Study,
    space: Sequence[Dimension],
    objectives: Sequence[str],
    importances: Sequence[Importance],
) -> dict[str, str]:
    """Draw ``history``, ``importance_METHOD``, ``slices``, ``contours`` and ``pareto`` as PNG files into `folder`.

    With several objectives those of the second and later ones end in their names.

    Args:
        folder: where to; it is made.
        study: the trials.
        space: the knobs that were turned.
        objectives: their names, in the order of the trials' values.
        importances: as `rhstudy.sweep.importance.importances` gives them.

    Returns:
        Figure -> why it was left out, nothing where it was drawn.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    points = search_points(study.get_trials(deepcopy=False), objectives)
    knobs = [SearchKnob(name=one.name, choices=one.choices, log=one.log) for one in space]
    maximize = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
    goals = [Goal(name=name, maximize=up) for name, up in zip(objectives, maximize, strict=True)]
    found: dict[str, str] = {}
    for name, reason, draw in _drawings(points, knobs, goals, importances):
        found[name] = reason or _drawn(folder / f"{name}.png", draw)
        if found[name]:
            _log.info("no figure %s: %s", name, found[name])
    return found


def _drawn(path: Path, draw: Callable[[], Any]) -> str:
    """Draw one figure; figures are for people, and no result is lost with one."""
    try:
        save_png(draw(), path)
    except OSError:
        raise
    except Exception as error:
        _log.warning("figure %s could not be drawn", path.stem, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return ""


def search_points(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> list[SearchPoint]:
    """Trials that ended, with everything that was measured, for plotting."""
    return [_point(trial, objectives) for trial in trials if trial.state in _STATES]


def _point(trial: FrozenTrial, objectives: Sequence[str]) -> SearchPoint:
    measured = {name: float(value) for name, value in trial.user_attrs.items() if type(value) in (int, float)}
    told = dict(zip(objectives, trial.values or (), strict=False)) if trial.state == TrialState.COMPLETE else {}
    corner = str(trial.user_attrs.get("corner", ""))
    state = "infeasible" if INFEASIBLE in trial.user_attrs else _STATES[trial.state]
    return SearchPoint(
        number=trial.number, state=state, values={**measured, **told}, params=trial.params, corner=corner
    )


def _drawings(
    points: Sequence[SearchPoint],
    knobs: Sequence[SearchKnob],
    goals: Sequence[Goal],
    importances: Sequence[Importance],
) -> Iterator[Drawing]:
    none = "" if complete(points, goals[0].name) else "no trial is complete"
    for goal in goals:
        own = [one for one in importances if one.objective == goal.name]
        suffix = "" if goal is goals[0] else f"_{goal.name}"
        for name, reason, draw in _of_goal(points, knobs, goal, own, none):
            yield f"{name}{suffix}", reason, draw
    for pair in itertools.combinations(goals, 2) if len(goals) > 1 else [(goals[0], cost_of(points))]:
        suffix = f"_{pair[0].name}_{pair[1].name}" if len(goals) > 2 else ""
        yield f"pareto{suffix}", none or _without(points, pair), partial(pareto_plot, points, pair)


def _of_goal(
    points: Sequence[SearchPoint],
    knobs: Sequence[SearchKnob],
    goal: Goal,
    importances: Sequence[Importance],
    none: str,
) -> Iterator[Drawing]:
    shown = [knob for knob in knobs if any(knob.name in point.params for point in complete(points, goal.name))]
    yield "history", none, partial(search_history, points, goal)
    for one in importances:
        note = _FANOVA_NOTE if one.evaluator == "fANOVA" else ""
        name = f"importance_{one.evaluator.lower().replace('-', '_')}"
        draw = partial(importance_bars, one.shares, evaluator=one.evaluator, goal=goal, n=one.n, note=note)
        yield name, none or one.reason, draw
    yield "slices", none, partial(search_slices, points, shown, goal)
    shares = next((one.shares for one in importances if one.shares), {})
    pairs, reason = contour_pairs(complete(points, goal.name), shown, shares)
    yield "contours", none or reason, partial(search_contours, points, pairs, goal)


def contour_pairs(
    points: Sequence[SearchPoint], knobs: Sequence[SearchKnob], shares: Mapping[str, float]
) -> tuple[list[tuple[SearchKnob, SearchKnob]], str]:
    """Pairs of the most important numeric knobs that enough trials lie over, and why there are none.

    Args:
        points: complete trials.
        knobs: those that some trial has.
        shares: knob -> importance; without it the first knobs are taken.
    """
    numeric = [knob for knob in knobs if not knob.choices]
    ranked = sorted(numeric, key=lambda knob: -shares.get(knob.name, 0.0))[:NUM_IN_CONTOURS]
    if len(ranked) < 2:
        return [], f"two numeric knobs are needed, and the trials have {len(ranked)}"
    pairs = [pair for pair in itertools.combinations(ranked, 2) if spans_a_plane(points, pair)]
    return pairs, "" if pairs else "no pair of numeric knobs has four complete trials that do not lie on a line"


def cost_of(points: Sequence[SearchPoint]) -> Goal:
    """What a trial cost, as well as it is known: seconds of training and scoring, else of the whole trial."""
    known = complete(points, "gpu_seconds")
    return Goal(name="gpu_seconds" if known else SECONDS, maximize=False)


def _without(points: Sequence[SearchPoint], pair: tuple[Goal, Goal]) -> str:
    names = [goal.name for goal in pair]
    return "" if complete(points, *names) else f"no complete trial has both {names[0]} and {names[1]}"


def figure_lines(folder: str, figures: Mapping[str, str]) -> list[str]:
    """Which of `figures` are in `folder` of the sweep's run, and why others are not."""
    drawn = [name for name, reason in figures.items() if not reason]
    missing: dict[str, list[str]] = {}
    for name, reason in figures.items():
        missing.setdefault(reason, []).append(name)
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in missing.items() if reason]
    lines = [f"figures in {folder} of the run: {', '.join(drawn) or 'none'}"]
    return lines + ([f"figures left out: {'; '.join(reasons)}"] if reasons else [])
