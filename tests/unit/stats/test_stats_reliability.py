"""Rows that a ranking needs: the textbook formula, splits against a slow version, simulated recipes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.stats import reliability
from rhstudy.stats.reliability import (
    MIN_ROWS,
    NUM_SPLITS,
    first_crossing,
    rank_reliability,
    rows_needed,
    spearman_brown,
)
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.two_way import two_way_bounds

SETTINGS = StatisticsSettings(num_resamples=400)


def noisy(num_recipes: int, num_rows: int, noise: float, seed: int) -> np.ndarray:
    """Recipes of variance 1 seen through rows of variance `noise` squared: reliability n / (n + noise^2) at n rows."""
    draws = np.random.default_rng(seed)
    return draws.normal(size=(num_recipes, 1)) + noise * draws.normal(size=(num_recipes, num_rows))


def reliability_of(values: np.ndarray, target: float = 0.9):
    def mean(rows):
        return values[:, rows].mean(axis=1)

    return rank_reliability(mean, values.shape[1], target=target, seed=0, settings=SETTINGS)


@pytest.mark.parametrize("reliability", [0.2, 0.6, 0.95])
def test_the_rows_needed_are_those_that_spearman_brown_takes_to_the_target(reliability):
    rows = rows_needed(reliability, 50, 0.9).value
    assert spearman_brown(reliability, rows / 50) == pytest.approx(0.9)
    assert spearman_brown(0.5, 2) == pytest.approx(2 / 3)


def test_no_number_of_rows_is_given_where_there_is_none():
    assert "do not agree" in rows_needed(0.0, 50, 0.9).reason
    assert "not known" in rows_needed(math.nan, 50, 0.9).reason
    assert rows_needed(1.0, 50, 0.9).value == 1.0


def test_the_reliability_is_the_mean_over_disjoint_halves():
    values = noisy(12, 41, 2.0, 3)
    draws, expected = generator(0, "rank_reliability", 20), []
    for _ in range(NUM_SPLITS):
        order = draws.permutation(41)
        first, second = order[:20], order[20:40]
        assert not set(first) & set(second)
        expected.append(scipy_stats.spearmanr(values[:, first].mean(axis=1), values[:, second].mean(axis=1))[0])
    found = reliability_of(values)
    assert found.half.estimate == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.half.low < found.half.estimate < found.half.high
    assert found.needed.estimate == pytest.approx(rows_needed(float(np.mean(expected)), 20, 0.9).value)
    assert found.needed.low == pytest.approx(rows_needed(found.half.high, 20, 0.9).value)
    assert [size for size, _ in found.curve] == [5, 10, 15, 20]


def test_simulated_recipes_need_the_rows_that_their_noise_asks_for():
    # Reliability n / (n + 9) is 0.9 at 81 rows; the correlation of ranks is a little lower than that of values.
    found = [reliability_of(noisy(60, 300, 3.0, seed)) for seed in range(6)]
    assert 75 < np.median([item.needed.estimate for item in found]) < 115
    assert 75 < np.nanmedian([item.direct.value for item in found]) < 115
    assert sum(item.needed.low <= 90 <= item.needed.high for item in found) >= 4


def test_the_interval_leaves_out_each_recipe_and_each_group_of_rows(monkeypatch):
    monkeypatch.setattr(reliability, "NUM_SPLITS", 3)
    monkeypatch.setattr(reliability, "NUM_GROUPS", 4)
    values = noisy(11, 21, 2.0, 3)
    draws = generator(0, "rank_reliability", 10)
    orders = [draws.permutation(21) for _ in range(3)]
    group = generator(0, "rank_reliability", "groups").permutation(21) % 4

    def slow(recipes, rows):
        found = []
        for order in orders:
            halves = ([row for row in half if row in rows] for half in (order[:10], order[10:20]))
            first, second = (values[recipes][:, half].mean(axis=1) for half in halves)
            found.append(scipy_stats.spearmanr(first, second)[0])
        return np.mean(found)

    every = slow(range(11), range(21))
    z = [math.atanh(slow([one for one in range(11) if one != left], range(21))) for left in range(11)]
    of_rows = [math.atanh(slow(range(11), [row for row in range(21) if group[row] != left])) for left in range(4)]
    variance = 10 / 11 * sum((one - np.mean(z)) ** 2 for one in z)
    variance += 3 / 4 * sum((one - np.mean(of_rows)) ** 2 for one in of_rows)
    middle, half = 11 * math.atanh(every) - 10 * np.mean(z), scipy_stats.t.ppf(0.975, 10) * math.sqrt(variance)
    found = reliability_of(values).half
    assert found.estimate == pytest.approx(every, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((math.tanh(middle - half), math.tanh(middle + half)), abs=1e-9)


def test_the_interval_covers_where_rows_differ_in_how_well_they_tell_recipes_apart(monkeypatch):
    monkeypatch.setattr(reliability, "NUM_SPLITS", 5)
    monkeypatch.setattr(reliability, "NUM_GROUPS", 10)
    found = []
    for seed in range(40):
        draws = np.random.default_rng(seed)
        told = draws.exponential(size=40) ** 2
        found.append(reliability_of(draws.normal(size=(12, 1)) * told + 3 * draws.normal(size=(12, 40))).half)
    truth = np.mean([one.estimate for one in found])
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.9  # over recipes alone: 0.83


def test_an_interval_needs_values_that_differ_and_rows():
    same = np.full(12, 0.5)
    assert "changes it" in two_way_bounds(0.5, same, same, 0.95).reason
    assert "undefined when" in two_way_bounds(0.5, same, np.array([0.4, math.nan]), 0.95).reason
    sure = two_way_bounds(1.0, np.ones(12), np.array([1.0, 0.9]), 0.95)
    assert -1 < sure.low < sure.high <= 1
    few = reliability_of(noisy(12, MIN_ROWS - 1, 0.5, 0)).half
    assert few.estimate > 0
    assert "needs 10 rows, there are 9" in few.reason


def test_what_has_no_reliability_says_why():
    assert "at least 2 rows" in reliability_of(noisy(12, 1, 1.0, 0)).needed.reason
    assert "needs 3 recipes" in reliability_of(noisy(2, 20, 1.0, 0)).needed.reason
    assert "every recipe the same value" in reliability_of(np.ones((12, 20))).needed.reason
    few = reliability_of(noisy(5, 40, 1.0, 0))
    assert few.needed.estimate > 0
    assert math.isnan(few.needed.low)
    assert "needs 10 recipes" in few.needed.reason
    unknown = reliability_of(np.full((12, 20), np.nan))
    assert unknown.json()["needed"]["estimate"] is None
    assert unknown.json()["direct"] is None


def test_an_interval_that_reaches_zero_has_no_upper_end():
    found = reliability_of(noisy(12, 40, 5.0, 1))
    assert found.half.low <= 0 < found.half.estimate
    assert math.isnan(found.needed.high)
    assert found.needed.low > 0
    assert "no upper end" in found.needed.reason


def test_the_curve_is_read_between_its_points():
    assert first_crossing([(10, 0.5), (20, 1.0)], 0.9).value == pytest.approx(18.0)
    assert first_crossing([(10, math.nan), (20, 0.95)], 0.9).value == 20.0
    assert "with 20 rows" in first_crossing([(10, 0.2), (20, 0.4)], 0.9).reason
    assert "no number of rows" in first_crossing([(10, math.nan)], 0.9).reason


def test_a_target_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"reliability must be in \(0, 1\), got 1\.0"):
        reliability_of(noisy(5, 20, 1.0, 0), 1.0)
