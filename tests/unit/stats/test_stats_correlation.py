"""Spearman, permutation p and power against full enumeration, scipy and published tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.correlation import correlate
from rhstudy.stats.permutation import permutation_p, row_spearman
from rhstudy.stats.power import critical_value, smallest_detectable_rho, spearman_power
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings(num_permutations=2000, num_resamples=1000, num_power_draws=1000)


def test_row_spearman_equals_scipy_row_by_row():
    x, y = np.round(np.random.default_rng(0).random((2, 30, 8)), 1)
    expected = [scipy_stats.spearmanr(a, b)[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(row_spearman(x, y), expected, atol=1e-10)
    assert np.isnan(row_spearman(np.ones((1, 4)), np.arange(4.0)[None])).all()


@pytest.mark.parametrize("n", [3, 4, 5, 6])
@pytest.mark.parametrize("decimals", [1, 9])
def test_exact_p_is_full_enumeration(n, decimals):
    x, y = np.round(np.random.default_rng(n).random((2, n)), decimals)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        pytest.skip("constant draw")
    observed = abs(scipy_stats.spearmanr(x, y)[0])
    hits = [
        abs(scipy_stats.spearmanr(x, y[list(order)])[0]) >= observed - 1e-9
        for order in itertools.permutations(range(n))
    ]
    p, method = permutation_p(x, y, seed=0, num_draws=10)
    assert p == pytest.approx(np.mean(hits), abs=1e-10)
    assert method == "exact permutation"


def test_exact_p_equals_scipys_exact_permutation_test():
    x, y = np.random.default_rng(3).random((2, 7))
    theirs = scipy_stats.permutation_test(
        (x,),
        lambda a: abs(scipy_stats.spearmanr(a, y)[0]),
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert permutation_p(x, y, seed=0, num_draws=10)[0] == pytest.approx(theirs.pvalue, abs=1e-10)


def test_exact_p_at_five_recipes_needs_perfect_order():
    order = np.arange(5.0)
    assert permutation_p(order, order, seed=0, num_draws=10)[0] == pytest.approx(2 / 120)
    assert permutation_p(order, np.array([0, 1, 2, 4, 3.0]), seed=0, num_draws=10)[0] > 0.05


def test_monte_carlo_p_is_close_to_the_exact_one_seeded_and_never_zero():
    x, y = np.random.default_rng(4).random((2, 8))
    exact, _ = permutation_p(x, y, seed=0, num_draws=10)
    drawn, method = permutation_p(x, y, seed=0, num_draws=20_000, max_exact_n=3)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert method == "Monte-Carlo permutation (20000 draws)"
    assert permutation_p(x, y, seed=0, num_draws=20_000, max_exact_n=3)[0] == drawn
    order = np.arange(30.0)
    assert permutation_p(order, order, seed=0, num_draws=999)[0] == 1 / 1000


def test_correlate_small_n_has_exact_p_and_a_nan_interval_with_the_reason():
    x, y = np.random.default_rng(5).random((2, 7))
    found = correlate(x, y, seed=0, settings=SETTINGS)
    assert found.estimate == pytest.approx(scipy_stats.spearmanr(x, y)[0], abs=1e-10)
    assert math.isnan(found.low)
    assert found.reason == "no interval: a bootstrap needs 10 recipes, there are 7"
    assert 0 < found.p <= 1
    assert "exact permutation" in found.method


def test_correlate_large_n_has_an_interval_and_is_seeded():
    rng = np.random.default_rng(6)
    x = np.round(rng.random(20), 1)
    y = x + 0.3 * rng.random(20)
    found = correlate(x, y, seed=1, settings=SETTINGS)
    assert found.low < found.estimate < found.high
    assert found.reason == ""
    assert found.warnings[0].startswith("the predictor has ties: ")
    assert found == correlate(x, y, seed=1, settings=SETTINGS)
    assert found.low != correlate(x, y, seed=2, settings=SETTINGS).low


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "a correlation needs 3 recipes, there are 0"),
        ([1.0, 2.0], [1.0, 2.0], "a correlation needs 3 recipes, there are 2"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "every recipe has the same predictor value"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "every recipe has the same F1"),
    ],
)
def test_correlate_undefined(x, y, reason):
    found = correlate(np.array(x), np.array(y), seed=0, settings=SETTINGS)
    assert found.reason == reason
    assert all(math.isnan(value) for value in (found.estimate, found.low, found.high, found.p))
    assert found.json()["p"] is None


@pytest.mark.parametrize(("n", "value"), [(5, 1.0), (6, 0.886), (7, 0.786), (8, 0.738), (9, 0.700)])
def test_critical_values_are_the_published_exact_ones(n, value):
    assert critical_value(n, alpha=0.05, seed=0) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("n", "rho"), [(20, 0.60), (30, 0.50), (60, 0.36)])
def test_detectable_rho_agrees_with_fishers_approximation(n, rho):
    found = smallest_detectable_rho(n, seed=0)
    assert found.value == pytest.approx(rho, abs=0.02)
    fisher = math.tanh((1.96 + 0.8416) * math.sqrt(1.06 / (n - 3)))
    assert found.value == pytest.approx(fisher, abs=0.03)


def test_detectable_rho_has_the_power_it_promises():
    found = smallest_detectable_rho(12, seed=0)
    x, noise = np.random.default_rng(99).standard_normal((2, 4000, 12))
    power = spearman_power(found.value, critical_value(12, alpha=0.05, seed=0), x, noise)
    assert power == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("n", "reason"),
    [
        (3, "a power calculation needs 4 recipes, there are 3"),
        (4, "at 4 recipes even a perfect order has p > 0.05"),
    ],
)
def test_detectable_rho_undefined(n, reason):
    assert smallest_detectable_rho(n, seed=0).reason == reason


def test_very_many_recipes_are_tested_without_bootstrap_and_with_power_in_closed_form():
    rng = np.random.default_rng(3)
    x, noise = rng.random((2, 2001))
    found = correlate(x, x + noise, seed=0, settings=StatisticsSettings(num_permutations=500))
    assert found.estimate == pytest.approx(scipy_stats.spearmanr(x, x + noise)[0], abs=1e-10)
    assert found.reason == "no interval: no bootstrap is drawn of more than 2000 units"
    assert found.p == pytest.approx(1 / 501)
    simulated, closed = (smallest_detectable_rho(n, seed=0, num_draws=1000).value for n in (300, 301))
    assert closed == pytest.approx(simulated, abs=0.015)
    assert permutation_p(np.arange(300_000.0), rng.random(300_000), seed=0, num_draws=10_000)[1] == (
        "Monte-Carlo permutation (199 draws)"
    )  # fmt: skip
