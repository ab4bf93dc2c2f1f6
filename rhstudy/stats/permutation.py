"""Spearman's rho over many orderings at once, and the permutation test built on it."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from scipy.stats import rankdata

from rhstudy.seeding import generator
from rhstudy.shapes import Float, Int

MAX_EXACT_N = 9
"""Most units whose every ordering is enumerated: 9! = 362,880."""

_TIE = 1e-9  # permuted statistics this close to the observed one equal it: they differ by summation order alone


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
        num_draws: m.
        max_exact_n: largest n that is enumerated.

    Returns:
        p and the name of the method.
    """
    first, second = (side - side.mean() for side in (rankdata(x), rankdata(y)))
    observed = abs(float(first @ second)) - _TIE * float(np.linalg.norm(first) * np.linalg.norm(second))
    if len(first) <= max_exact_n:
        permuted = second[all_permutations(len(first))] @ first
        return float((np.abs(permuted) >= observed).mean()), "exact permutation"
    rows = np.tile(second, (num_draws, 1))
    permuted = generator(seed, "permutation").permuted(rows, axis=1) @ first
    reached = int((np.abs(permuted) >= observed).sum())
    return (reached + 1) / (num_draws + 1), f"Monte-Carlo permutation ({num_draws} draws)"
