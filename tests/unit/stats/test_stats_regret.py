"""Regret against a slow bootstrap, luck of the best of noise, and what a signal costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.stats.regret import cross_fitted_regret, regret
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings(num_resamples=2000)


def f1_of(means, num_seeds=1, num_rows=80, seed=0):
    draws = np.random.default_rng(seed)
    return [np.clip(draws.normal(mean, 0.2, (num_seeds, num_rows)), 0, 1) for mean in means]


def test_regret_is_the_best_mean_minus_that_of_the_choice():
    f1 = f1_of([0.3, 0.6, 0.45])
    means = [float(rows.mean()) for rows in f1]
    found = regret(f1, [2], seed=0, settings=SETTINGS)
    assert found.estimate == pytest.approx(means[1] - means[2])
    assert 0 < found.low < found.estimate < found.high
    assert regret(f1, [1], seed=0, settings=SETTINGS).estimate == 0
    assert regret(f1, [0, 2], seed=0, settings=SETTINGS).estimate == pytest.approx(means[1] - (means[0] + means[2]) / 2)
    assert regret(f1, [0, 2], best_of=True, seed=0, settings=SETTINGS).estimate == pytest.approx(means[1] - means[2])


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_interval_is_that_of_a_slow_bootstrap(num_seeds):
    f1 = f1_of([0.3, 0.6, 0.45], num_seeds)
    draws, values = np.random.default_rng(1), []
    for _ in range(3000):
        rows = draws.integers(0, 80, 80)
        means = [f1_seeds[draws.integers(0, num_seeds, num_seeds)][:, rows].mean() for f1_seeds in f1]
        values.append(max(means) - means[0])
    found = regret(f1, [0], seed=0, settings=SETTINGS)
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert ("rows and seeds" in found.method) == (num_seeds > 1)


def test_the_best_of_equals_is_lucky_and_cross_fitting_takes_that_away():
    plain, fitted = [], []
    for seed in range(30):
        f1 = f1_of([0.5] * 8, seed=seed)
        plain.append(regret(f1, [0], seed=0, settings=StatisticsSettings(num_resamples=100)).estimate)
        fitted.append(cross_fitted_regret(f1, [0], seed=0).value)
    assert np.mean(plain) > 0.02
    assert abs(np.mean(fitted)) < 0.01


def test_what_has_no_regret_says_why():
    f1 = f1_of([0.3, 0.6])
    assert regret(f1, [], seed=0, settings=SETTINGS).reason == "nothing was chosen"
    assert regret([], [], seed=0, settings=SETTINGS).reason == "no recipe was evaluated"
    one = regret(f1_of([0.3, 0.6], num_rows=1), [0], seed=0, settings=SETTINGS)
    assert one.estimate > 0
    assert math.isnan(one.low)
    assert cross_fitted_regret(f1, [], seed=0).reason == "nothing was chosen"
    assert "at least 2 rows" in cross_fitted_regret(f1_of([0.3], num_rows=1), [0], seed=0).reason
    with pytest.raises(InputError, match=r"choices must be below 2, got \[2\]"):
        regret(f1, [2], seed=0, settings=SETTINGS)
