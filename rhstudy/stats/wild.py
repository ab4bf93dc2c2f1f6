"""Wild cluster bootstrap of one coefficient of a linear model: p, and the interval of all values it does not reject.

With x and y after all other regressors Z are partialled out (M = I - Q Q', Q an orthonormal basis of Z), b the slope,
q_c = Σ_{i in c} x_i² and s_c(β) = Σ_{i in c} x_i (y_i - β x_i), the cluster-robust t is

    t(β) = (b - β) Σ x² / sqrt(Σ_c s_c(b)²)

(the small-sample factor is the same in every draw and left out). A draw multiplies the residuals of the model
restricted to slope β by one weight per cluster and refits; since every quantity is linear in the weights and in β, a
draw is a few numbers and no refit is run (Cameron, Gelbach and Miller 2008, Rev. Econ. Stat. 90:414, "WCR"; the
interval by inversion as in Roodman et al. 2019, Stata J. 19:4).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from rhstudy.shapes import Float, Int

MAX_CLUSTERS = 500
"""Above this many clusters no bootstrap is drawn: the cluster-robust t interval is as good."""
FEW_CLUSTERS = 10
"""Below this many clusters Rademacher's two weights give too few distinct draws: Webb's six are taken."""
_WEBB = np.sqrt([0.5, 1.0, 1.5])
WEIGHTS = {"Rademacher": np.array([-1.0, 1.0]), "Webb": np.concatenate([-_WEBB[::-1], _WEBB])}
_SAME = 1e-9  # t of two draws that differ by less (relatively) are equal: the draw of all ones is the sample itself
_MAX_DOUBLINGS = 40


class WildResult(NamedTuple):
    """p of slope 0 and the interval of slopes not rejected; `reason` says why an end is NaN."""

    p: float
    low: float
    high: float
    method: str
    reason: str = ""


def cluster_weights(
    num_clusters: int, num_draws: int, draws: np.random.Generator
) -> tuple[Float[np.ndarray, "draws clusters"], str]:
    """A weight per draw and cluster: every combination where there are at most `num_draws`, else random ones.

    Webb's six-point weights (2014, Queen's Economics Dept. WP 1315) below `FEW_CLUSTERS` clusters, else Rademacher's.
    """
    name = "Webb" if num_clusters < FEW_CLUSTERS else "Rademacher"
    points = WEIGHTS[name]
    count = len(points) ** num_clusters
    if count <= num_draws:
        rows = np.array(list(itertools.product(points, repeat=num_clusters)))
        return rows, f"{name} weights, all {count} draws"
    return points[draws.integers(0, len(points), (num_draws, num_clusters))], f"{name} weights, {num_draws} draws"


class _Draws(NamedTuple):
    """Per draw: numerator n0 - β n1 and squared denominator a - 2 β b + β² c of t; per sample: slope and its error."""

    n0: Float[np.ndarray, " draws"]
    n1: Float[np.ndarray, " draws"]
    a: Float[np.ndarray, " draws"]
    b: Float[np.ndarray, " draws"]
    c: Float[np.ndarray, " draws"]
    slope: float
    error: float
    exact: bool

    def p(self, beta: float) -> float:
        """Share of draws under slope `beta` whose |t| reaches the sample's; (b + 1) / (m + 1) where drawn at random."""
        observed = abs(self.slope - beta) / self.error
        top = np.abs(self.n0 - beta * self.n1)
        bottom = np.sqrt(np.clip(self.a - 2 * beta * self.b + beta * beta * self.c, 0, None))
        reached = int((top >= observed * bottom * (1 - _SAME)).sum())
        return reached / len(top) if self.exact else (reached + 1) / (len(top) + 1)


