"""How well predictors tell the F1 of a recipe they were not fitted on: leave-one-recipe-out R², and what one adds.

For cluster c (a recipe in all its tasks), d_c = Σ_{i in c} (y_i - ŷ_i)² with ŷ from the least-squares fit to all other
recipes, and d0_c the same for the model that has nothing but a mean per task and model:

    R²_loo = 1 - Σ_c d_c / Σ_c d0_c
    gain   = R²_loo(with) - R²_loo(without) = Σ_c (d_without - d_with) / Σ_c d0_c

R²_loo is negative where a predictor tells less than the group means. The interval of a gain is a BCa bootstrap over
recipes of that ratio with each recipe's errors held (Bayle et al. 2020, NeurIPS, arXiv 2007.12671: intervals of a
cross-validated error need no refit; with few recipes they are too short all the same, and a warning says so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.cells import Cells
from rhstudy.stats.intervals import bca_interval
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined

MAX_RECIPES = 20_000
UNDERCOVERS = "the interval holds the fits fixed and is too short: in simulations it covers 74 to 93 %, not 95 %"
"""Seen in sweeps/statistics/RESULTS.md; there it lay above 0 in less than 1 % of studies where nothing is gained."""
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
    order = np.argsort(cells.cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cells.cluster[order], prepend=-1))
    for index, own in enumerate(np.split(order, starts[1:])):
        rest = np.eye(len(own)) - basis[own] @ basis[own].T
        if np.linalg.eigvalsh(rest)[0] > _SINGULAR:
            errors[index] = float((np.linalg.solve(rest, residuals[own]) ** 2).sum())
    return errors


def orthonormal(design: Float[np.ndarray, "cells columns"]) -> Float[np.ndarray, "cells rank"]:
    """An orthonormal basis of the columns' span; columns that add nothing are left out."""
    scale = np.linalg.norm(design, axis=0)
    left, size, _ = np.linalg.svd(design / np.where(scale > 0, scale, 1), full_matrices=False)
    return np.asarray(left[:, size > _SINGULAR * size.max(initial=0.0)])


def left_out_r2(cells: Cells, predictors: Sequence[str]) -> Statistic:
    """R²_loo of `predictors`; NaN with a reason where it is undefined for some recipe or F1 does not vary."""
    method = f"leave-one-recipe-out R2 of {', '.join(predictors)} within task and model"
    found = _errors(cells, [(), tuple(predictors)])
    if isinstance(found, str):
        return undefined(found, n=len(cells.clusters), method=method)
    nothing, with_them = found
    value = 1 - float(with_them.sum() / nothing.sum())
    blank = math.nan
    return Statistic(
        estimate=value, low=blank, high=blank, n=len(nothing), method=method, reason="no interval: see the gain"
    )


def left_out_gain(
    cells: Cells, others: Sequence[str], added: str, *, seed: int, settings: StatisticsSettings
) -> Statistic:
    """What `added` adds to R²_loo of `others`, with a BCa interval over recipes.

    Args:
        cells: with all of them among the predictors.
        others: the predictors it is added to; none asks whether it tells more than the group means.
        added: the predictor in question.
        seed: root seed of the resamples.
        settings: level, resamples and the fewest recipes of a bootstrap.
    """
    method = f"gain in leave-one-recipe-out R2 from {added} over {', '.join(others) or 'the group means'}"
    found = _errors(cells, [(), tuple(others), (*others, added)])
    num = len(cells.clusters)
    if isinstance(found, str):
        return undefined(found, n=num, method=method, seed=seed)
    nothing, without, with_it = found
    saved = without - with_it
    value = float(saved.sum() / nothing.sum())
    if num < settings.min_bootstrap_n:
        reason = f"no interval: a bootstrap needs {settings.min_bootstrap_n} recipes, there are {num}"
        return Statistic(estimate=value, low=math.nan, high=math.nan, n=num, method=method, seed=seed, reason=reason)
    ends = bca_interval(
        lambda rows: saved[rows].sum(axis=1) / nothing[rows].sum(axis=1),
        num,
        draws=generator(seed, "left-out gain"),
        num_resamples=settings.num_resamples,
        level=settings.level,
    )
    return Statistic(
        estimate=value,
        low=ends.low,
        high=ends.high,
        n=num,
        method=f"{method}, BCa bootstrap over recipes ({settings.num_resamples} resamples)",
        seed=seed,
        reason=f"no interval: {ends.reason}" if ends.reason else "",
        warnings=(UNDERCOVERS, *ends.warnings),
    )


def _errors(cells: Cells, models: Sequence[Sequence[str]]) -> list[Float[np.ndarray, " clusters"]] | str:
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
