"""Costs with intervals: sums by hand, the textbook case of two means, coverage on made-up models and rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.intervals import mean_interval
from rhstudy.stats.signal_costs import combination, cost_at, known_rows, saved_seconds
from rhstudy.stats.statistic import Statistic, undefined


def part(estimate: float, low: float, high: float, reason: str = "") -> Statistic:
    return Statistic(estimate=estimate, low=low, high=high, n=12, method="m", reason=reason)


def test_the_ends_of_a_sum_are_put_together_by_their_squares():
    found = combination([(2.0, part(10.0, 8.0, 11.0)), (-1.0, part(5.0, 1.0, 6.0))], "m", shift=3.0)
    assert found.estimate == 18.0
    assert found.low == pytest.approx(18 - math.hypot(2 * 2, 1))
    assert found.high == pytest.approx(18 + math.hypot(2 * 1, 4))
    alone = combination([(3.0, part(10.0, 8.0, 11.0))], "m")
    assert (alone.low, alone.high) == pytest.approx((24.0, 33.0))
    assert combination([(1.0, part(1.0, -9.0, 2.0))], "m", least=0.0).low == 0.0


def test_of_two_means_it_is_nearly_welchs_interval():
    draws = np.random.default_rng(0)
    first, second = draws.normal(5, 1, 200).tolist(), draws.normal(3, 4, 300).tolist()
    found = combination([(1.0, mean_interval(first, 0.95)), (-1.0, mean_interval(second, 0.95))], "difference")
    expected = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_a_part_without_an_end_leaves_that_end_open_and_says_why():
    open_ended = part(40.0, 20.0, math.nan, "no upper end: the interval of rho reaches 0")
    up = combination([(1.0, open_ended), (1.0, part(5.0, 4.0, 6.0))], "m")
    assert (up.estimate, up.low) == (45.0, pytest.approx(45 - math.hypot(20, 1)))
    assert math.isnan(up.high)
    assert "reaches 0" in up.reason
    down = combination([(-1.0, open_ended)], "m")
    assert math.isnan(down.low)
    assert down.high == pytest.approx(-20.0)
    assert combination([(1.0, part(5.0, 4.0, 6.0)), (1.0, undefined("none", n=0, method="m"))], "m").reason == "none"


def test_a_cost_is_rows_times_seconds_and_with_its_training_that_of_a_trial():
    rows, seconds, training = part(40.0, 30.0, 60.0), [0.4, 0.5, 0.6], [10.0, 14.0, 12.0]
    cost = cost_at(rows, seconds, 0.95, what="recall")
    timed = mean_interval([40 * value for value in seconds], 0.95)
    assert cost.estimate == pytest.approx(20.0)
    assert cost.low == pytest.approx(20 - math.hypot(20 - timed.low, 0.5 * 10))
    assert cost.high == pytest.approx(20 + math.hypot(timed.high - 20, 0.5 * 20))
    trial = cost_at(rows, seconds, 0.95, what="recall", once=training)
    whole = mean_interval([26.0, 34.0, 36.0], 0.95)
    assert trial.estimate == pytest.approx(32.0)
    assert trial.high == pytest.approx(32 + math.hypot(whole.high - 32, 0.5 * 20))
    exact = cost_at(known_rows(40), seconds, 0.95, what="recall")
    assert (exact.low, exact.high) == pytest.approx((max(0.0, timed.low), timed.high))


def test_what_is_not_known_has_no_cost():
    rows = part(40.0, 30.0, 60.0)
    assert cost_at(undefined("no rows", n=3, method="m"), [0.4, 0.5], 0.95, what="F1").reason == "no rows"
    assert "the cost of F1 is not known" in cost_at(rows, [math.nan], 0.95, what="F1").reason
    one = cost_at(rows, [0.5, math.nan], 0.95, what="F1")
    assert one.estimate == 20.0
    assert "at least 2 examples" in one.reason


def test_what_is_saved_counts_every_model_and_the_reference_once():
    own, other, once = part(12.0, 10.0, 15.0), part(20.0, 17.0, 21.0), part(12.0, 12.0, 12.0)
    saved = saved_seconds(own, other, once, 15, 2)
    assert saved.estimate == 30 * 8 - 12
    assert saved.low == pytest.approx(228 - 30 * math.hypot(3, 3))
    assert saved.high == pytest.approx(228 + 30 * math.hypot(1, 2))
    assert saved_seconds(other, own, None, 30, 1).estimate == -240.0


def test_intervals_of_trials_cover_what_the_models_and_the_rows_truly_cost():
    # Seconds of training and of a row go together (a busy machine); the rows needed come with a normal error.
    draws, covered, runs = np.random.default_rng(1), 0, 600
    for _ in range(runs):
        busy = draws.gamma(9, 1 / 9, 10)
        rows = 100 + draws.normal(0, 20)
        needed = part(rows, rows - 1.96 * 20, rows + 1.96 * 20)
        found = cost_at(needed, list(0.2 * busy), 0.95, what="recall", once=list(12 * busy))
        covered += found.low <= 12 + 100 * 0.2 <= found.high
    assert 0.92 < covered / runs < 0.98
