"""How many real rows a signal needs before it ranks recipes the same way on other rows.

Notation: a signal gives each of R recipes a value from a set of rows (recall, a mean loss, a mean F1). r(n) is the mean
Spearman correlation, over recipes, between its values on two disjoint sets of n rows: the reliability of a ranking made
from n rows. The question is the n at which r(n) reaches a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.shapes import Bool, Float, Int
from rhstudy.stats.intervals import Bounds
from rhstudy.stats.permutation import row_spearman
from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, undefined
from rhstudy.stats.two_way import two_way_bounds
from rhstudy.types import Estimate

NUM_SPLITS = 40
"""Random pairs of disjoint row sets behind each r(n)."""

NUM_GROUPS = 10
"""Groups of rows that an interval leaves out in turn."""

MIN_ROWS = 10
"""Fewest rows at which an interval is given: halves of five, of which some are left out."""

MAX_LOST_SHARE = 0.05
"""Share of pairs without a correlation (all recipes alike) above which r(n) is not given."""

SIZES = (5, 10, 15, 25, 40, 60, 100, 150, 250)
"""Numbers of rows at which r(n) is tried directly, as far as half of the rows reaches."""

Signal = Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, " recipes"]]
"""From row numbers to a value of each recipe."""

Pairs = tuple[Float[np.ndarray, "splits _"], Float[np.ndarray, "splits _"]]
"""A signal of each recipe on two disjoint sets of rows, many times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReliability:
    """How reliably a signal ranks recipes, and the rows it needs.

    Attributes:
        num_rows: rows there are.
        half: r at half of them, with interval over recipes and rows.
        needed: rows at which r reaches the target, predicted from `half`; with interval.
        direct: the same read off the curve, without a formula.
        curve: (n, r(n)) pairs, rising in n.
    """

    num_rows: int
    half: Statistic
    needed: Statistic
    direct: Estimate
    curve: tuple[tuple[int, float], ...]

    def json(self) -> dict[str, object]:
        """JSON values; null with its reason where undefined."""
        return {
            "num_rows": self.num_rows,
            "half": self.half.json(),
            "needed": self.needed.json(),
            "direct": null(self.direct.value),
            "direct_reason": self.direct.reason,
            "curve": [[size, null(value)] for size, value in self.curve],
        }


def spearman_brown(reliability: float, factor: float) -> float:
    """Reliability of a measurement `factor` times as long: k r / (1 + (k - 1) r) (Spearman 1910; Brown 1910).

    Args:
        reliability: r of the measurement as it is, -1 to 1.
        factor: k > 0.
    """
    return factor * reliability / (1 + (factor - 1) * reliability)


def rows_needed(reliability: float, num_rows: int, target: float) -> Estimate:
    """Rows at which r reaches `target` by Spearman-Brown: n t (1 - r) / (r (1 - t)), at least 1.

    Args:
        reliability: r at `num_rows` rows.
        num_rows: n.
        target: t, in (0, 1).

    Returns:
        NaN with a reason where r is not above 0: no number of rows is enough.
    """
    if math.isnan(reliability):
        return Estimate.undefined("the reliability is not known")
    if reliability <= 0:
        return Estimate.undefined(f"rankings from {num_rows} rows do not agree: no number of rows can be predicted")
    return Estimate(max(1.0, num_rows * target * (1 - reliability) / (reliability * (1 - target))))


def rank_reliability(
    signal: Signal, num_rows: int, *, target: float, seed: int, settings: StatisticsSettings
) -> RankReliability:
    """Reliability of the rankings of a signal, and the rows it needs for `target`.

    Args:
        signal: see `Signal`; called with disjoint sets of row numbers below `num_rows`.
        num_rows: rows there are.
        target: wanted r, in (0, 1).
        seed: root seed of the splits.
        settings: level, and the fewest recipes of an interval.

    Raises:
        InputError: a target out of range.
    """
    require(0 < target < 1, "reliability", "be in (0, 1)", target, "The default is 0.9")
    method = f"mean Spearman's rho between disjoint halves ({NUM_SPLITS} splits)"
    size = num_rows // 2
    if size < 1:
        reason = f"two halves need at least 2 rows, there are {num_rows}"
        nothing = undefined(reason, n=num_rows, method=method)
        return RankReliability(
            num_rows=num_rows, half=nothing, needed=nothing, direct=Estimate.undefined(reason), curve=()
        )
    half = _half(signal, _splits(num_rows, size, seed), size, method, seed, settings)
    sizes = [n for n in SIZES if n < size]
    others = [_agreement(_pairs(signal, _splits(num_rows, n, seed), n)).value for n in sizes]
    curve = (*zip(sizes, others, strict=True), (size, half.estimate))
    return RankReliability(
        num_rows=num_rows,
        half=half,
        needed=_needed(half, size, target),
        direct=first_crossing(curve, target),
        curve=curve,
    )


