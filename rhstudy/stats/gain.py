"""What a predictor adds to others in leave-one-recipe-out R², with an interval that refits for every recipe left out.

Notation, within task and model: V_0, V_z, V_w the variance of F1 that is left by nothing, by the other predictors z,
and by z and the predictor x; d_0, d_z, d_w the squared left-out errors of these models (`rhstudy.stats.prediction`);
f_k = E Σ d_k / (cells V_k) what it costs to fit model k to the other recipes, for recipes as they are and errors of
one variance that a recipe's cells share as far as the residuals do.

    gain      = (Σ d_z - Σ d_w) / Σ d_0                                   the estimate
    r         = sign(b) sqrt((V_z - V_w) / V_0)                            the semipartial correlation of x with F1
    E gain(r) = r² f_w / f_0 - u (f_w / f_z - 1),   u = Σ d_z / Σ d_0      from V_w = V_z - r² V_0

The gain is a square: where x adds nothing its estimate is skewed and its error shrinks with the estimate itself, so
that no normal interval around it covers. r is none. Its interval is a jackknife-t over recipes (Tukey 1958; Miller
1974, Biometrika 61:1) of z = artanh r: each recipe is left out, everything is refitted, and the pseudo-values
n z - (n - 1) z_(c) have mean ± t_{n-1} standard errors. The ends go through E gain. Where 0 lies between them the data
do not say what x costs either: there the lower end is the least of E gain(0), of the gain of the same F1 without the
fitted effect of x (the least the estimate can be), and of estimate - t se, se the gain's own jackknife error (above 15
recipes that with fits held: Bayle et al. 2020, NeurIPS, arXiv 2007.12671). sweeps/statistics/RESULTS.md says how often
it covers, and what was tried before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from rhstudy.shapes import Float
from rhstudy.stats.cells import Cells
from rhstudy.stats.intervals import MAX_BOOTSTRAP_N, Bounds
from rhstudy.stats.power import shared_variance
from rhstudy.stats.prediction import clusters_by_size, errors_of_models, left_out_errors, orthonormal
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined

MAX_REFITTED = 15
"""Most recipes at which all left-out errors are made anew without each recipe."""
_SINGULAR = 1e-9
_LINE = 1e-9  # 1 - r² below this: F1 is a linear function of the predictors


class _Errors(NamedTuple):
    """d_0, d_z and d_w of each recipe."""

    nothing: Float[np.ndarray, " clusters"]
    without: Float[np.ndarray, " clusters"]
    with_it: Float[np.ndarray, " clusters"]

    @property
    def gain(self) -> float:
        """The estimate."""
        return float((self.without - self.with_it).sum() / self.nothing.sum())

    def error(self) -> float:
        """Standard error of the estimate, the recipes independent and every fit held."""
        n, leaning = len(self.nothing), self.without - self.with_it - self.gain * self.nothing
        return math.sqrt(n / (n - 1) * float(leaning @ leaning)) / float(self.nothing.sum())


def left_out_gain(cells: Cells, others: Sequence[str], added: str, *, settings: StatisticsSettings) -> Statistic:
    """What `added` adds to R²_loo of `others`, with its interval over recipes.

    Args:
        cells: with all of them among the predictors.
        others: the predictors it is added to; none asks whether it tells more than the group means.
        added: the predictor in question.
        settings: level and the fewest recipes of an interval.
    """
    method = f"gain in leave-one-recipe-out R2 from {added} over {', '.join(others) or 'the group means'}"
    found = errors_of_models(cells, [(), tuple(others), (*others, added)])
    num = len(cells.clusters)
    if isinstance(found, str):
        return undefined(found, n=num, method=method)
    errors = _Errors(*found)
    ends = _interval(cells, others, added, errors, settings)
    method += "" if ends.reason else ", jackknife-t over recipes of the semipartial correlation"
    return Statistic(
        estimate=errors.gain, low=ends.low, high=ends.high, n=num, method=method,
        reason=f"no interval: {ends.reason}" if ends.reason else "",
    )  # fmt: skip


def _interval(cells: Cells, others: Sequence[str], added: str, errors: _Errors, settings: StatisticsSettings) -> Bounds:
    num, blank = len(cells.clusters), math.nan
    if num < settings.min_bootstrap_n:
        return Bounds(blank, blank, f"it needs {settings.min_bootstrap_n} recipes, there are {num}")
    if num > MAX_BOOTSTRAP_N:
        return Bounds(blank, blank, f"no jackknife is made of more than {MAX_BOOTSTRAP_N} recipes")
    every, without_each = semipartial(cells, others, added)
    if not np.isfinite(without_each).all():
        lost = cells.clusters[int(np.flatnonzero(~np.isfinite(without_each))[0])]
        return Bounds(blank, blank, f"the fit is not determined, or exact, without recipe {lost}")
    z, left = math.atanh(every), np.arctanh(without_each)
    pseudo = num * z - (num - 1) * left
    t = float(student_t.isf((1 - settings.level) / 2, num - 1))
    half = t * float(pseudo.std(ddof=1)) / math.sqrt(num)
    first, last = math.tanh(pseudo.mean() - half), math.tanh(pseudo.mean() + half)
    cost = _cost(cells, others, added)
    unexplained = float(errors.without.sum() / errors.nothing.sum())

    def expected(r: float) -> float:
        return r * r * cost.with_it / cost.nothing - unexplained * (cost.with_it / cost.without - 1)

    least, most = sorted((abs(first), abs(last)))
    low, high = min(expected(least), errors.gain), max(expected(most), errors.gain)
    if first <= 0 <= last:
        error = errors.error() if num > MAX_REFITTED else _jackknife_error(cells, others, added)
        low = min(expected(0.0), _without_effect(cells, others, added, errors), errors.gain - t * error)
    return Bounds(low, high)


def semipartial(cells: Cells, others: Sequence[str], added: str) -> tuple[float, Float[np.ndarray, " clusters"]]:
    """r over all recipes and without each of them; NaN where it is undefined or the fit is exact.

    From crossproducts, from which those of the recipe that is left out are taken away.
    """
    centred = [cells.within(values) for values in (cells.f1, cells.predictors[added])]
    rest = [cells.within(cells.predictors[name]) for name in others]
    columns = [side / (np.linalg.norm(side) or 1.0) for side in (*centred, *rest)]
    table = np.column_stack([*columns, cells.dummies()])
    own = np.zeros((len(cells.clusters), table.shape[1], table.shape[1]))
    np.add.at(own, cells.cluster, table[:, :, None] * table[:, None, :])
    products = np.concatenate([own.sum(axis=0)[None], own.sum(axis=0) - own])
    groups = slice(2 + len(rest), None)
    y0 = _left(products, [0], groups)[:, 0, 0]
    both = _left(products, [0, 1], slice(2, None))
    scale = both[:, 1, 1] * y0
    sound = (both[:, 1, 1] > _SINGULAR) & (y0 > _SINGULAR)
    r = np.divide(both[:, 0, 1], np.sqrt(np.where(sound, scale, 1)), out=np.full(len(y0), np.nan), where=sound)
    r[1 - r * r <= _LINE] = np.nan
    return float(r[0]), r[1:]


def _left(
    products: Float[np.ndarray, "fits columns columns"], kept: Sequence[int], out: slice
) -> Float[np.ndarray, "fits kept kept"]:
    """Crossproducts of columns `kept` with columns `out` partialled out, for each fit."""
    between = products[:, kept][:, :, out]
    inverse = np.linalg.pinv(products[:, out, out], rcond=_SINGULAR, hermitian=True)
    return np.asarray(products[:, kept][:, :, kept] - between @ inverse @ between.transpose(0, 2, 1))


class _Cost(NamedTuple):
    """f_0, f_z and f_w."""

    nothing: float
    without: float
    with_it: float


def _cost(cells: Cells, others: Sequence[str], added: str) -> _Cost:
    full = _basis(cells, [*others, added])
    shared = shared_variance(cells.f1 - full @ (full.T @ cells.f1), cells)
    return _Cost(*(inflation(cells, basis, shared) for basis in (_basis(cells, []), _basis(cells, others), full)))


def _basis(cells: Cells, names: Sequence[str]) -> Float[np.ndarray, "cells rank"]:
    return orthonormal(
        np.column_stack([cells.dummies(), *(cells.within(cells.predictors[name]) for name in names)])
    )  # fmt: skip


def inflation(cells: Cells, basis: Float[np.ndarray, "cells rank"], shared: float) -> float:
    """f: mean over cells of the variance of a left-out error, where F1 has errors of variance 1 and no mean.

    With M_c = (I - H_cc)^-1, Σ = (1 - shared) I + shared within a recipe: Σ_c tr(M_c [(I - H) Σ (I - H)]_cc M_c) / n.

    Args:
        cells: recipes, tasks and models.
        basis: orthonormal columns of the model, H = basis basis'.
        shared: correlation of the errors of a recipe's cells, 0-1.
    """
    sums = np.zeros((len(cells.clusters), basis.shape[1]))
    np.add.at(sums, cells.cluster, basis)
    mixed = (1 - shared) * basis + shared * sums[cells.cluster]
    middle, total = basis.T @ mixed, 0.0
    for own in clusters_by_size(cells.cluster):
        alone, some = np.eye(own.shape[1]), basis[own]
        turned = some.transpose(0, 2, 1)
        cross = some @ mixed[own].transpose(0, 2, 1)
        spread = (1 - shared) * alone + shared - cross - cross.transpose(0, 2, 1) + some @ middle @ turned
        inverse = np.linalg.inv(alone - some @ turned)
        total += float(np.trace(inverse @ spread @ inverse, axis1=1, axis2=2).sum())
    return total / cells.n


def _jackknife_error(cells: Cells, others: Sequence[str], added: str) -> float:
    """sqrt((n - 1) / n Σ_c (gain_(c) - mean)²), gain_(c) that of a study without recipe c, where it has one."""
    num, gains = len(cells.clusters), []
    for index in range(num):
        rest = cells.without(index)
        models = ((), tuple(others), (*others, added))
        gains.append(_Errors(*(left_out_errors(rest, names) for names in models)).gain)
    return math.sqrt((num - 1) ** 2 / num * np.nanvar(gains, ddof=1)) if np.isfinite(gains).sum() > 1 else 0.0


def _without_effect(cells: Cells, others: Sequence[str], added: str, errors: _Errors) -> float:
    """The gain of F1 - b x, b the fitted slope beside the others; the errors of the model with x stay as they are."""
    x, basis = cells.within(cells.predictors[added]), _basis(cells, others)
    beside = x - basis @ (basis.T @ x)
    bare = replace(cells, f1=cells.f1 - float(beside @ cells.f1) / float(beside @ beside) * x)
    return float((left_out_errors(bare, others).sum() - errors.with_it.sum()) / errors.nothing.sum())
