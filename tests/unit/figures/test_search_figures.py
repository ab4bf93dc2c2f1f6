"""Figures of a search show what its trials are, and say what they hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rhstudy.figures.canvas import save_png
from rhstudy.figures.knob_panels import search_contours, search_slices, spans_a_plane
from rhstudy.figures.searches import (
    Goal,
    SearchKnob,
    SearchPoint,
    complete,
    importance_bars,
    pareto_front,
    pareto_plot,
    search_history,
    steps,
)

RECALL, COST = Goal(name="head_recall"), Goal(name="seconds", maximize=False)
WORDING = SearchKnob(name="wording", choices=("plain", "symbolic"))
SHARE, TEMPLATES = SearchKnob(name="share"), SearchKnob(name="templates", log=True)


def points(count: int = 12) -> list[SearchPoint]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        wording = "symbolic" if number % 4 == 1 else "plain"
        params = {"wording": wording, "share": float(rng.random())}
        if wording == "plain":
            params["templates"] = int(rng.integers(1, 40))
        values = {"head_recall": float(rng.random()), "seconds": float(10 + rng.integers(0, 200))}
        state = {3: "pruned", 5: "failed"}.get(number, "complete")
        corner = {0: "low_high", 1: "symbolic"}.get(number, "")
        found.append(
            SearchPoint(
                number=number, state=state, corner=corner, params=params, values=values if state[0] == "c" else {}
            )
        )
    return found


def shown(figure) -> set[str]:
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")) if text.get_visible()}


FIGURES = {
    "history": lambda trials: search_history(trials, RECALL),
    "history_cost": lambda trials: search_history(trials, COST),
    "importance": lambda trials: importance_bars({"a": 0.2, "b": 0.8}, evaluator="fANOVA", goal=RECALL, n=9, note="x"),
    "slices": lambda trials: search_slices(trials, [WORDING, SHARE, TEMPLATES, SHARE], RECALL),
    "contours": lambda trials: search_contours(trials, [(SHARE, TEMPLATES)], RECALL),
    "pareto": lambda trials: pareto_plot(trials, (RECALL, COST)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_trials_give_the_same_bytes(name, tmp_path):
    for file in ("a.png", "b.png"):
        save_png(FIGURES[name](points()), tmp_path / file)
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert b"tEXt" not in content


def test_history_names_corners_shows_the_best_so_far_and_what_had_no_value():
    trials = points()
    figure = search_history(trials, RECALL)
    assert {"Course of the search: 10 complete of 12 trials", "low_high", "symbolic", "pruned", "failed"} <= shown(
        figure
    )
    line = next(line for line in figure.axes[0].lines if line.get_label() == "best so far")
    ended = complete(trials, "head_recall")
    slow = [max(point.values["head_recall"] for point in ended[: place + 1]) for place in range(len(ended))]
    heights = dict(zip(*line.get_data(), strict=True))  # the last height at a place is the one after the step
    assert [heights[point.number] for point in ended] == slow


def test_the_best_so_far_of_a_cost_falls():
    line = next(line for line in search_history(points(), COST).axes[0].lines if line.get_label() == "best so far")
    heights = line.get_ydata()
    assert all(after <= before for before, after in itertools.pairwise(heights))
    assert heights[-1] == min(point.values["seconds"] for point in complete(points(), "seconds"))


def test_importance_names_its_method_and_lists_the_greatest_first():
    figure = FIGURES["importance"](points())
    assert "Importance of knobs for head recall\nfANOVA, n = 9 complete trials, x" in shown(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a"]


def test_a_slice_holds_the_trials_that_have_its_knob():
    figure = FIGURES["slices"](points())
    assert {"wording", "templates (n = 8)", "Head recall over each knob, n = 10 complete trials"} <= shown(figure)
    panel = next(axes for axes in figure.axes if axes.get_title() == "templates (n = 8)")
    drawn = np.concatenate([marks.get_offsets() for marks in panel.collections])
    real = [(p.params["templates"], p.values["head_recall"]) for p in complete(points()) if "templates" in p.params]
    assert sorted(map(tuple, drawn.tolist())) == sorted(real)
    assert panel.get_xscale() == "log"


def test_the_line_in_a_slice_is_the_median_of_each_choice():
    panel = FIGURES["slices"](points()).axes[0]
    medians = [lines.get_segments()[0][0][1] for lines in panel.collections if hasattr(lines, "get_segments")]
    for choice, drawn in zip(WORDING.choices, medians, strict=True):
        own = [point.values["head_recall"] for point in complete(points()) if point.params["wording"] == choice]
        assert drawn == pytest.approx(np.median(own))


def test_contours_leave_no_hole_where_the_values_are_at_the_end_of_the_scale():
    places = [(0.0, 1), (1.0, 1), (0.0, 9), (1.0, 9), (0.5, 3)]
    trials = [
        SearchPoint(
            number=number,
            state="complete",
            params={"share": x, "templates": y},
            values={"head_recall": 0.5 if number == 4 else 1.0},
        )
        for number, (x, y) in enumerate(places)
    ]
    panel = search_contours(trials, [(SHARE, TEMPLATES)], RECALL).axes[0]
    (filled,) = [one for one in panel.collections if hasattr(one, "levels")]
    assert filled.levels[0] < 0.5
    assert filled.levels[-1] > 1.0


def test_contours_need_four_places_that_span_a_plane():
    def at(*places):
        return [SearchPoint(number=i, state="complete", params={"share": x, "templates": y}) for i, (x, y) in places]

    pair = (SHARE, TEMPLATES)
    assert spans_a_plane(at(*enumerate([(0, 1), (1, 1), (0, 2), (1, 3)])), pair)
    assert not spans_a_plane(at(*enumerate([(0, 1), (1, 1), (0, 2)])), pair)
    assert not spans_a_plane(at(*enumerate([(0, 1), (1, 1), (0, 2), (0, 2)])), pair)
    assert not spans_a_plane(at(*enumerate([(0, 1), (1, 2), (2, 4), (3, 8)])), pair)  # on a line, as the axis is drawn
    assert not spans_a_plane(at(*enumerate([(0, 1), (0, 2), (0, 4), (0, 5)])), pair)


@pytest.mark.parametrize("goals", [(RECALL, COST), (COST, RECALL), (RECALL, Goal(name="seconds"))])
def test_the_front_is_what_no_trial_beats(goals):
    trials = complete(points(60), "head_recall", "seconds")

    def better(one, other):
        signs = [1 if goal.maximize else -1 for goal in goals]
        gains = [
            sign * (one.values[goal.name] - other.values[goal.name]) for sign, goal in zip(signs, goals, strict=True)
        ]
        return min(gains) >= 0 and max(gains) > 0

    slow = {point.number for point in trials if not any(better(other, point) for other in trials)}
    assert {point.number for point in pareto_front(trials, goals)} == slow
    assert len(slow) > 1


def test_of_equal_trials_the_first_is_on_the_front():
    same = [SearchPoint(number=i, state="complete", values={"head_recall": 1.0, "seconds": 2.0}) for i in (1, 0, 2)]
    assert [point.number for point in pareto_front(same, (RECALL, COST))] == [0]


def test_the_front_names_its_trials_and_the_corners():
    trials = points()
    figure = pareto_plot(trials, (RECALL, COST))
    front = pareto_front(complete(trials, "head_recall", "seconds"), (RECALL, COST))
    named = {point.corner or f"trial {point.number}" for point in front} | {"low_high", "symbolic"}
    assert named | {"Head recall against seconds, n = 10 complete trials", "seconds (lower is better)"} <= shown(figure)


def test_a_stair_holds_each_height_until_the_next_place():
    assert steps([0, 2, 5], [1, 3, 3]) == [(0, 1), (2, 1), (2, 3), (5, 3), (5, 3)]
    assert steps([4], [1]) == [(4, 1)]


def test_one_trial_is_enough_for_all_but_contours():
    trials = points(1)
    for name in ("history", "pareto"):
        assert "low_high" in shown(FIGURES[name](trials))
    assert "wording" in shown(search_slices(trials, [WORDING], RECALL))
