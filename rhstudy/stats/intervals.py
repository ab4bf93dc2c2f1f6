"""Intervals: BCa bootstrap over units, means and shares over examples, paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from rhstudy.errors import require
from rhstudy.shapes import Float, Int
from rhstudy.stats.statistic import Statistic, undefined
from rhstudy.types import Estimate

MAX_DEGENERATE_SHARE = 0.05
"""Share of resamples without a value above which a bootstrap interval is not given."""

MAX_BOOTSTRAP_N = 2_000
"""More units are not resampled: the leave-one-out values alone would fill the memory."""
_SAME = 1e-12  # values that spread less are equal but for rounding
_MAX_HELD = 2_000_000  # resampled numbers that are worked on at a time

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


def mean_interval(values: Sequence[float], level: float) -> Statistic:
    """Mean over examples with Student's t interval (statsmodels `DescrStatsW.tconfint_mean`).

    Args:
        values: one per scored example, finite.
        level: coverage, 0-1.

    Returns:
        NaN with a reason without values; NaN ends with a reason for one value or values all alike.
    """
    method = "mean, t interval over examples"
    if not len(values):
        return undefined("no scored example", n=0, method=method)
    mean, ends = float(np.mean(values)), _t_bounds(values, level)
    return Statistic(estimate=mean, low=ends.low, high=ends.high, n=len(values), method=method, reason=ends.reason)


def _t_bounds(values: Sequence[float], level: float) -> Bounds:
    if len(values) < 2:
        return Bounds(math.nan, math.nan, "an interval needs at least 2 examples")
    if np.ptp(values) <= _SAME:
        return Bounds(math.nan, math.nan, "every example has the same value: a t interval would have no width")
    low, high = DescrStatsW(np.asarray(values)).tconfint_mean(alpha=1 - level)
    return Bounds(float(low), float(high))


def share_interval(hits: Sequence[float], level: float) -> Statistic:
    """Share of examples that hit, with Wilson's score interval (statsmodels `proportion_confint`).

    Args:
        hits: 1.0 or 0.0 per scored example.
        level: coverage, 0-1.

    Returns:
        NaN with a reason without values.

    Raises:
        InputError: a value other than 0 and 1.
    """
    method = "share, Wilson interval over examples"
    wrong = [value for value in hits if value not in (0, 1)]
    require(not wrong, "exact_match", "be 0 or 1", wrong[:1], "Mark each example anew")
    if not len(hits):
        return undefined("no scored example", n=0, method=method)
    low, high = proportion_confint(int(sum(hits)), len(hits), alpha=1 - level, method="wilson")
    return Statistic(estimate=float(np.mean(hits)), low=float(low), high=float(high), n=len(hits), method=method)


def paired_difference(ours: Mapping[str, float], reference: Mapping[str, float], level: float) -> Statistic:
    """Mean difference (ours - reference) over examples both have, with t interval and paired t test.

    Args:
        ours: example id -> value, scored examples only.
        reference: the same for the reference.
        level: coverage, 0-1.

    Returns:
        NaN with a reason without shared examples; NaN ends and p with a reason for one, or differences all alike.
        Examples only one side has are counted in the warnings.
    """
    method = "paired mean difference, t interval over examples"
    shared = sorted(ours.keys() & reference.keys())
    if not shared:
        return undefined("no example is scored in both arms", n=0, method=method, tested=True)
    alone = len(ours) + len(reference) - 2 * len(shared)
    differences = [ours[name] - reference[name] for name in shared]
    ends = _t_bounds(differences, level)
    p = math.nan if ends.reason else float(DescrStatsW(np.asarray(differences)).ttest_mean(0.0)[1])
    return Statistic(
        estimate=float(np.mean(differences)),
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
