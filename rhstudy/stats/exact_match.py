"""McNemar's test on exact match with heads knocked out against none, where examples may belong together; its power.

D_c = examples of cluster c that lost their exact match minus those that won one. Under the hypothesis that the knockout
changes nothing each D_c is as likely with either sign: p = P(|Σ ±|D_c|| >= |Σ D_c|), by convolution. Where every
example is its own cluster this is McNemar's exact binomial test (1947, Psychometrika 12:153).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom
from scipy.stats import t as student_t

from rhstudy.seeding import generator
from rhstudy.shapes import Float, Int
from rhstudy.stats.intervals import Clusters, cluster_names, cluster_sums, mean_error, over_clusters
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

_PAIRS = {(1.0, 0.0): 1.0, (0.0, 1.0): -1.0}
_CHUNK = 1_000_000


def losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Example id -> 1 where the top heads cost the exact match, -1 where they gave one, else 0."""
    found = {
        kind: {row["example_id"]: row["exact_match"] for row in rows if row["kind"] == kind}
        for kind in ("baseline", "top")
    }
    both = {name: (found["baseline"][name], found["top"][name]) for name in found["baseline"].keys() & found["top"]}
    return {name: _PAIRS.get(pair, 0.0) for name, pair in sorted(both.items()) if None not in pair}


def mcnemar(lost: Mapping[str, float], level: float, clusters: Clusters) -> Statistic:
    """The drop in exact match with its t interval over clusters, and p of the sign-flip test.

    Args:
        lost: from `losses`.
        level: coverage of the interval.
        clusters: examples that belong together.
    """
    names = cluster_names(list(lost), clusters)
    flipped = "signs of clusters flipped" if names else "McNemar"
    method = f"exact match, top heads against no knockout: exact {flipped}; t interval{over_clusters(names)}"
    if not lost:
        return undefined("no example has exact match in both conditions", n=0, method=method, tested=True)
    values = np.array(list(lost.values()))
    sums, n, drop = _sums(values, names), len(values), float(values.mean())
    reason = "" if values.any() else "no example changed its exact match"
    error, df = mean_error(values, names)
    if not reason and not error > 0:
        reason = "an interval needs 2 clusters of examples that differ"
    half = math.nan if reason else float(student_t.isf((1 - level) / 2, df)) * error
    return Statistic(
        estimate=drop, low=drop - half, high=drop + half, n=n, method=method, p=sign_flip_p(sums), reason=reason
    )


def _sums(values: Float[np.ndarray, " examples"], names: Sequence[str]) -> Int[np.ndarray, " clusters"]:
    return cluster_sums(values[:, None], names)[:, 0].astype(np.int64)


def sign_flip_p(sums: Int[np.ndarray, " clusters"]) -> float:
    """Two-sided exact p: share of all assignments of signs with |Σ ±sums| at least |Σ sums|."""
    return float(min(1.0, _tail(sums)[abs(int(sums.sum()))]))


def _tail(sums: Int[np.ndarray, " clusters"]) -> Float[np.ndarray, " totals"]:
    """P(|Σ ±sums| >= k) for k = 0 .. Σ |sums|; clusters of equal size share one binomial."""
    mass = np.ones(1)
    for size, count in zip(*np.unique(np.abs(sums[sums != 0]), return_counts=True), strict=True):
        own = np.zeros(2 * size * count + 1)
        own[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        mass = np.convolve(mass, own)
    total = len(mass) // 2
    folded = mass[total:] + mass[total::-1]
    folded[0] = mass[total]
    return np.asarray(folded[::-1].cumsum()[::-1])


def smallest_drop(
    lost: Mapping[str, float], *, seed: int, settings: StatisticsSettings, clusters: Clusters
) -> Estimate:
    """Smallest drop in exact match that the test finds with `settings.power` where as many examples change.

    By resampling clusters, the mean taken out of their sums: a resample is found where its sum and what the drop adds
    reach the least sum of significance of the sample.
    """
    names = cluster_names(list(lost), clusters)
    values = np.array(list(lost.values()))
    sums = _sums(values, names) if len(values) else np.zeros(0, dtype=np.int64)
    reached = np.flatnonzero(_tail(sums) <= settings.alpha)
    if not len(reached):
        return Estimate.undefined("too few examples changed their exact match for the level")
    sizes = cluster_sums(np.ones((len(values), 1)), names)[:, 0]
    left, count = sums - values.mean() * sizes, len(sums)
    draws, drawn = generator(seed, "power", "exact match"), []
    for start in range(0, settings.num_power_draws, max(1, _CHUNK // count)):
        num_rows = min(max(1, _CHUNK // count), settings.num_power_draws - start)
        drawn.append(left[draws.integers(0, count, (num_rows, count))].sum(axis=1))
    least = float(reached[0]) - float(np.quantile(np.concatenate(drawn), 1 - settings.power))
    return Estimate(max(0.0, least / len(values)))
