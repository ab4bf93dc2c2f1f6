"""Tests that something does not differ, or is not worse, by more than a margin named beforehand.

TOST (Schuirmann 1987): equal within m where both one-sided t tests of mean d <= -m and of mean d >= m reject; p is the
larger. Non-inferiority of a loss: its relative increase ρ solves mean(a) = (1 + ρ) mean(b); the interval is Fieller's,
the one-sided t test is of mean(a - (1 + m) b) >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student_t
from statsmodels.stats.weightstats import DescrStatsW

from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.intervals import paired_difference
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

Marks = Mapping[str, float]
"""Example id -> mark, scored examples only."""
_MIN_EXAMPLES = 3


def equivalence(ours: Marks, reference: Marks, margin: float, level: float) -> Statistic:
    """Mean paired difference (ours - reference) with its t interval; p is that of the two one-sided tests.

    Args:
        ours, reference: marks of the same examples; what only one side has is left out and counted.
        margin: m > 0.
        level: coverage of the interval; the tests need no level.

    Returns:
        NaN with a reason below 3 shared examples or where all differences are alike.
    """
    method = f"paired mean difference, t interval; p: TOST within {margin:g}"
    difference = paired_difference(ours, reference, level)
    shared = sorted(ours.keys() & reference.keys())
    reason = difference.reason or ("" if len(shared) >= _MIN_EXAMPLES else f"TOST needs {_MIN_EXAMPLES} examples")
    if reason:
        return Statistic(
            estimate=difference.estimate, low=math.nan, high=math.nan, n=len(shared), method=method, p=math.nan,
            reason=reason, warnings=difference.warnings,
        )  # fmt: skip
    gaps = np.array([ours[name] - reference[name] for name in shared])
    p = float(DescrStatsW(gaps).ttost_mean(-margin, margin)[0])
    return Statistic(
        estimate=difference.estimate, low=difference.low, high=difference.high, n=len(shared), method=method, p=p,
        warnings=difference.warnings,
    )  # fmt: skip


def smallest_margin(ours: Marks, reference: Marks, *, seed: int, settings: StatisticsSettings) -> Estimate:
    """The smallest margin within which TOST at this n would find equality with `settings.power` if there is none.

    By resampling the examples' differences, their mean taken out: in each resample the tests succeed from the margin
    |mean| + t se on.
    """
    shared = sorted(ours.keys() & reference.keys())
    gaps = np.array([ours[name] - reference[name] for name in shared])
    if len(gaps) < _MIN_EXAMPLES or np.ptp(gaps) == 0:
        return Estimate.undefined("there are too few examples, or their differences are all alike")
    needed = []
    for rows in _resamples(len(gaps), seed, "margin", settings.num_power_draws):
        some = (gaps - gaps.mean())[rows]
        error = some.std(axis=1, ddof=1) / math.sqrt(len(gaps))
        needed.append(np.abs(some.mean(axis=1)) + student_t.isf(settings.alpha, len(gaps) - 1) * error)
    return Estimate(float(np.quantile(np.concatenate(needed), settings.power)))


def _resamples(n: int, seed: int, name: str, count: int) -> list[np.ndarray]:
    draws = generator(seed, "power", name, n)
    chunk = max(1, 2_000_000 // n)
    return [draws.integers(0, n, (min(chunk, count - start), n)) for start in range(0, count, chunk)]


def not_inferior(ours: Marks, reference: Marks, margin: float, level: float, *, relative: bool) -> Statistic:
    """Whether a behaviour is worse by less than a margin; p of the one-sided t test.

    Args:
        ours: marks with the knockout.
        reference: marks without it.
        margin: relative increase of a loss that is still tolerated; with `relative` false, tolerated drop of a mark.
        level: coverage of the interval.
        relative: marks are losses (less is better, compared as a ratio); else marks where more is better.

    Returns:
        The relative increase (Fieller interval), or the mean difference (t interval); NaN with a reason.
    """
    shared = sorted(ours.keys() & reference.keys())
    first, second = (np.array([side[name] for name in shared]) for side in (ours, reference))
    if relative:
        return _loss_ratio(first, second, margin, level)
    difference = paired_difference(ours, reference, level)
    method = f"paired mean difference, t interval; p: one-sided, drop of {margin:g} or more"
    if difference.reason:
        return undefined(difference.reason, n=len(shared), method=method, tested=True)
    p = float(DescrStatsW(first - second).ttest_mean(-margin, alternative="larger")[1])
    return Statistic(
        estimate=difference.estimate, low=difference.low, high=difference.high, n=len(shared), method=method, p=p
    )


def _loss_ratio(
    ours: Float[np.ndarray, " examples"], reference: Float[np.ndarray, " examples"], margin: float, level: float
) -> Statistic:
    n, method = len(ours), f"relative increase of the mean loss, Fieller interval; p: one-sided, {margin:g} or more"
    if n < _MIN_EXAMPLES:
        return undefined(
            f"non-inferiority needs {_MIN_EXAMPLES} examples, there are {n}", n=n, method=method, tested=True
        )
    if reference.mean() <= 0:
        return undefined("the mean loss without the knockout is not positive", n=n, method=method, tested=True)
    excess = ours - (1 + margin) * reference
    if np.ptp(excess) == 0 or np.ptp(reference) == 0:
        return undefined("every example has the same loss", n=n, method=method, tested=True)
    p = float(DescrStatsW(excess).ttest_mean(0.0, alternative="smaller")[1])
    low, high = _fieller(ours, reference, level)
    reason = "" if math.isfinite(low) else "no interval: the mean loss without the knockout is not clear of 0"
    return Statistic(
        estimate=float(ours.mean() / reference.mean()) - 1, low=low, high=high, n=n, method=method, p=p, reason=reason
    )


def _fieller(
    ours: Float[np.ndarray, " examples"], reference: Float[np.ndarray, " examples"], level: float
) -> tuple[float, float]:
    """Ends of mean(ours) / mean(reference) - 1: all r with |t| of mean(ours - r reference) below its quantile."""
    n = len(ours)
    (saa, sab), (_, sbb) = np.cov(ours, reference)
    scale = float(student_t.isf((1 - level) / 2, n - 1)) ** 2 / n
    a, b = float(ours.mean()), float(reference.mean())
    square, middle, rest = b * b - scale * sbb, a * b - scale * sab, a * a - scale * saa
    inside = middle * middle - square * rest
    if square <= 0 or inside < 0:
        return math.nan, math.nan
    root = math.sqrt(inside)
    return (middle - root) / square - 1, (middle + root) / square - 1
