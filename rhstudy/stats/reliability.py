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
from rhstudy.shapes import Float, Int
from rhstudy.stats.intervals import recipe_bounds
from rhstudy.stats.permutation import row_spearman
from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, undefined
from rhstudy.types import Estimate

NUM_SPLITS = 40
"""Random pairs of disjoint row sets behind each r(n)."""

MAX_RESAMPLES = 2_000
"""Most resamples of recipes: each is ranked anew in every split, and the ends of an interval need no more."""

MAX_LOST_SHARE = 0.05
"""Share of pairs without a correlation (all recipes alike) above which r(n) is not given."""

SIZES = (5, 10, 15, 25, 40, 60, 100, 150, 250)
"""Numbers of rows at which r(n) is tried directly, as far as half of the rows reaches."""

Signal = Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, " recipes"]]
"""From row numbers to a value of each recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReliability:
    """How reliably a signal ranks recipes, and the rows it needs.

    Attributes:
        num_rows: rows there are.
        half: r at half of them, with interval over recipes.
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
        seed: root seed of splits and resamples.
        settings: levels and draws (of resamples `MAX_RESAMPLES` at most).

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
    pairs = _pairs(signal, num_rows, size, generator(seed, "rank_reliability", size))
    half = _half(pairs, method, seed, settings)
    sizes = [n for n in SIZES if n < size]
    others = [_agreement(_pairs(signal, num_rows, n, generator(seed, "rank_reliability", n))).value for n in sizes]
    curve = (*zip(sizes, others, strict=True), (size, half.estimate))
    return RankReliability(
        num_rows=num_rows,
        half=half,
        needed=_needed(half, size, target),
        direct=first_crossing(curve, target),
        curve=curve,
    )


def _pairs(
    signal: Signal, num_rows: int, size: int, draws: np.random.Generator
) -> tuple[Float[np.ndarray, "splits recipes"], Float[np.ndarray, "splits recipes"]]:
    """The signal on two disjoint random sets of `size` rows, many times."""
    orders = [draws.permutation(num_rows) for _ in range(NUM_SPLITS)]
    first, second = (np.stack([signal(order[part]) for order in orders])
                     for part in (slice(size), slice(size, 2 * size)))  # fmt: skip
    return first, second


def _agreement(
    pairs: tuple[Float[np.ndarray, "splits recipes"], Float[np.ndarray, "splits recipes"]],
) -> Estimate:
    rho = row_spearman(*pairs)
    lost = int(np.isnan(rho).sum())
    if lost > MAX_LOST_SHARE * len(rho):
        return Estimate.undefined(f"in {lost} of {len(rho)} splits a half gives every recipe the same value")
    return Estimate(float(np.nanmean(rho)))


def _half(
    pairs: tuple[Float[np.ndarray, "splits recipes"], Float[np.ndarray, "splits recipes"]],
    method: str,
    seed: int,
    settings: StatisticsSettings,
) -> Statistic:
    """r at half of the rows with its BCa interval over recipes."""
    num_recipes = pairs[0].shape[1]
    if num_recipes < 3:
        reason = f"a correlation needs 3 recipes, there are {num_recipes}"
        return undefined(reason, n=num_recipes, method=method, seed=seed)
    found = _agreement(pairs)
    if found.reason:
        return undefined(found.reason, n=num_recipes, method=method, seed=seed)
    bounds = recipe_bounds(
        lambda rows: _mean_over_splits(pairs, rows),
        num_recipes,
        draws=generator(seed, "rank_reliability", "bootstrap"),
        num_resamples=min(settings.num_resamples, MAX_RESAMPLES),
        settings=settings,
    )
    return Statistic(
        estimate=found.value,
        low=bounds.low,
        high=bounds.high,
        n=num_recipes,
        method=f"{method}, BCa bootstrap over recipes",
        seed=seed,
        reason=f"no interval: {bounds.reason}" if bounds.reason else "",
        warnings=bounds.warnings,
    )


def _mean_over_splits(
    pairs: tuple[Float[np.ndarray, "splits recipes"], Float[np.ndarray, "splits recipes"]],
    rows: Int[np.ndarray, "draws drawn"],
) -> Float[np.ndarray, " draws"]:
    """Mean rho of resampled recipes; a split without one counts for nothing, NaN where none has one."""
    total, count = np.zeros(len(rows)), np.zeros(len(rows))
    for first, second in zip(*pairs, strict=True):
        rho = row_spearman(first[rows], second[rows])
        known = ~np.isnan(rho)
        total, count = total + np.where(known, rho, 0.0), count + known
    mean = np.full(len(rows), np.nan)
    return np.asarray(np.divide(total, count, out=mean, where=count > 0))


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