def _splits(num_rows: int, size: int, seed: int) -> list[Int[np.ndarray, " rows"]]:
    """Orders of the rows: the first `size` rows of one, and the `size` after them, are its two sets."""
    draws = generator(seed, "rank_reliability", size)
    return [draws.permutation(num_rows) for _ in range(NUM_SPLITS)]


def _pairs(
    signal: Signal, orders: Sequence[Int[np.ndarray, " rows"]], size: int, kept: Bool[np.ndarray, " rows"] | None = None
) -> Pairs:
    """The signal on both sets of every split; of rows that are not `kept` nothing is seen."""
    sets = [(order[:size], order[size : 2 * size]) for order in orders]
    if kept is not None:
        sets = [(first[kept[first]], second[kept[second]]) for first, second in sets]
    return np.stack([signal(first) for first, _ in sets]), np.stack([signal(second) for _, second in sets])


def _agreement(pairs: Pairs) -> Estimate:
    rho = row_spearman(*pairs)
    lost = int(np.isnan(rho).sum())
    if lost > MAX_LOST_SHARE * len(rho):
        return Estimate.undefined(f"in {lost} of {len(rho)} splits a half gives every recipe the same value")
    return Estimate(float(np.nanmean(rho)))


def _half(
    signal: Signal,
    orders: Sequence[Int[np.ndarray, " rows"]],
    size: int,
    method: str,
    seed: int,
    settings: StatisticsSettings,
) -> Statistic:
    """r at half of the rows with its interval over recipes and rows."""
    pairs = _pairs(signal, orders, size)
    num_recipes = pairs[0].shape[1]
    if num_recipes < 3:
        reason = f"a correlation needs 3 recipes, there are {num_recipes}"
        return undefined(reason, n=num_recipes, method=method, seed=seed)
    found = _agreement(pairs)
    if found.reason:
        return undefined(found.reason, n=num_recipes, method=method, seed=seed)
    bounds = _bounds(signal, orders, size, pairs, found.value, seed, settings)
    return Statistic(
        estimate=found.value,
        low=bounds.low,
        high=bounds.high,
        n=num_recipes,
        method=f"{method}, jackknife-t over recipes and rows",
        seed=seed,
        reason=f"no interval: {bounds.reason}" if bounds.reason else "",
    )


def _bounds(
    signal: Signal,
    orders: Sequence[Int[np.ndarray, " rows"]],
    size: int,
    pairs: Pairs,
    every: float,
    seed: int,
    settings: StatisticsSettings,
) -> Bounds:
    num_rows, num_recipes = len(orders[0]), pairs[0].shape[1]
    for count, least, name in ((num_recipes, settings.min_bootstrap_n, "recipes"), (num_rows, MIN_ROWS, "rows")):
        if count < least:
            return Bounds(math.nan, math.nan, f"it needs {least} {name}, there are {count}")
    recipes = [np.delete(np.arange(num_recipes), one) for one in range(num_recipes)]
    without_recipe = [_agreement((pairs[0][:, kept], pairs[1][:, kept])).value for kept in recipes]
    group = generator(seed, "rank_reliability", "groups").permutation(num_rows) % min(NUM_GROUPS, num_rows)
    without_rows = [_agreement(_pairs(signal, orders, size, group != one)).value for one in range(group.max() + 1)]
    return two_way_bounds(every, np.array(without_recipe), np.array(without_rows), settings.level)


def _needed(half: Statistic, size: int, target: float) -> Statistic:
    """Rows needed: falling in r, so the ends of r's interval become its ends, the other way round."""
    method = f"Spearman-Brown from {size} rows, rho {target:g}; interval from that of rho"
    found = rows_needed(half.estimate, size, target)
    if found.reason:
        reason = half.reason if math.isnan(half.estimate) else found.reason
        return undefined(reason, n=half.n, method=method, seed=half.seed)
    low, high = rows_needed(half.high, size, target), rows_needed(half.low, size, target)
    open_ended = "no upper end: the interval of rho reaches 0" if high.reason and not math.isnan(half.low) else ""
    return Statistic(
        estimate=found.value,
        low=low.value,
        high=high.value,
        n=half.n,
        method=method,
        seed=half.seed,
        reason=half.reason or open_ended,
        warnings=half.warnings,
    )


def first_crossing(curve: Sequence[tuple[int, float]], target: float) -> Estimate:
    """Smallest n at which a curve reaches `target`, linear between its points.

    Returns:
        NaN with a reason where the curve has no defined point or stays below.
    """
    known = [(size, value) for size, value in curve if not math.isnan(value)]
    if not known:
        return Estimate.undefined("no number of rows has a reliability")
    before: tuple[int, float] | None = None
    for size, value in known:
        if value >= target:
            if before is None:
                return Estimate(float(size))
            share = (target - before[1]) / (value - before[1])
            return Estimate(before[0] + share * (size - before[0]))
        before = size, value
    size, value = known[-1]
    return Estimate.undefined(f"with {size} rows, half of those there are, it is {value:.2f}: below {target:g}")
