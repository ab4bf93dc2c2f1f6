"""Intervals: BCa bootstrap over units, means and shares over examples, paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import t as student_t
from statsmodels.stats.proportion import proportion_confint

from rhstudy.errors import require
from rhstudy.shapes import Float, Int
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

MAX_DEGENERATE_SHARE = 0.05
"""Share of resamples without a value above which a bootstrap interval is not given."""

MAX_BOOTSTRAP_N = 2_000
"""More units are not resampled: the leave-one-out values alone would fill the memory."""
_SAME = 1e-12  # values that spread less are equal but for rounding
_MAX_HELD = 2_000_000  # resampled numbers that are worked on at a time

Clusters = Mapping[str, str]
"""Example id -> cluster; an example that is not named is its own."""
EACH_ITS_OWN: Clusters = {}

ResampledStatistic = Callable[[Int[np.ndarray, "draws units"]], Float[np.ndarray, " draws"]]


class Bounds(NamedTuple):
    """Both ends of an interval, NaN with a reason when undefined."""

    low: float
    high: float
    reason: str = ""
    warnings: tuple[str, ...] = ()


def bca_interval(
    statistic: ResampledStatistic, num_units: int, *, draws: np.random.Generator, num_resamples: int, level: float
) -> Bounds:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, J. Am. Stat. Assoc. 82:171, eqs. 2.3, 6.6).

    With z0 = Φ^-1(share of resamples below the estimate, ties half) and a = Σ d³ / (6 (Σ d²)^1.5), d the jackknife
    deviations, the ends are the resamples' quantiles at Φ(z0 + (z0 + z) / (1 - a (z0 + z))), z = Φ^-1((1 ∓ level) / 2).
    Same numbers as `scipy.stats.bootstrap(method="BCa")` given the same draws; here resamples without a value (every
    unit drawn alike) are counted instead of spoiling the result.

    Args:
        statistic: values of the statistic for rows of unit indices, NaN where undefined.
        num_units: units resampled, at least 2.
        draws: source of the resamples.
        num_resamples: bootstrap size.
        level: coverage, 0-1.

    Returns:
        NaN with a reason when more than 5 % of resamples or any leave-one-out value is undefined, or all are alike.
    """
    if num_units > MAX_BOOTSTRAP_N:
        return Bounds(math.nan, math.nan, f"no bootstrap is drawn of more than {MAX_BOOTSTRAP_N} units")
    resamples = draws.integers(0, num_units, (num_resamples, num_units))
    num_parts = -(-resamples.size // _MAX_HELD)
    values = np.concatenate([statistic(part) for part in np.array_split(resamples, num_parts)])
    lost = int(np.isnan(values).sum())
    if lost > MAX_DEGENERATE_SHARE * num_resamples:
        return Bounds(math.nan, math.nan, f"{lost} of {num_resamples} resamples have no value")
    noted = (f"{lost} of {num_resamples} resamples have no value and were left out",) if lost else ()
    values = np.sort(values[~np.isnan(values)])
    everyone = np.arange(num_units)
    jackknife = statistic(np.stack([np.delete(everyone, left_out) for left_out in everyone]))
    if np.isnan(jackknife).any():
        return Bounds(math.nan, math.nan, "undefined when one unit is left out", noted)
    ends = _bca_quantiles(values, float(statistic(everyone[None])[0]), jackknife, level)
    if np.isnan(ends).any():
        return Bounds(math.nan, math.nan, "the resamples do not spread around the estimate", noted)
    low, high = np.quantile(values, ends)
    return Bounds(float(low), float(high), "", noted)


def recipe_bounds(
    statistic: ResampledStatistic,
    num_recipes: int,
    *,
    draws: np.random.Generator,
    num_resamples: int,
    settings: StatisticsSettings,
) -> Bounds:
    """`bca_interval` over recipes at the level of `settings`; NaN with a reason below its fewest for a bootstrap."""
    if num_recipes < settings.min_bootstrap_n:
        reason = f"a bootstrap needs {settings.min_bootstrap_n} recipes, there are {num_recipes}"
        return Bounds(math.nan, math.nan, reason)
    return bca_interval(statistic, num_recipes, draws=draws, num_resamples=num_resamples, level=settings.level)


def _bca_quantiles(
    values: Float[np.ndarray, " kept"], estimate: float, jackknife: Float[np.ndarray, " units"], level: float
) -> Float[np.ndarray, " 2"]:
    below = ((values < estimate).mean() + (values <= estimate).mean()) / 2
    deviations = jackknife.mean() - jackknife
    spread = (deviations**2).sum() ** 1.5
    if below in (0, 1) or spread == 0:
        return np.full(2, np.nan)
    bias, acceleration = ndtri(below), (deviations**3).sum() / (6 * spread)
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    return np.asarray(ndtr(bias + shifted / (1 - acceleration * shifted)))


def mean_covariance(
    values: Float[np.ndarray, "examples marks"], clusters: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "marks marks"], int]:
    """Covariance of the means of several marks over examples of which those of a cluster are not independent.

    C / (C - 1) Σ_c s_c s_c' / n² with s_c the sum of cluster c's deviations from the means: statsmodels'
    ``cov_type="cluster"`` of a regression on a constant, and the usual one where every example is its own cluster.

    Args:
        values: an example a row, a mark a column.
        clusters: of each example; empty: each its own.

    Returns:
        The covariance (NaN for one cluster) and its degrees of freedom C - 1.
    """
    sums = cluster_sums(values - values.mean(axis=0), clusters)
    count = len(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.divide(count, count - 1) / len(values) ** 2
        return np.asarray(factor * (sums.T @ sums)), count - 1


def cluster_sums(
    values: Float[np.ndarray, "examples marks"], clusters: Sequence[str] = ()
) -> Float[np.ndarray, "clusters marks"]:
    """The sum of `values` over the examples of each cluster, clusters in the order of their names; empty: `values`."""
    if not len(clusters):
        return values
    names, code = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, code, values)
    return sums


