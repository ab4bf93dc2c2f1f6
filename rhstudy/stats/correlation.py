"""Rank correlation of a predictor with F1 over recipes: the estimate, its permutation p and its bootstrap interval."""

from __future__ import annotations

import numpy as np

from rhstudy.heads.sets import spearman
from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.intervals import Bounds, recipe_bounds
from rhstudy.stats.permutation import permutation_p, row_spearman
from rhstudy.stats.power import smallest_detectable_rho
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

MIN_CORRELATION_N = 3


def correlate(
    x: Float[np.ndarray, " units"], y: Float[np.ndarray, " units"], *, seed: int, settings: StatisticsSettings
) -> Statistic:
    """Spearman's rho of x and y over units (recipes) with permutation p and BCa interval.

    Args:
        x: the predictor, finite.
        y: mean F1, finite.
        seed: root seed of permutations and resamples.
        settings: levels, draws and limits.

    Returns:
        All NaN with a reason for fewer than 3 units or a constant side; the interval NaN with a reason below
        `settings.min_bootstrap_n` units.
    """
    method, n = "Spearman", len(x)
    rho = spearman(x, y)
    if n < MIN_CORRELATION_N:
        rho = Estimate.undefined(f"a correlation needs {MIN_CORRELATION_N} recipes, there are {n}")
    elif rho.reason:
        rho = Estimate.undefined(f"every recipe has the same {'predictor value' if np.ptp(x) == 0 else 'F1'}")
    if rho.reason:
        return undefined(rho.reason, n=n, method=method, tested=True, seed=seed)
    p, test = permutation_p(x, y, seed=seed, num_draws=settings.num_permutations, max_exact_n=settings.max_exact_n)
    bounds = _bootstrap(x, y, seed, settings)
    interval = "no interval" if bounds.reason else f"BCa bootstrap over recipes ({settings.num_resamples} resamples)"
    return Statistic(
        estimate=rho.value,
        low=bounds.low,
        high=bounds.high,
        n=n,
        method=f"{method}, {test}, {interval}",
        p=p,
        seed=seed,
        reason=f"no interval: {bounds.reason}" if bounds.reason else "",
        warnings=(*_tie_warnings(x, y), *bounds.warnings),
    )


def _bootstrap(
    x: Float[np.ndarray, " units"], y: Float[np.ndarray, " units"], seed: int, settings: StatisticsSettings
) -> Bounds:
    return recipe_bounds(
        lambda rows: row_spearman(x[rows], y[rows]),
        len(x),
        draws=generator(seed, "bootstrap"),
        num_resamples=settings.num_resamples,
        settings=settings,
    )


def _tie_warnings(x: Float[np.ndarray, " units"], y: Float[np.ndarray, " units"]) -> tuple[str, ...]:
    distinct = {"the predictor": len(np.unique(x)), "F1": len(np.unique(y))}
    return tuple(f"{name} has ties: {count} distinct values" for name, count in distinct.items() if count < len(x))


def detectable(n: int, *, seed: int, settings: StatisticsSettings) -> Estimate:
    """The power figure printed beside a correlation over n recipes; see `smallest_detectable_rho`."""
    return smallest_detectable_rho(
        n, alpha=settings.alpha, power=settings.power, seed=seed, num_draws=settings.num_power_draws
    )
