"""Tables at the edge: a million rows, rows in any order, work in parts of any size."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rhstudy.stats.analysis import analyze_arms
from rhstudy.stats.cells import cells_of, point_arms
from rhstudy.stats.correlation import correlate
from rhstudy.stats.frame import recipe_points, validate_frame
from rhstudy.stats.gain import left_out_gain
from rhstudy.stats.pooled import pooled_slope
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings(num_permutations=300, num_resamples=300, num_power_draws=200)


def test_a_million_rows_have_a_slope_and_say_what_is_not_computed():
    rng, recipes, seeds = np.random.default_rng(0), 25_000, 40
    recall = rng.random(recipes).repeat(seeds)
    f1 = np.clip(0.2 + 0.4 * recall + 0.1 * rng.standard_normal(recipes * seeds), 0, 1)
    names = np.array([f"r{index:05d}" for index in range(recipes)]).repeat(seeds)
    columns = {"recipe": names, "seed": np.tile(np.arange(seeds), recipes), "head_recall": recall, "f1": f1}
    frame = validate_frame(pd.DataFrame({"task": "t", "model": "m", **columns}))
    cells = cells_of(point_arms(frame), ["head_recall"])
    found = pooled_slope(cells, "head_recall", seed=0, settings=SETTINGS)
    means = [values.reshape(recipes, seeds).mean(axis=1) for values in (recall, f1)]
    assert found["slope"]["estimate"] == pytest.approx(np.polyfit(*means, 1)[0], abs=1e-10)
    assert found["clustered"]["low"] < 0.4 < found["clustered"]["high"]
    assert found["slope"]["p"] == pytest.approx(1 / 301)
    assert "a wild cluster bootstrap takes 2 to 500 recipes, there are 25000" in found["slope"]["reason"]
    points = recipe_points(frame, "head_recall")
    rank = correlate(points.x, points.f1, seed=0, settings=SETTINGS)
    assert (rank.n, rank.reason) == (recipes, "no interval: no bootstrap is drawn of more than 2000 units")
    assert left_out_gain(cells, (), "head_recall", settings=SETTINGS).reason == (
        "leaving one recipe out takes 3 to 20000 recipes, there are 25000"
    )


def rounded(analysis):
    """Floats to nine digits: parts of other sizes are summed in another order."""
    return json.loads(json.dumps(analysis), parse_float=lambda text: float(f"{float(text):.9g}"))


def test_neither_the_order_of_rows_nor_the_size_of_parts_changes_a_number(make_study, monkeypatch):
    """What is drawn in parts is drawn alike whatever their size: no number depends on memory or on who works."""
    frame, predictions = make_study(12)
    found = analyze_arms(frame, predictions, seed=0, settings=SETTINGS)
    for name in ("permutation._MAX_HELD", "power._MAX_HELD", "intervals._MAX_HELD"):
        monkeypatch.setattr(f"rhstudy.stats.{name}", 999)
    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    again = analyze_arms(shuffled, predictions, seed=0, settings=SETTINGS)
    assert rounded(found) == rounded(again)