def _prepare(
    x: Float[np.ndarray, " cells"],
    y: Float[np.ndarray, " cells"],
    basis: Float[np.ndarray, "cells others"],
    cluster: Int[np.ndarray, " cells"],
    weights: Float[np.ndarray, "draws clusters"],
    exact: bool,
) -> _Draws:
    num_clusters, total = weights.shape[1], float(x @ x)

    def by_cluster(values: Float[np.ndarray, "cells ..."]) -> Float[np.ndarray, "clusters ..."]:
        found = np.zeros((num_clusters, *values.shape[1:]))
        np.add.at(found, cluster, values)
        return found

    q, leaning = by_cluster(x * x), by_cluster(x[:, None] * basis)

    def drawn(values: Float[np.ndarray, " cells"]) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, "d c"]]:
        """Numerator and cluster scores of every draw, where the restricted residuals are `values`."""
        scores = by_cluster(x * values)
        spread = np.diag(scores) - by_cluster(values[:, None] * basis) @ leaning.T - np.outer(scores, q) / total
        return weights @ scores, weights @ spread

    (n0, first), (n1, second) = drawn(y), drawn(x)
    slope = float(x @ y) / total
    return _Draws(
        n0=n0,
        n1=n1,
        a=(first * first).sum(axis=1),
        b=(first * second).sum(axis=1),
        c=(second * second).sum(axis=1),
        slope=slope,
        error=float(np.sqrt((by_cluster(x * (y - slope * x)) ** 2).sum())) / total,
        exact=exact,
    )


def wild_cluster(
    x: Float[np.ndarray, " cells"],
    y: Float[np.ndarray, " cells"],
    basis: Float[np.ndarray, "cells others"],
    cluster: Int[np.ndarray, " cells"],
    *,
    num_draws: int,
    level: float,
    draws: np.random.Generator,
) -> WildResult:
    """p of slope 0 and the interval of y on x beside the regressors spanned by `basis`.

    Args:
        x: the regressor, varying beside `basis`.
        y: the outcome.
        basis: orthonormal columns of all other regressors.
        cluster: index of each cell's cluster, 0 .. C - 1.
        num_draws: bootstrap draws where not all can be enumerated.
        level: coverage, 0-1.
        draws: source of the weights.

    Returns:
        NaN with a reason for one cluster, for more than `MAX_CLUSTERS`, where the fit is exact, or where no slope is
        rejected however large (too few clusters).
    """
    num_clusters = int(cluster.max()) + 1
    if not 1 < num_clusters <= MAX_CLUSTERS:
        reason = f"a wild cluster bootstrap takes 2 to {MAX_CLUSTERS} recipes, there are {num_clusters}"
        return WildResult(math.nan, math.nan, math.nan, "wild cluster bootstrap", reason)
    x, y = (side - basis @ (basis.T @ side) for side in (x, y))
    weights, how = cluster_weights(num_clusters, num_draws, draws)
    found = _prepare(x, y, basis, cluster, weights, "all" in how)
    method = f"wild cluster bootstrap-t ({how})"
    if found.error <= 1e-12 * max(1.0, abs(found.slope)):
        return WildResult(math.nan, math.nan, math.nan, method, "every point lies on the fitted line")
    ends = [_end(found, side, 1 - level) for side in (-1, 1)]
    reason = "" if all(map(math.isfinite, ends)) else f"with {num_clusters} recipes no slope is large enough to reject"
    low, high = ends if not reason else (math.nan, math.nan)
    return WildResult(found.p(0.0), low, high, method, reason)


def _end(found: _Draws, side: int, alpha: float) -> float:
    """The slope on one side of the estimate where p falls to `alpha`; NaN where it never does."""
    inside, step = found.slope, found.error
    for _ in range(_MAX_DOUBLINGS):
        outside = found.slope + side * step
        if found.p(outside) <= alpha:
            break
        inside, step = outside, 2 * step
    else:
        return math.nan
    while abs(outside - inside) > 1e-10 * max(1.0, abs(inside)):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if found.p(middle) > alpha else (inside, middle)
    return (inside + outside) / 2
