"""Layer-matched random heads: what a knockout of that many heads in those layers does when the heads do not retrieve.

A draw has the size and the layer histogram of the knocked-out set and shares no head with it, nor with the retrieval
heads. Every layer first gives of its own; a layer that is short then borrows from the nearest layer that has heads left
(of two as near, the lower one), and that is recorded. If even so there are too few heads there is no draw at all, with
the reason: never a smaller one. Draws are distinct sets, uniform among those with these numbers per layer. The heads of
the lowest score are taken under the same numbers: those that retrieve least in the same layers.

Published code differs: it draws from a hard-coded 32 x 32 grid without a seed, ignores layers, and its exclusion of the
retrieval heads compares tuples with lists, so that nothing is excluded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rhstudy.errors import require
from rhstudy.shapes import Float
from rhstudy.types import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """Heads that one layer lacked and another gave.

    Attributes:
        layer: the layer that was short.
        from_layer: the layer that gave.
        count: how many heads.
    """

    layer: int
    from_layer: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The random head sets of one dose.

    Attributes:
        draws: distinct sets, each sorted; empty when there is a reason.
        num_distinct: how many distinct sets there are to draw from.
        borrowed: which layers did not have enough heads of their own.
        reason: why there is no draw, else empty.
        note: what a reader should know of the draws, else empty.
    """

    draws: tuple[tuple[Head, ...], ...] = ()
    num_distinct: int = 0
    borrowed: tuple[Borrowed, ...] = ()
    reason: str = ""
    note: str = ""


def matched_draws(
    knocked_out: Collection[Head],
    retrieval_heads: Collection[Head],
    heads_per_layer: Sequence[int],
    *,
    num_draws: int,
    draws: np.random.Generator,
) -> Controls:
    """Random head sets matched to `knocked_out`; see the module docstring.

    Args:
        knocked_out: the top-k heads, at least one.
        retrieval_heads: H; no draw holds one of them.
        heads_per_layer: query heads of each layer of the model.
        num_draws: how many sets, at least 1; all distinct ones when there are fewer.
        draws: source of randomness.

    Returns:
        The draws, or none with the reason.

    Raises:
        InputError: `num_draws` < 1, no head to match, or a head outside the model.
    """
    require(num_draws >= 1, "num_draws", "be at least 1", num_draws, "199 draws let p fall to 0.005")
    require(len(knocked_out) > 0, "knocked_out", "hold at least one head", len(knocked_out), "A dose is 1 or more")
    taken = set(knocked_out) | set(retrieval_heads)
    outside = [head for head in sorted(taken) if not _exists(head, heads_per_layer)]
    remedy = "Take heads from a model of this shape"
    require(not outside, "heads", f"lie within the model's {len(heads_per_layer)} layers", outside[:3], remedy)
    free = [[head for head in range(size) if (layer, head) not in taken] for layer, size in enumerate(heads_per_layer)]
    if reason := _shortage(set(knocked_out), free, sum(heads_per_layer)):
        return Controls(reason=reason)
    quotas, borrowed = _quotas(set(knocked_out), free)
    num_distinct = math.prod(math.comb(len(heads), quota) for heads, quota in zip(free, quotas, strict=True))
    note = f"only {num_distinct} distinct sets exist, all are used" if num_distinct < num_draws else ""
    chosen = _every_set(free, quotas) if num_distinct <= num_draws else _some_sets(free, quotas, num_draws, draws)
    return Controls(draws=chosen, num_distinct=num_distinct, borrowed=borrowed, note=note)


def lowest_heads(
    knocked_out: Collection[Head], retrieval_heads: Collection[Head], mean: Float[np.ndarray, "layers heads"]
) -> Controls:
    """As many heads of the lowest mean score, in the same layers as far as these have enough.

    Of equal scores the lower head is taken, and `note` says how many of the chosen share theirs with one left out.

    Args:
        knocked_out: the top-k heads, at least one.
        retrieval_heads: H; none of them is chosen.
        mean: mean score of every head, NaN where a layer has no such head.

    Returns:
        One set as the only draw, or none with the reason.
    """
    taken = set(knocked_out) | set(retrieval_heads)
    rising = [np.argsort(row, kind="stable")[: np.isfinite(row).sum()] for row in mean]
    free = [[int(head) for head in order if (layer, head) not in taken] for layer, order in enumerate(rising)]
    if reason := _shortage(set(knocked_out), free, sum(map(len, rising))):
        return Controls(reason=reason)
    quotas, borrowed = _quotas(set(knocked_out), free)
    pairs = list(enumerate(zip(free, quotas, strict=True)))
    chosen = [(layer, head) for layer, (heads, quota) in pairs for head in heads[:quota]]
    others = {(layer, mean[layer, head]) for layer, (heads, quota) in pairs for head in heads[quota:]}
    tied = sum((layer, mean[layer, head]) in others for layer, head in chosen)
    note = f"{tied} of {len(chosen)} have the score of one that was not taken" if tied else ""
    return Controls(draws=(tuple(sorted(chosen)),), num_distinct=1, borrowed=borrowed, note=note)


def _shortage(knocked_out: Collection[Head], free: Sequence[Sequence[int]], num_total: int) -> str:
    """Why no set of the wanted size can be filled, else empty."""
    num_free, wanted = sum(map(len, free)), len(knocked_out)
    if num_free >= wanted:
        return ""
    counts = f"{wanted} heads are wanted and {num_free} of {num_total} are left"
    return f"{counts} outside the knocked-out and the retrieval heads"


def _exists(head: Head, heads_per_layer: Sequence[int]) -> bool:
    return 0 <= head[0] < len(heads_per_layer) and 0 <= head[1] < heads_per_layer[head[0]]


def _quotas(
    knocked_out: Collection[Head], free: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[Borrowed, ...]]:
    """How many heads each layer gives, and what was borrowed; the layers hold enough heads in all."""
    wanted = [sum(head[0] == layer for head in knocked_out) for layer in range(len(free))]
    quotas = [min(want, len(heads)) for want, heads in zip(wanted, free, strict=True)]
    borrowed = []
    for layer, want in enumerate(wanted):
        short = want - min(want, len(free[layer]))
        for giver in sorted(range(len(free)), key=lambda other: (abs(other - layer), other)):
            count = min(short, len(free[giver]) - quotas[giver])
            if count > 0:
                quotas[giver] += count
                short -= count
                borrowed.append(Borrowed(layer=layer, from_layer=giver, count=count))
    return tuple(quotas), tuple(borrowed)


def _every_set(free: Sequence[Sequence[int]], quotas: Sequence[int]) -> tuple[tuple[Head, ...], ...]:
    by_layer = [itertools.combinations(heads, quota) for heads, quota in zip(free, quotas, strict=True)]
    return tuple(
        tuple((layer, head) for layer, heads in enumerate(chosen) for head in heads)
        for chosen in itertools.product(*by_layer)
    )


def _some_sets(
    free: Sequence[Sequence[int]], quotas: Sequence[int], num_draws: int, draws: np.random.Generator
) -> tuple[tuple[Head, ...], ...]:
    """Distinct random sets; a set drawn before is drawn anew, which keeps the rest uniform."""
    found: dict[tuple[Head, ...], None] = {}
    while len(found) < num_draws:
        picked = [
            (layer, int(head))
            for layer, quota in enumerate(quotas)
            if quota
            for head in draws.choice(free[layer], size=quota, replace=False)
        ]
        found[tuple(sorted(picked))] = None
    return tuple(found)
