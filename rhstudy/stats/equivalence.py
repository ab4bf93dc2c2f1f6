"""Tests that something does not differ, or is not worse, by more than a margin named beforehand; what n can prove.

TOST (Schuirmann 1987): equal within m where both one-sided t tests of mean d <= -m and of mean d >= m reject; p is the
larger. Non-inferiority of a loss: its relative increase ρ solves mean(a) = (1 + ρ) mean(b); the interval is Fieller's,
the one-sided t test is of mean(a - (1 + m) b) >= 0. Where examples belong together, errors are over clusters of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.intervals import (
    EACH_ITS_OWN,
    Clusters,
    cluster_names,
    cluster_sums,
    mean_covariance,
    mean_error,
    over_clusters,
    paired_difference,
)
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

Marks = Mapping[str, float]
"""Example id -> mark, scored examples only."""
_MIN_EXAMPLES = 3


def equivalence(
    ours: Marks, reference: Marks, margin: float, level: float, clusters: Clusters = EACH_ITS_OWN
) -> Statistic:
    """Mean paired difference (ours - reference) with its t interval; p is that of the two one-sided tests.

    Args:
        ours, reference: marks of the same examples; what only one side has is left out and counted.
        margin: m > 0.
        level: coverage of the interval; the tests need no level.
        clusters: examples that belong together.

    Returns:
        NaN with a reason below 3 shared examples or where all differences are alike.
    """
    difference = paired_difference(ours, reference, level, clusters)
    method = f"{difference.method}; p: TOST within {margin:g}"
    shared = sorted(ours.keys() & reference.keys())
    reason = difference.reason or ("" if len(shared) >= _MIN_EXAMPLES else f"TOST needs {_MIN_EXAMPLES} examples")
    if reason:
        return Statistic(
            estimate=difference.estimate, low=math.nan, high=math.nan, n=len(shared), method=method, p=math.nan,
            reason=reason, warnings=difference.warnings,
        )  # fmt: skip
    error, df = mean_error(np.array([ours[name] - reference[name] for name in shared]), cluster_names(shared, clusters))
    p = float(student_t.sf((margin - abs(difference.estimate)) / error, df))
    return Statistic(
        estimate=difference.estimate, low=difference.low, high=difference.high, n=len(shared), method=method, p=p,
        warnings=difference.warnings,
    )  # fmt: skip


def not_inferior(
    ours: Marks, reference: Marks, margin: float, level: float, *, relative: bool, clusters: Clusters = EACH_ITS_OWN
) -> Statistic:
    """Whether a behaviour is worse by less than a margin; p of the one-sided t test.

    Args:
        ours: marks with the knockout.
        reference: marks without it.
        margin: relative increase of a loss that is still tolerated; with `relative` false, tolerated drop of a mark.
        level: coverage of the interval.
        relative: marks are losses (less is better, compared as a ratio); else marks where more is better.
        clusters: examples that belong together.

    Returns:
        The relative increase (Fieller interval), or the mean difference (t interval); NaN with a reason.
    """
    shared = sorted(ours.keys() & reference.keys())
    names = cluster_names(shared, clusters)
    if relative:
        marks = np.array([[side[name] for side in (ours, reference)] for name in shared]).reshape(-1, 2)
        return _loss_ratio(marks, names, margin, level)
    difference = paired_difference(ours, reference, level, clusters)
    method = f"{difference.method}; p: one-sided, drop of {margin:g} or more"
    if difference.reason:
        return undefined(difference.reason, n=len(shared), method=method, tested=True)
    error, df = mean_error(np.array([ours[name] - reference[name] for name in shared]), names)
    p = float(student_t.sf((difference.estimate + margin) / error, df))
    return Statistic(
        estimate=difference.estimate, low=difference.low, high=difference.high, n=len(shared), method=method, p=p
    )


def _loss_ratio(marks: Float[np.ndarray, "examples 2"], names: list[str], margin: float, level: float) -> Statistic:
    n = len(marks)
    together = over_clusters(names)
    method = f"relative increase of the mean loss, Fieller interval{together}; p: one-sided, {margin:g} or more"
    reason = _no_ratio(marks, names, margin)
    if reason:
        return undefined(reason, n=n, method=method, tested=True)
    error, df = mean_error(marks @ [1, -(1 + margin)], names)
    a, b = marks.mean(axis=0)
    p = float(student_t.cdf((a - (1 + margin) * b) / error, df))
    quantile = float(student_t.isf((1 - level) / 2, df))
    low, high = (float(end[0]) for end in _fieller(_moments(marks, names), quantile))
    reason = "" if math.isfinite(low) else "no interval: the mean loss without the knockout is not clear of 0"
    return Statistic(estimate=float(a / b) - 1, low=low, high=high, n=n, method=method, p=p, reason=reason)


def _no_ratio(marks: Float[np.ndarray, "examples 2"], names: list[str], margin: float) -> str:
    """Why a ratio of losses has no test; empty where it has one."""
    if len(marks) < _MIN_EXAMPLES:
        return f"non-inferiority needs {_MIN_EXAMPLES} examples, there are {len(marks)}"
    if len(names) and len(set(names)) < 2:
        return "every example is of one cluster"
    if marks[:, 1].mean() <= 0:
        return "the mean loss without the knockout is not positive"
    if np.ptp(marks @ [1, -(1 + margin)]) == 0 or np.ptp(marks[:, 1]) == 0:
        return "every example has the same loss"
    return ""


class _Moments(NamedTuple):
    """Means of two marks and the variances and covariance of these means, an entry a resample."""

    a: Float[np.ndarray, " draws"]
    b: Float[np.ndarray, " draws"]
    aa: Float[np.ndarray, " draws"]
    ab: Float[np.ndarray, " draws"]
    bb: Float[np.ndarray, " draws"]


def _moments(marks: Float[np.ndarray, "examples 2"], names: list[str]) -> _Moments:
    first, second = mean_covariance(marks, names)[0]
    a, b = marks.mean(axis=0)[:, None]
    return _Moments(a, b, first[:1], first[1:], second[1:])


def _fieller(found: _Moments, quantile: float) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Ends of mean(a) / mean(b) - 1: all r with |t| of mean(a - r b) below `quantile`; NaN where b may be 0."""
    scale = quantile**2
    square = found.b**2 - scale * found.bb
    middle = found.a * found.b - scale * found.ab
    inside = middle**2 - square * (found.a**2 - scale * found.aa)
    sound = (square > 0) & (inside >= 0)
    root, bottom = np.sqrt(np.where(sound, inside, np.nan)), np.where(sound, square, np.nan)
    return (middle - root) / bottom - 1, (middle + root) / bottom - 1