def cluster_names(examples: Sequence[str], clusters: Clusters) -> list[str]:
    """The cluster of each example; empty where each is its own."""
    names = [clusters.get(example) or example for example in examples]
    return names if len(set(names)) < len(names) else []


def over_clusters(clusters: Sequence[str]) -> str:
    """What to say of a method over examples that belong together."""
    return f" in {len(set(clusters))} clusters" if len(clusters) else ""


def mean_interval(values: Sequence[float], level: float, clusters: Sequence[str] = ()) -> Statistic:
    """Mean over examples with Student's t interval, over clusters of examples where they belong together.

    Args:
        values: one per scored example, finite.
        level: coverage, 0-1.
        clusters: of each example; empty: each its own.

    Returns:
        NaN with a reason without values; NaN ends with a reason for one value or values all alike.
    """
    clusters = clusters if len(set(clusters)) < len(values) else ()
    method = f"mean, t interval over examples{over_clusters(clusters)}"
    if not len(values):
        return undefined("no scored example", n=0, method=method)
    mean, ends = float(np.mean(values)), _t_bounds(values, level, clusters)
    return Statistic(estimate=mean, low=ends.low, high=ends.high, n=len(values), method=method, reason=ends.reason)


def _t_bounds(values: Sequence[float], level: float, clusters: Sequence[str]) -> Bounds:
    if len(values) < 2:
        return Bounds(math.nan, math.nan, "an interval needs at least 2 examples")
    if np.ptp(values) <= _SAME:
        return Bounds(math.nan, math.nan, "every example has the same value: a t interval would have no width")
    error, df = mean_error(np.asarray(values, dtype=np.float64), clusters)
    if df < 1 or error <= _SAME:
        return Bounds(math.nan, math.nan, "an interval needs 2 clusters of examples that differ")
    mean, half = float(np.mean(values)), float(student_t.isf((1 - level) / 2, df)) * error
    return Bounds(mean - half, mean + half)


