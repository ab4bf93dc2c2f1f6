"""Intervals against scipy, statsmodels' other routes and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.stats.intervals import bca_interval, mean_interval, paired_difference, share_interval
from rhstudy.stats.permutation import row_spearman


def bca(x, y, seed=0, num=999, level=0.95):
    draws = np.random.Generator(np.random.PCG64(seed))
    return bca_interval(
        lambda rows: row_spearman(x[rows], y[rows]), len(x), draws=draws, num_resamples=num, level=level
    )


@pytest.mark.parametrize("n", [10, 20, 33])
def test_bca_equals_scipy_given_the_same_draws(n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal(n)
    y = x + rng.standard_normal(n)
    theirs = scipy_stats.bootstrap(
        (x, y),
        lambda a, b, axis: row_spearman(np.atleast_2d(a), np.atleast_2d(b))[0 if a.ndim == 1 else slice(None)],
        paired=True,
        vectorized=True,
        n_resamples=999,
        method="BCa",
        rng=np.random.Generator(np.random.PCG64(0)),
    ).confidence_interval
    ours = bca(x, y)
    assert ours.low == pytest.approx(theirs.low, abs=1e-10)
    assert ours.high == pytest.approx(theirs.high, abs=1e-10)


def test_bca_counts_resamples_tied_with_the_estimate_half():
    values = np.array([0.0] * 9 + [1.0] * 5)
    draws = np.random.Generator(np.random.PCG64(3))
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=999, method="BCa", rng=np.random.Generator(np.random.PCG64(3))
    ).confidence_interval
    ours = bca_interval(lambda rows: values[rows].mean(axis=1), 14, draws=draws, num_resamples=999, level=0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-10)


def test_bca_by_naive_loops():
    rng = np.random.default_rng(5)
    x, y = rng.random((2, 12))
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, 12, (499, 12))
    values = [scipy_stats.spearmanr(x[row], y[row])[0] for row in draws]
    estimate = scipy_stats.spearmanr(x, y)[0]
    jack = [scipy_stats.spearmanr(np.delete(x, i), np.delete(y, i))[0] for i in range(12)]
    deviations = [np.mean(jack) - value for value in jack]
    a = sum(d**3 for d in deviations) / (6 * sum(d**2 for d in deviations) ** 1.5)
    below = (sum(v < estimate - 1e-12 for v in values) + sum(v < estimate + 1e-12 for v in values)) / 2 / 499
    z0 = scipy_stats.norm.ppf(below)
    ends = []
    for q in (0.05, 0.95):
        z = z0 + scipy_stats.norm.ppf(q)
        ends.append(np.quantile(values, scipy_stats.norm.cdf(z0 + z / (1 - a * z))))
    found = bca(x, y, num=499, level=0.9)
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-10)


def test_bca_degenerate_data():
    x = np.arange(12.0)
    assert bca(x, x).reason == "the resamples do not spread around the estimate"
    outlier = np.array([0.0] * 11 + [1.0])
    assert "resamples have no value" in bca(outlier, x).reason
    two = np.array([0.0] * 7 + [1.0] * 2)
    found = bca(two, np.arange(9.0) % 5)
    assert "resamples have no value" in found.reason
    few = np.array([0.0] * 8 + [1.0] * 4)
    found = bca(few, np.arange(12.0) % 5)
    assert found.low < found.high
    assert "resamples have no value and were left out" in found.warnings[0]


def test_bca_undefined_jackknife():
    def statistic(rows):
        return np.where(rows.shape[1] < 5, np.nan, rows.mean(axis=1))

    found = bca_interval(statistic, 5, draws=np.random.default_rng(0), num_resamples=100, level=0.95)
    assert found.reason == "undefined when one unit is left out"


def test_mean_interval_is_students():
    values = np.random.default_rng(0).random(30)
    found = mean_interval(list(values), 0.9)
    expected = scipy_stats.t.interval(0.9, 29, values.mean(), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-10)
    assert (found.estimate, found.n, found.p) == (pytest.approx(values.mean()), 30, None)


@pytest.mark.parametrize(
    ("values", "estimate", "reason"),
    [
        ([], math.nan, "no scored example"),
        ([0.5], 0.5, "an interval needs at least 2 examples"),
        ([0.0, 0.0], 0.0, "every example has the same value: a t interval would have no width"),
    ],
)
def test_mean_interval_undefined(values, estimate, reason):
    found = mean_interval(values, 0.95)
    assert found.estimate == pytest.approx(estimate, nan_ok=True)
    assert math.isnan(found.low)
    assert found.reason == reason


def test_share_interval_is_wilsons():
    found = share_interval([1.0] * 7 + [0.0] * 33, 0.95)
    expected = scipy_stats.binomtest(7, 40).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-10)
    assert share_interval([], 0.95).reason == "no scored example"
    with pytest.raises(InputError, match=r"exact_match must be 0 or 1, got \[0.5\]"):
        share_interval([0.5], 0.95)


def test_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((2, 25))
    named = [{f"e{i}": float(v) for i, v in enumerate(side)} for side in (ours, theirs)]
    found = paired_difference(*named, 0.95)
    test = scipy_stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue, abs=1e-10)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-10)
    assert found.warnings == ()
    partial = paired_difference({**named[0], "extra": 1.0}, named[1], 0.95)
    assert partial.estimate == found.estimate
    assert partial.warnings == ("1 examples are scored in one arm only and were left out",)


def test_paired_difference_undefined():
    assert paired_difference({"a": 1.0}, {"b": 1.0}, 0.95).reason == "no example is scored in both arms"
    alike = paired_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, 0.95)
    assert alike.estimate == 0
    assert math.isnan(alike.p)
    assert alike.reason
