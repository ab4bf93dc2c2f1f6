"""The primary analysis of the recall claim: F1 ~ recall within task and model, recipes as clusters.

    y_i = a_g(i) + b x_i + e_i        x_i and y_i of cells (`rhstudy.stats.cells`), errors clustered by recipe

b is in F1 per unit of the predictor (recall from 0 to 1). Three errors stand side by side: cluster-robust t
(statsmodels), wild cluster bootstrap with the interval by inversion, and the permutation of whole recipes within task
and model, whose p is the claim's. Rivals are fitted alike, one at a time and all together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.ceiling import attainable
from rhstudy.stats.cells import Cells, cells_of, point_arms
from rhstudy.stats.frame import VARIANT, variants_of
from rhstudy.stats.gain import left_out_gain
from rhstudy.stats.mixed import sensitivity
from rhstudy.stats.permutation import restricted_permutation
from rhstudy.stats.power import smallest_detectable_slope
from rhstudy.stats.prediction import left_out_r2, orthonormal
from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, recorded, undefined
from rhstudy.stats.wild import wild_cluster

RECALL_FORMS = ("head_recall", "weighted_head_recall")
"""Forms of recall are alternatives, never rivals of one another in the joint model."""
_FLAT = 1e-12
_MAX_POINTS = 2_000


def pooled_analysis(frame: pd.DataFrame, *, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    """The pooled slope with all its errors, rivals and predictions, on all recipes and without flagged ones.

    Args:
        frame: a validated arm table.
        seed: root seed of everything drawn.
        settings: levels, draws and limits.

    Returns:
        ``predictor``; ``all`` and ``without_flagged``, each as `pooled_slope` with ``rivals`` (name -> slope),
        ``together`` (name -> clustered coefficient in the joint model), ``prediction`` (leave-one-recipe-out),
        ``sensitivity`` (other models), ``reliability`` (the highest correlation that noise between seeds allows) and
        ``variants`` (rule or reference of each ``head_recall@`` column -> slope).
    """
    names = tuple(dict.fromkeys((settings.predictor, *settings.rivals)))
    arms = point_arms(frame)
    flagged = arms["cluster"].isin(arms["cluster"][arms["contains_real"]])
    everyone = _side(arms, names, seed, settings)
    rest = _side(arms[~flagged], names, seed, settings) if flagged.any() else everyone
    return {"predictor": settings.predictor, "all": everyone, "without_flagged": rest}


def _side(arms: pd.DataFrame, names: Sequence[str], seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    own, *rivals = names
    return {
        **pooled_slope(cells_of(arms, [own]), own, seed=seed, settings=settings),
        "rivals": {name: pooled_slope(cells_of(arms, [name]), name, seed=seed, settings=settings) for name in rivals},
        **_joint(arms, own, rivals, seed, settings),
        "sensitivity": sensitivity(arms, own, settings),
        "reliability": attainable(arms, own, settings.level),
        "variants": {
            name.removeprefix(VARIANT): pooled_slope(cells_of(arms, [name]), name, seed=seed, settings=settings)
            for name in variants_of(arms)
        },
    }


def _joint(
    arms: pd.DataFrame, own: str, rivals: Sequence[str], seed: int, settings: StatisticsSettings
) -> dict[str, Any]:
    """All rivals at once, over the cells that have every one of them; rivals nobody measured are left out by name."""
    asked = [name for name in rivals if name not in RECALL_FORMS]
    known = [name for name in asked if arms[name].notna().any()]
    cells = cells_of(arms, [own, *known])
    together = {
        name: joint_coefficient(cells, name, [other for other in (own, *known) if other != name], seed, settings).json()
        for name in (own, *known)
    }
    return {
        "together": together,
        "rivals_left_out": {name: "not recorded in any arm" for name in asked if name not in known},
        "prediction": {
            "recall": left_out_r2(cells, [own]).json(),
            "rivals": left_out_r2(cells, known).json(),
            "both": left_out_r2(cells, [*known, own]).json(),
            "gain_over_rivals": left_out_gain(cells, known, own, settings=settings).json(),
            "gain_over_means": left_out_gain(cells, (), own, settings=settings).json(),
            "each_rival": {
                name: {
                    "r2": left_out_r2(cells, [name]).json(),
                    "gain_of_recall": left_out_gain(cells, [name], own, settings=settings).json(),
                }
                for name in known
            },
        },
    }


def pooled_slope(cells: Cells, predictor: str, *, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    """The slope of F1 on one predictor within task and model.

    Returns:
        ``slope`` (wild cluster bootstrap interval, permutation p), ``wild`` (the same interval, its own p),
        ``clustered`` (cluster-robust t), ``correlation`` (Pearson's r within task and model),
        ``smallest_detectable_slope``, ``num_cells``, ``num_recipes``, ``groups``, ``recipes``, ``points`` (fitted F1
        and residual of each cell; none where there is no fit or more than 2,000 cells).
    """
    slope, wild, clustered = _slope(cells, predictor, seed, settings)
    x, y = cells.within(cells.predictors[predictor]), cells.within(cells.f1)
    size = math.sqrt(float(x @ x) * float(y @ y))
    power = smallest_detectable_slope(cells, predictor, seed=seed, settings=settings)
    correlation = null(float(x @ y) / size if size > 0 else math.nan)
    reasons = {"correlation": "F1 or predictor does not vary"} if correlation is None else {}
    return {
        "slope": slope.json(),
        "wild": wild.json(),
        "clustered": clustered.json(),
        "correlation": correlation,
        "smallest_detectable_slope": {"value": null(power.value), "reason": power.reason},
        "num_cells": cells.n,
        "num_recipes": len(cells.clusters),
        "groups": list(cells.groups),
        "recipes": list(cells.clusters),
        "points": _points(cells, x, slope.estimate),
        "reasons": reasons,
    }


def _points(cells: Cells, x: Float[np.ndarray, " cells"], slope: float) -> list[dict[str, Any]]:
    if math.isnan(slope) or cells.n > _MAX_POINTS:
        return []
    fitted = cells.f1 - cells.within(cells.f1) + slope * x
    return [
        {"recipe": cells.clusters[c], "group": cells.groups[g], "fitted": float(value), "residual": float(f1 - value)}
        for c, g, value, f1 in zip(cells.cluster, cells.group, fitted, cells.f1, strict=True)
    ]


def _slope(
    cells: Cells, predictor: str, seed: int, settings: StatisticsSettings
) -> tuple[Statistic, Statistic, Statistic]:
    """The slope with permutation p, with the bootstrap's p, and with cluster-robust t."""
    num = len(cells.clusters)
    what = f"OLS f1 ~ {predictor} + task:model"
    reason = unfit(cells, [predictor], settings)
    if reason:
        blank = undefined(reason, n=num, method=what, tested=True, seed=seed)
        return blank, blank, blank
    x, y = cells.within(cells.predictors[predictor]), cells.within(cells.f1)
    estimate = float(x @ y / (x @ x))
    wild = wild_cluster(
        x, y, cells.dummies(), cells.cluster,
        num_draws=settings.num_resamples, level=settings.level, draws=generator(seed, "wild", predictor),
    )  # fmt: skip
    test = restricted_permutation(
        x, y, cells.group, cells.cluster,
        num_draws=settings.num_permutations, draws=generator(seed, "restricted permutation", predictor),
    )  # fmt: skip

    def with_p(p: float, method: str, why: str) -> Statistic:
        notes = [f"no interval: {wild.reason}" if math.isnan(wild.low) else "", f"no p: {why}" if math.isnan(p) else ""]
        return Statistic(
            estimate=estimate, low=wild.low, high=wild.high, n=num, method=f"{what}, {method}", p=p, seed=seed,
            reason="; ".join(filter(None, notes)), warnings=(*_warnings(cells), *cells.dropped),
        )  # fmt: skip

    slope = with_p(test.p, f"{test.method} p, {wild.method} interval", test.reason)
    return (
        slope,
        with_p(wild.p, f"{wild.method} p and interval", wild.reason),
        clustered_slope(cells, predictor, settings),
    )


def _warnings(cells: Cells) -> tuple[str, ...]:
    counts = sorted({int(count) for count in cells.num_seeds})
    return (f"cells have unequal numbers of seeds: {counts[0]} to {counts[-1]}",) if len(counts) > 1 else ()


def unfit(cells: Cells, predictors: Sequence[str], settings: StatisticsSettings) -> str:
    """Why the model of `predictors` cannot be fitted to `cells`; empty where it can."""
    num, columns = len(cells.clusters), len(cells.groups) + len(predictors)
    if num < settings.min_regression_n:
        return f"the regression needs {settings.min_regression_n} recipes, there are {num}"
    if cells.n <= columns:
        return f"{cells.n} cells leave no residual degree of freedom for {columns} coefficients"
    flat = [name for name in predictors if np.abs(cells.within(cells.predictors[name])).max() <= _FLAT]
    if flat:
        return f"every recipe has the same {flat[0].replace('_', ' ')} within its task and model"
    if np.abs(cells.within(cells.f1)).max() <= _FLAT:
        return "every recipe has the same F1 within its task and model"
    return ""


def clustered_slope(cells: Cells, predictor: str, settings: StatisticsSettings) -> Statistic:
    """The slope with cluster-robust errors and t of C - 1 degrees of freedom (statsmodels, ``cov_type="cluster"``)."""
    table = pd.DataFrame({"f1": cells.f1, "x": cells.within(cells.predictors[predictor]), "group": cells.group})
    several = len(cells.groups) > 1
    formula = "f1 ~ x + C(group)" if several else "f1 ~ x"
    fit, noted = recorded(
        lambda: smf.ols(formula, data=table).fit(cov_type="cluster", cov_kwds={"groups": cells.cluster}, use_t=True)
    )
    (low, high), later = recorded(lambda: fit.conf_int(alpha=1 - settings.level).loc["x"])
    estimate, p = float(fit.params["x"]), float(fit.pvalues["x"])
    sound = all(map(math.isfinite, (low, high, p)))
    return Statistic(
        estimate=estimate,
        low=float(low) if sound else math.nan,
        high=float(high) if sound else math.nan,
        n=len(cells.clusters),
        method=f"OLS f1 ~ {predictor} + task:model, cluster-robust t over recipes",
        p=p if sound else math.nan,
        reason="" if sound else "cluster-robust errors are undefined: the fit hangs on single recipes",
        warnings=(*noted, *later),
    )


def joint_coefficient(
    cells: Cells, name: str, others: Sequence[str], seed: int, settings: StatisticsSettings
) -> Statistic:
    """The coefficient of one predictor beside `others`, both per standard deviation within task and model.

    F1 per standard deviation, so that predictors of different units compare; wild cluster bootstrap interval and p.
    """
    method = f"OLS f1 ~ {name} + {' + '.join(others) or 'nothing else'} + task:model, per standard deviation"
    num = len(cells.clusters)
    reason = unfit(cells, [name, *others], settings)
    if reason:
        return undefined(reason, n=num, method=method, tested=True, seed=seed)
    x = _scaled(cells, name)
    basis = orthonormal(np.column_stack([cells.dummies(), *(_scaled(cells, other) for other in others)]))
    beside = x - basis @ (basis.T @ x)
    if float(beside @ beside) <= 1e-9 * float(x @ x):
        reason = f"{name} is a combination of the others within task and model"
        return undefined(reason, n=num, method=method, tested=True, seed=seed)
    wild = wild_cluster(
        x, cells.f1, basis, cells.cluster,
        num_draws=settings.num_resamples, level=settings.level, draws=generator(seed, "joint", name),
    )  # fmt: skip
    return Statistic(
        estimate=float(beside @ cells.f1 / (beside @ beside)), low=wild.low, high=wild.high, n=num,
        method=f"{method}, {wild.method}", p=wild.p, seed=seed, reason=wild.reason, warnings=_warnings(cells),
    )  # fmt: skip


def _scaled(cells: Cells, name: str) -> Float[np.ndarray, " cells"]:
    within = cells.within(cells.predictors[name])
    size = math.sqrt(float(within @ within) / cells.n)
    return np.asarray(within / size if size > _FLAT else within)