def mean_error(values: Float[np.ndarray, " examples"], clusters: Sequence[str]) -> tuple[float, int]:
    """Standard error of a mean over examples, and its degrees of freedom; see `mean_covariance`."""
    covariance, df = mean_covariance(values[:, None], clusters)
    return math.sqrt(covariance[0, 0]) if df else math.nan, df


def share_interval(hits: Sequence[float], level: float, clusters: Sequence[str] = ()) -> Statistic:
    """Share of examples that hit, with Wilson's score interval (statsmodels `proportion_confint`).

    Where examples belong together n is the effective one: n times the variance of a share over that of the share in
    clusters, at most n (Franco et al. 2019, J. Surv. Stat. Methodol. 7:334).

    Args:
        hits: 1.0 or 0.0 per scored example.
        level: coverage, 0-1.
        clusters: of each example; empty: each its own.

    Returns:
        NaN with a reason without values.

    Raises:
        InputError: a value other than 0 and 1.
    """
    clusters = clusters if len(set(clusters)) < len(hits) else ()
    method = f"share, Wilson interval over examples{over_clusters(clusters)}"
    wrong = [value for value in hits if value not in (0, 1)]
    require(not wrong, "exact_match", "be 0 or 1", wrong[:1], "Mark each example anew")
    if not len(hits):
        return undefined("no scored example", n=0, method=method)
    share, size = float(np.mean(hits)), _effective(hits, clusters)
    low, high = proportion_confint(share * size, size, alpha=1 - level, method="wilson")
    return Statistic(estimate=share, low=float(low), high=float(high), n=len(hits), method=method)


def _effective(hits: Sequence[float], clusters: Sequence[str]) -> float:
    """Number of independent examples that tell as much; of one cluster 1, and no more than there are."""
    if not len(clusters):
        return float(len(hits))
    values = np.asarray(hits, dtype=np.float64)
    error, df = mean_error(values, clusters)
    if df < 1:
        return 1.0
    alone = mean_error(values, ())[0]
    return float(len(hits)) if error <= alone else len(hits) * (alone / error) ** 2


def paired_difference(
    ours: Mapping[str, float], reference: Mapping[str, float], level: float, clusters: Clusters = EACH_ITS_OWN
) -> Statistic:
    """Mean difference (ours - reference) over examples both have, with t interval and paired t test.

    Args:
        ours: example id -> value, scored examples only.
        reference: the same for the reference.
        level: coverage, 0-1.
        clusters: examples that belong together; then interval and test are over clusters.

    Returns:
        NaN with a reason without shared examples; NaN ends and p with a reason for one, or differences all alike.
        Examples only one side has are counted in the warnings.
    """
    shared = sorted(ours.keys() & reference.keys())
    names = cluster_names(shared, clusters)
    method = f"paired mean difference, t interval over examples{over_clusters(names)}"
    if not shared:
        return undefined("no example is scored in both arms", n=0, method=method, tested=True)
    alone = len(ours) + len(reference) - 2 * len(shared)
    differences = [ours[name] - reference[name] for name in shared]
    ends = _t_bounds(differences, level, names)
    p, mean = math.nan, float(np.mean(differences))
    if not ends.reason:
        error, df = mean_error(np.array(differences), names)
        p = 2 * float(student_t.sf(abs(mean) / error, df))
    return Statistic(
        estimate=mean,
        low=ends.low,
        high=ends.high,
        n=len(shared),
        method=method,
        p=p,
        reason=ends.reason,
        warnings=(f"{alone} examples are scored in one arm only and were left out",) if alone else (),
    )


def mean_of(values: Sequence[float], reason: str) -> Estimate:
    """Plain mean; NaN because of `reason` without values."""
    return Estimate(float(np.mean(values))) if len(values) else Estimate.undefined(reason)
