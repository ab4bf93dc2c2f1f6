"""How well predictors tell the F1 of a recipe they were not fitted on: leave-one-recipe-out R².

For cluster c (a recipe in all its tasks), d_c = Σ_{i in c} (y_i - ŷ_i)² with ŷ from the least-squares fit to all other
recipes, and d0_c the same for the model that has nothing but a mean per task and model:

    R²_loo = 1 - Σ_c d_c / Σ_c d0_c
    gain   = R²_loo(with) - R²_loo(without) = Σ_c (d_without - d_with) / Σ_c d0_c

R²_loo is negative where a predictor tells less than the group means. The interval of a gain: `rhstudy.stats.gain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rhstudy.shapes import Float, Int
from rhstudy.stats.cells import Cells
from rhstudy.stats.statistic import Statistic, undefined

MAX_RECIPES = 20_000
_SINGULAR = 1e-9


def left_out_errors(cells: Cells, predictors: Sequence[str]) -> Float[np.ndarray, " clusters"]:
    """d_c of every recipe; NaN where the fit to the others does not determine its predictions.

    The residuals of left-out cells follow from one fit: e_(c) = (I - H_cc)^-1 e_c, H the hat matrix, e its residuals.

    Args:
        cells: all cells.
        predictors: columns beside the group means; none for d0.
    """
    design = np.column_stack([cells.dummies(), *(cells.within(cells.predictors[name]) for name in predictors)])
    basis = orthonormal(design)
    residuals = cells.f1 - basis @ (basis.T @ cells.f1)
    errors = np.full(len(cells.clusters), np.nan)
    for own in clusters_by_size(cells.cluster):
        some = basis[own]
        rest = np.eye(own.shape[1]) - some @ some.transpose(0, 2, 1)
        sound = np.linalg.eigvalsh(rest)[:, 0] > _SINGULAR
        left_out = np.linalg.solve(rest[sound], residuals[own[sound]][:, :, None])
        errors[cells.cluster[own[sound, 0]]] = (left_out**2).sum(axis=(1, 2))
    return errors


def clusters_by_size(cluster: Int[np.ndarray, " cells"]) -> Iterator[Int[np.ndarray, "clusters size"]]:
    """For each size that clusters have, the cells of those clusters, a row a cluster."""
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    for size in np.unique(sizes):
        yield order[starts[sizes == size][:, None] + np.arange(size)]


def orthonormal(design: Float[np.ndarray, "cells columns"]) -> Float[np.ndarray, "cells rank"]:
    """An orthonormal basis of the columns' span; columns that add nothing are left out."""
    scale = np.linalg.norm(design, axis=0)
    left, size, _ = np.linalg.svd(design / np.where(scale > 0, scale, 1), full_matrices=False)
    return np.asarray(left[:, size > _SINGULAR * size.max(initial=0.0)])


def left_out_r2(cells: Cells, predictors: Sequence[str]) -> Statistic:
    """R²_loo of `predictors`; NaN with a reason where it is undefined for some recipe or F1 does not vary."""
    method = f"leave-one-recipe-out R2 of {', '.join(predictors)} within task and model"
    found = errors_of_models(cells, [(), tuple(predictors)])
    if isinstance(found, str):
        return undefined(found, n=len(cells.clusters), method=method)
    nothing, with_them = found
    value = 1 - float(with_them.sum() / nothing.sum())
    blank = math.nan
    return Statistic(
        estimate=value, low=blank, high=blank, n=len(nothing), method=method, reason="no interval: see the gain"
    )


def errors_of_models(cells: Cells, models: Sequence[Sequence[str]]) -> list[Float[np.ndarray, " clusters"]] | str:
    """The errors of several models, or why they are undefined."""
    if not 3 <= len(cells.clusters) <= MAX_RECIPES:
        return f"leaving one recipe out takes 3 to {MAX_RECIPES} recipes, there are {len(cells.clusters)}"
    found = [left_out_errors(cells, predictors) for predictors in models]
    lost = np.isnan(found).any(axis=0)
    if lost.any():
        names = [cells.clusters[index] for index in np.flatnonzero(lost)[:1]]
        return f"without recipe {names[0]} the model of {len(models[-1])} predictors is not determined"
    if found[0].sum() <= 0:
        return "every recipe has the same F1 within its task and model"
    return found
