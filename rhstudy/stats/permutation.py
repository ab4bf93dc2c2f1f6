"""Spearman's rho over many orderings at once, and permutation tests: of rho, and of a slope within task and model."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from rhstudy.seeding import generator
from rhstudy.shapes import Float, Int

MAX_EXACT_N = 9
"""Most units whose every ordering is enumerated: 9! = 362,880."""
MAX_ARRANGEMENTS = math.factorial(MAX_EXACT_N)
"""Most arrangements of a restricted permutation test that are enumerated."""
MIN_DRAWS = 199
_MAX_DRAWN = 50_000_000  # numbers drawn by one Monte-Carlo test: more would take minutes
_MAX_HELD = 4_000_000  # numbers of a test that are in memory at a time
_SAME = 1e-12  # sums that differ by less, relative to their terms, are equal


def row_spearman(
    x: Float[np.ndarray, "draws units"], y: Float[np.ndarray, "draws units"]
) -> Float[np.ndarray, " draws"]:
    """Spearman's rho of each row: Pearson's r of average ranks; NaN where a side is constant."""
    first, second = (rankdata(side, axis=1) for side in (x, y))
    first, second = (side - side.mean(axis=1, keepdims=True) for side in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    rho = np.full(len(scale), np.nan)
    return np.asarray(np.divide((first * second).sum(axis=1), scale, out=rho, where=scale > 0))


@functools.lru_cache(maxsize=2)
def all_permutations(n: int) -> Int[np.ndarray, "permutations n"]:
    """Every ordering of 0 .. n-1 as rows, n at most 9 (362,880 rows)."""
    orders: Int[np.ndarray, "permutations n"] = np.array(list(itertools.permutations(range(n))), dtype=np.int64)
    return orders


def permutation_p(
    x: Float[np.ndarray, " units"],
    y: Float[np.ndarray, " units"],
    *,
    seed: int,
    num_draws: int,
    max_exact_n: int = MAX_EXACT_N,
) -> tuple[float, str]:
    """Two-sided permutation p of Spearman's rho, ties kept: share of |rho(x, permuted y)| >= |rho(x, y)|.

    Up to `max_exact_n` units every permutation is enumerated; above, p = (b + 1) / (m + 1) of m seeded draws
    (Phipson and Smyth 2010, doi 10.2202/1544-6115.1585), never 0.

    Args:
        x: values of the units, not all equal.
        y: the other values, not all equal.
        seed: root seed of the draws.
        num_draws: m; fewer, at least 199, where they would be more than 50 million numbers.
        max_exact_n: largest n that is enumerated.

    Returns:
        p and the name of the method.
    """
    first, second = (side - side.mean() for side in (rankdata(x), rankdata(y)))
    observed = abs(float(first @ second))  # exact: average ranks are multiples of 1/2
    if len(first) <= max_exact_n:
        permuted = second[all_permutations(len(first))] @ first
        return float((np.abs(permuted) >= observed).mean()), "exact permutation"
    count, chunk = max(MIN_DRAWS, min(num_draws, _MAX_DRAWN // len(first))), max(1, _MAX_HELD // len(first))
    draws, reached = generator(seed, "permutation"), 0
    for start in range(0, count, chunk):
        rows = np.tile(second, (min(chunk, count - start), 1))
        reached += int((np.abs(draws.permuted(rows, axis=1) @ first) >= observed).sum())
    return (reached + 1) / (count + 1), f"Monte-Carlo permutation ({count} draws)"


class PermutationTest(NamedTuple):
    """A restricted permutation test: two-sided p, how it was made, and why p is NaN where it is."""

    p: float
    method: str
    reason: str = ""


def restricted_permutation(
    x: Float[np.ndarray, " cells"],
    y: Float[np.ndarray, " cells"],
    group: Int[np.ndarray, " cells"],
    cluster: Int[np.ndarray, " cells"],
    *,
    num_draws: int,
    draws: np.random.Generator,
) -> PermutationTest:
    """Two-sided p of Σ x_i y_i when recipes swap all their x, each x staying in its task and model.

    Recipes that were measured in the same groups are exchangeable under the hypothesis that x tells nothing, however
    much a recipe's F1 agree between groups; so whole recipes are permuted, separately for each set of groups. T is
    compared by its distance from its mean over all permutations. Up to 362,880 arrangements are enumerated; above,
    p = (b + 1) / (m + 1) of m seeded draws (Phipson and Smyth 2010).

    Args:
        x: the predictor, its group means taken out.
        y: F1, its group means taken out.
        group: index of each cell's task and model.
        cluster: index of each cell's recipe; at most one cell per group and cluster.
        num_draws: m.
        draws: source of the permutations.

    Returns:
        NaN with a reason where no two recipes can be exchanged.
    """
    blocks = [item for item in _exchangeable(x, y, group, cluster) if len(item.x) > 1]
    if not blocks:
        return PermutationTest(math.nan, "restricted permutation", "no two recipes were measured in the same groups")
    least = abs(sum(float((item.x * item.y).sum()) for item in blocks))
    least -= _SAME * sum(float(np.abs(item.x).max() * np.abs(item.y).sum()) for item in blocks)
    if math.prod(math.factorial(len(item.x)) for item in blocks) <= MAX_ARRANGEMENTS:
        values = functools.reduce(np.add.outer, [item.sums(all_permutations(len(item.x))) for item in blocks])
        return PermutationTest(float((np.abs(values) >= least).mean()), "exact restricted permutation")
    count = max(MIN_DRAWS, min(num_draws, _MAX_DRAWN // len(x)))
    reached = sum(int((np.abs(part) >= least).sum()) for part in _drawn_sums(blocks, count, draws))
    return PermutationTest((reached + 1) / (count + 1), f"Monte-Carlo restricted permutation ({count} draws)")


class _Block(NamedTuple):
    """Recipes measured in the same groups: x (its column means taken out) and y, a row a recipe, a column a group."""

    x: Float[np.ndarray, "recipes groups"]
    y: Float[np.ndarray, "recipes groups"]

    def sums(self, orders: Int[np.ndarray, "draws recipes"]) -> Float[np.ndarray, " draws"]:
        """Σ x y for each order of the recipes' rows of x."""
        columns = zip(self.x.T, self.y.T, strict=True)
        return np.asarray(sum(first[orders] @ second for first, second in columns))


def _exchangeable(
    x: Float[np.ndarray, " cells"],
    y: Float[np.ndarray, " cells"],
    group: Int[np.ndarray, " cells"],
    cluster: Int[np.ndarray, " cells"],
) -> list[_Block]:
    order = np.lexsort((group, cluster))
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    members: dict[tuple[int, ...], list[Int[np.ndarray, " own"]]] = {}
    for own in np.split(order, starts[1:]):
        members.setdefault(tuple(map(int, group[own])), []).append(own)
    rows = map(np.stack, members.values())
    return [_Block(x[cells] - x[cells].mean(axis=0), y[cells]) for cells in rows]


def _drawn_sums(
    blocks: Sequence[_Block], count: int, draws: np.random.Generator
) -> Iterator[Float[np.ndarray, " draws"]]:
    """Σ x y of `count` random arrangements, some draws at a time so that memory stays small."""
    chunk = max(1, _MAX_HELD // sum(len(item.x) for item in blocks))
    for start in range(0, count, chunk):
        num_rows = min(chunk, count - start)
        orders = (np.tile(np.arange(len(item.x)), (num_rows, 1)) for item in blocks)
        drawn = (draws.permuted(order, axis=1) for order in orders)
        yield np.asarray(sum(item.sums(order) for item, order in zip(blocks, drawn, strict=True)))
