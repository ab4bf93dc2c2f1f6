"""Do the intervals cover and the tests keep their level? By simulation, with errors bars wide enough to be fair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.correlation import correlate
from rhstudy.stats.intervals import bca_interval, mean_interval, paired_difference, share_interval
from rhstudy.stats.permutation import permutation_p, row_spearman
from rhstudy.stats.statistic import StatisticsSettings


def share_within(share, expected, runs, extra=0.0):
    """Within four binomial standard errors of `expected`, plus `extra`."""
    return abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / runs) + extra


@pytest.mark.parametrize("n", [12, 20])
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_bca_interval_of_spearman_covers(n, rho):
    rng, runs, covered = np.random.default_rng(n), 300, 0
    r = 2 * math.sin(math.pi * rho / 6)
    for _ in range(runs):
        x, noise = rng.standard_normal((2, n))
        y = r * x + math.sqrt(1 - r * r) * noise
        ends = bca_interval(
            lambda rows, x=x, y=y: row_spearman(x[rows], y[rows]), n, draws=rng, num_resamples=400, level=0.95
        )
        covered += ends.low <= rho <= ends.high
    assert share_within(covered / runs, 0.95, runs, extra=0.02)


@pytest.mark.parametrize("n", [7, 12])
def test_permutation_test_keeps_its_level(n):
    rng, runs = np.random.default_rng(n), 400
    draws = rng.random((runs, 2, n))
    found = [permutation_p(*pair, seed=run, num_draws=400)[0] for run, pair in enumerate(draws)]
    rejected = np.mean(np.array(found) <= 0.05)
    assert rejected <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert rejected >= 0.01


def test_permutation_test_keeps_its_level_under_heavy_ties():
    rng, runs, rejected = np.random.default_rng(0), 400, 0
    for run in range(runs):
        x, y = np.round(2 * rng.random(12)), rng.random(12)
        rejected += np.ptp(x) > 0 and permutation_p(x, y, seed=run, num_draws=400)[0] <= 0.05
    assert rejected / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


def test_mean_share_and_difference_intervals_cover():
    rng, runs = np.random.default_rng(1), 600
    hits = {"mean": 0, "share": 0, "difference": 0}
    for _ in range(runs):
        f1, other = rng.beta(0.7, 1.3, (2, 80))
        mean = mean_interval(list(f1), 0.95)
        hits["mean"] += mean.low <= 0.35 <= mean.high
        share = share_interval([float(value) for value in rng.random(80) < 0.2], 0.95)
        hits["share"] += share.low <= 0.2 <= share.high
        named = [{str(i): float(v) for i, v in enumerate(side)} for side in (f1, other)]
        difference = paired_difference(*named, 0.95)
        hits["difference"] += difference.low <= 0 <= difference.high
    for count in hits.values():
        assert share_within(count / runs, 0.95, runs, extra=0.01)


def test_monte_carlo_p_agrees_with_scipys_t_approximation_at_n_60():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(60)
    y = 0.3 * x + rng.standard_normal(60)
    found = correlate(x, y, seed=0, settings=StatisticsSettings(num_resamples=500))
    assert found.p == pytest.approx(scipy_stats.spearmanr(x, y).pvalue, abs=0.01)