def smallest_margin(
    ours: Marks, reference: Marks, *, seed: int, settings: StatisticsSettings, clusters: Clusters = EACH_ITS_OWN
) -> Estimate:
    """The smallest margin within which TOST at this n would find equality with `settings.power` if there is none.

    By resampling the examples' differences (whole clusters of them), their mean taken out: in each resample the tests
    succeed from the margin |mean| + t se on.
    """
    shared = sorted(ours.keys() & reference.keys())
    gaps = np.array([[ours[name] - reference[name]] for name in shared]).reshape(-1, 1)
    names = cluster_names(shared, clusters)
    if _too_alike(gaps, names):
        return Estimate.undefined("there are too few examples, or their differences are all alike")
    needed, t = [], _quantile(len(shared), names, settings)
    for some in _resampled(gaps - gaps.mean(), names, seed, settings):
        needed.append(np.abs(some.a) + t * np.sqrt(some.aa))
    return Estimate(float(np.quantile(np.concatenate(needed), settings.power)))


def provable_margin(
    ours: Marks, reference: Marks, *, relative: bool, seed: int, settings: StatisticsSettings,
    clusters: Clusters = EACH_ITS_OWN,
) -> Estimate:  # fmt: skip
    """The smallest margin of `not_inferior` that this n would prove with `settings.power` if nothing were harmed.

    As `smallest_margin`; with `relative` the losses are scaled to the same mean, and a resample proves every increase
    above the upper end of Fieller's interval.
    """
    shared = sorted(ours.keys() & reference.keys())
    names = cluster_names(shared, clusters)
    marks = np.array([[side[name] for side in (ours, reference)] for name in shared]).reshape(-1, 2)
    if _too_alike(marks @ [[1], [-1]], names) or (relative and marks.mean(axis=0).min() <= 0):
        return Estimate.undefined("there are too few examples, their differences are alike or losses not positive")
    marks = marks * [marks[:, 1].mean() / marks[:, 0].mean(), 1] if relative else marks @ [[1], [-1]]
    marks = marks if relative else marks - marks.mean()
    needed, t = [], _quantile(len(shared), names, settings)
    for some in _resampled(marks, names, seed, settings):
        proved = _fieller(some, t)[1] if relative else t * np.sqrt(some.aa) - some.a
        needed.append(np.where(np.isnan(proved), np.inf, proved))
    margin = float(np.quantile(np.concatenate(needed), settings.power))
    never = "no margin: the mean loss without the knockout is not clear of 0"
    return Estimate(margin) if math.isfinite(margin) else Estimate.undefined(never)


def _too_alike(gaps: Float[np.ndarray, "examples 1"], names: list[str]) -> bool:
    return len(gaps) < _MIN_EXAMPLES or float(np.ptp(gaps)) == 0 or (len(names) > 0 and len(set(names)) < 2)


def _quantile(n: int, names: list[str], settings: StatisticsSettings) -> float:
    return float(student_t.isf(settings.alpha, (len(set(names)) if names else n) - 1))


def _resampled(
    marks: Float[np.ndarray, "examples marks"], names: list[str], seed: int, settings: StatisticsSettings
) -> Iterator[_Moments]:
    """Means and their covariance in resamples of clusters (of examples where each is its own), some at a time."""
    both = np.column_stack([marks[:, 0], marks[:, -1], np.ones(len(marks))])
    sums = cluster_sums(both, names)
    count = len(sums)
    draws, chunk = generator(seed, "power", "margin", len(marks)), max(1, 1_000_000 // count)
    for start in range(0, settings.num_power_draws, chunk):
        rows = draws.integers(0, count, (min(chunk, settings.num_power_draws - start), count))
        a, b, size = (sums[rows, column] for column in range(3))
        n = size.sum(axis=1)
        means = [side.sum(axis=1) / n for side in (a, b)]
        first, second = (side - mean[:, None] * size for side, mean in zip((a, b), means, strict=True))
        pairs = ((first, first), (first, second), (second, second))
        aa, ab, bb = (count / (count - 1) * (one * two).sum(axis=1) / n**2 for one, two in pairs)
        yield _Moments(means[0], means[1], aa, ab, bb)
