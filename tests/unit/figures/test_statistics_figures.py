"""The plots of an analysis show the numbers they were given, and say what is missing."""

from __future__ import annotations

import math

import numpy as np

from rhstudy.figures import ForestRow, ceiling_plot, forest, forest_row, residual_plot, save_png, slope_rows


def test_a_forest_has_a_line_per_estimate(tmp_path):
    rows = [
        ForestRow(label="recall", estimate=0.5, low=0.2, high=0.8, is_claim=True),
        ForestRow(label="rival", estimate=-0.1, low=math.nan, high=math.nan),
        forest_row("nothing", {"estimate": None, "low": None, "high": None}),
    ]
    figure = forest(rows, title="t", label="rho")
    (axes,) = figure.axes
    assert [item.get_text() for item in axes.get_yticklabels()] == ["recall", "rival", "nothing (n/a)"]
    (bar,) = axes.collections
    np.testing.assert_allclose(bar.get_segments()[0], [[0.2, 0], [0.8, 0]])
    marks = [tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0]))) for line in axes.lines[:2]]
    assert marks == [(0.5, 0.0), (-0.1, 1.0)]
    save_png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert forest([], title="t", label="rho").axes


def test_slopes_of_a_subset_that_is_the_whole_are_shown_once():
    record = {"estimate": 0.1, "low": 0.0, "high": 0.2}
    side = {
        "slope": record,
        "clustered": record,
        "sensitivity": {"mixed": record, "gee": record},
        "recipes": ["a", "b"],
    }
    analysis = {"pooled": {"all": side, "without_flagged": side}}
    assert len(slope_rows(analysis)) == 4
    analysis["pooled"]["without_flagged"] = {**side, "recipes": ["a"]}
    assert len(slope_rows(analysis)) == 8


def test_residuals_are_where_they_are_and_the_largest_are_named():
    points = [
        {"recipe": f"r{i}", "group": "ab"[i % 2], "fitted": 0.1 * i, "residual": (-1) ** i * 0.01 * i} for i in range(8)
    ]
    (axes,) = residual_plot(points, predictor="head_recall").axes
    shown = np.concatenate([item.get_offsets() for item in axes.collections])
    assert sorted(map(tuple, shown.tolist())) == sorted((p["fitted"], p["residual"]) for p in points)
    assert {text.get_text() for text in axes.texts} == {f"r{i}" for i in range(3, 8)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert "8 cells" in axes.get_title()


def test_the_ceiling_stands_beside_the_arms():
    arm = {"is_reference": False, "is_untuned": False, "head_recall": 0.4, "cosine": None}
    group = {
        "task": "t",
        "model": "m",
        "arms": [arm, {**arm, "head_recall": 0.6}, {**arm, "is_reference": True, "head_recall": 1.0}],
        "noise_ceiling": {"head_recall": 0.9, "cosine": 0.8},
    }
    (axes,) = ceiling_plot(group, ["head_recall", "cosine"]).axes
    assert list(axes.lines[0].get_xdata()) == [0.4, 0.6]
    assert list(axes.lines[1].get_xdata()) == [0.9]
    assert np.isnan(axes.lines[2].get_xdata()).all()
    assert list(axes.lines[3].get_xdata()) == [0.8]
