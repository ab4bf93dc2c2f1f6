"""What the number of recipes at hand can show: the smallest correlation its test would detect."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student_t

from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.cells import Cells
from rhstudy.stats.permutation import MAX_EXACT_N, all_permutations, row_spearman
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.types import Estimate

MIN_POWER_N = 4
MAX_SIMULATED_N = 300
"""Above this n the power of a rank correlation is that of Fisher's z, without simulation."""
_NUM_NULL_DRAWS = 50_000
_SPEARMAN_VARIANCE = 1.06  # of Fisher's z of Spearman's rho, times n - 3 (Fieller et al. 1957, Biometrika 44:470)
_MAX_HELD = 4_000_000  # simulated numbers in memory at a time
_MIN_STUDIES, _MAX_SIMULATED = 199, 50_000_000  # numbers drawn by one simulation: more would take minutes
_ROUNDING = 1e-9  # attainable values of rho lie further apart than this


@functools.lru_cache(maxsize=64)
def critical_value(n: int, *, alpha: float, seed: int) -> float:
    """Smallest attainable c with P(|rho| >= c) <= alpha for n independent untied pairs; inf where there is none.

    Enumerated up to n = 9, from 50,000 seeded permutations above.
    """
    ranks = np.arange(n) - (n - 1) / 2
    if n <= MAX_EXACT_N:
        permuted = ranks[all_permutations(n)]
    else:
        permuted = generator(seed, "power", "null", n).permuted(np.tile(ranks, (_NUM_NULL_DRAWS, 1)), axis=1)
    values, counts = np.unique(np.round(np.abs(permuted @ ranks) / (ranks @ ranks), 9), return_counts=True)
    tail = counts[::-1].cumsum()[::-1] / counts.sum()
    attained = values[tail <= alpha]
    return float(attained[0]) if len(attained) else float("inf")


def spearman_power(
    rho: float, critical: float, x: Float[np.ndarray, "draws units"], noise: Float[np.ndarray, "draws units"]
) -> float:
    """Share of simulated bivariate normal studies whose |Spearman's rho| reaches `critical`.

    Args:
        rho: population Spearman correlation; Pearson's is 2 sin(π rho / 6) (Kruskal 1958, J. Am. Stat. Assoc. 53:814).
        critical: from `critical_value`.
        x: standard normal, a simulated study a row.
        noise: standard normal, independent of x.
    """
    r = 2 * np.sin(np.pi * rho / 6)
    found = row_spearman(x, r * x + np.sqrt(max(0.0, 1 - r * r)) * noise)
    return float((np.abs(found) >= critical - _ROUNDING).mean())


@functools.lru_cache(maxsize=64)
def smallest_detectable_rho(
    n: int, *, alpha: float = 0.05, power: float = 0.8, seed: int, num_draws: int = 4_000
) -> Estimate:
    """Smallest population |Spearman's rho| that the two-sided permutation test at n units finds with `power`.

    By bisection to 0.001 over bivariate normal studies that share their random numbers, so power rises with rho; its
    simulation error is sqrt(power (1 - power) / num_draws), 0.006 in power or about 0.005 in rho.

    Args:
        n: units (recipes).
        alpha: significance level.
        power: wanted probability of detection.
        seed: root seed of the simulation.
        num_draws: simulated studies.

    Returns:
        NaN with a reason for n < 4, or where even a perfect order is not significant.
    """
    if n < MIN_POWER_N:
        return Estimate.undefined(f"a power calculation needs {MIN_POWER_N} recipes, there are {n}")
    if n > MAX_SIMULATED_N:
        reach = student_t.isf(alpha / 2, n - 2) + ndtri(power)
        return Estimate(round(float(np.tanh(reach * math.sqrt(_SPEARMAN_VARIANCE / (n - 3)))), 3))
    critical = critical_value(n, alpha=alpha, seed=seed)
    if np.isinf(critical):
        return Estimate.undefined(f"at {n} recipes even a perfect order has p > {alpha:g}")
    x, noise = generator(seed, "power", n).standard_normal((2, num_draws, n))
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        reached = spearman_power(middle, critical, x, noise) >= power
        low, high = (low, middle) if reached else (middle, high)
    return Estimate(round(high, 3))


def smallest_detectable_slope(cells: Cells, predictor: str, *, seed: int, settings: StatisticsSettings) -> Estimate:
    """Smallest slope that the restricted permutation test finds with `settings.power` at these very cells.

    Studies are simulated with the predictor as it is and normal errors that have the residuals' variance, shared
    within a recipe as far as the residuals are. The permutation test is stood for by the t test of equal size: a study
    is detected where its slope exceeds the critical value of t (recipes - 2) times the simulated slopes' spread.

    Returns:
        NaN with a reason where the predictor or the residuals do not vary, or for fewer than 4 recipes.
    """
    num = len(cells.clusters)
    if num < MIN_POWER_N:
        return Estimate.undefined(f"a power calculation needs {MIN_POWER_N} recipes, there are {num}")
    x, y = cells.within(cells.predictors[predictor]), cells.within(cells.f1)
    size = float(x @ x)
    residuals = y - x * (float(x @ y) / size if size else 0.0)
    free = cells.n - len(cells.groups) - 1
    if free < 1 or size <= 1e-20 or float(residuals @ residuals) <= 1e-20:
        return Estimate.undefined("the predictor or what it leaves unexplained does not vary")
    variance = float(residuals @ residuals) / free
    shared = shared_variance(residuals, cells) * variance
    alone, together = (generator(seed, "power", "slope", predictor, part) for part in ("cells", "recipes"))
    leaning = np.bincount(cells.cluster, x)
    slopes = np.zeros(max(_MIN_STUDIES, min(settings.num_power_draws, _MAX_SIMULATED // cells.n)))
    chunk = max(1, _MAX_HELD // cells.n)
    for start in range(0, len(slopes), chunk):
        rows = min(chunk, len(slopes) - start)
        own, common = alone.standard_normal((rows, cells.n)) @ x, together.standard_normal((rows, num)) @ leaning
        slopes[start : start + rows] = (math.sqrt(variance - shared) * own + math.sqrt(shared) * common) / size
    spread = float(slopes.std())
    critical = float(student_t.isf(settings.alpha / 2, max(num - 2, 1))) * spread
    low, high = 0.0, 100 * critical
    while high - low > 1e-4 * critical:
        middle = (low + high) / 2
        reached = float((np.abs(middle + slopes) >= critical).mean()) >= settings.power
        low, high = (low, middle) if reached else (middle, high)
    return Estimate(float(high))


def shared_variance(residuals: Float[np.ndarray, " cells"], cells: Cells) -> float:
    """The share of the residuals' variance that a recipe's cells have in common, 0-1 (0 where none has two)."""
    counts = np.bincount(cells.cluster)
    pairs = float((counts * (counts - 1)).sum())
    if pairs == 0:
        return 0.0
    sums = np.bincount(cells.cluster, residuals)
    squares = np.bincount(cells.cluster, residuals**2)
    return float(np.clip((sums**2 - squares).sum() / pairs / (residuals**2).mean(), 0, 1))
