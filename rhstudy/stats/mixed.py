"""Sensitivity of the pooled slope to the model: MixedLM, GEE and fractional logit on seed rows, by statsmodels.

    MixedLM           y = a_g + b x + u_recipe + v_cell + e      random effects of the recipe and of task:model:recipe
    GEE               y = a_g + b x, exchangeable within a recipe, bias-reduced sandwich (Mancl and DeRouen 2001)
    fractional logit  E[y] = logistic(a_g + b x), errors clustered by recipe (Papke and Wooldridge 1996)

x is the arm's own predictor, centred within task and model. These fits are iterative: none is refitted in a bootstrap,
and every optimizer tried, whether it converged, and every warning it gave are part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf

from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, recorded, undefined

OPTIMIZERS = ("lbfgs", "bfgs", "powell")
MAX_ROWS = 20_000
"""MixedLM and GEE of more rows take minutes to hours."""


def seed_rows(arms: pd.DataFrame, predictor: str) -> pd.DataFrame:
    """A row per arm with F1 and predictor: ``f1``, ``x`` (centred within ``group``), ``group``, ``cluster`` as codes.

    Args:
        arms: from `rhstudy.stats.cells.point_arms`.
        predictor: a column of it.
    """
    known = arms[arms["f1"].notna() & arms[predictor].notna()]
    x = known[predictor] - known.groupby("group")[predictor].transform("mean")
    codes = {name: pd.factorize(known[name], sort=True)[0] for name in ("group", "cluster")}
    rows = pd.DataFrame({"f1": known["f1"].to_numpy(), "x": x.to_numpy(), **codes})
    return rows.sort_values(["cluster", "group"], ignore_index=True)


def sensitivity(arms: pd.DataFrame, predictor: str, settings: StatisticsSettings) -> dict[str, Any]:
    """The three models; each a `Statistic` in JSON with ``optimizers`` (tried, in order) and ``details``.

    Args:
        arms: from `rhstudy.stats.cells.point_arms`.
        predictor: the claim's column.
        settings: level and the fewest recipes of a regression.
    """
    rows = seed_rows(arms, predictor)
    models: Mapping[str, tuple[str, Callable[..., dict[str, Any]]]] = {
        "mixed": ("MixedLM on seed rows", _mixed),
        "gee": ("GEE on seed rows", _gee),
        "fractional_logit": ("fractional logit on seed rows", _logit),
    }
    found = {}
    for name, (method, fit) in models.items():
        reason = _unfit(rows, name, settings)
        blank = undefined(reason or "x", n=_num(rows), method=method, tested=True).json()
        found[name] = {**blank, "optimizers": [], "details": {}} if reason else fit(rows, settings.level)
    return found


def _num(rows: pd.DataFrame) -> int:
    return int(rows["cluster"].nunique())


def _unfit(rows: pd.DataFrame, name: str, settings: StatisticsSettings) -> str:
    num = _num(rows)
    if num < settings.min_regression_n:
        return f"the regression needs {settings.min_regression_n} recipes, there are {num}"
    if rows["x"].abs().max() <= 1e-12:
        return "every arm has the same predictor value within its task and model"
    if (rows["f1"] - rows.groupby("group")["f1"].transform("mean")).abs().max() <= 1e-12:
        return "every arm has the same F1 within its task and model"
    if name in ("mixed", "gee") and len(rows) > MAX_ROWS:
        return f"it is not fitted to more than {MAX_ROWS} rows, there are {len(rows)}"
    if name == "fractional_logit" and not rows["f1"].between(0, 1).all():
        return "a fractional logit takes F1 in 0-1, and some is negative"
    return ""


def _fixed(rows: pd.DataFrame) -> str:
    return "f1 ~ x + C(group)" if rows["group"].nunique() > 1 else "f1 ~ x"


def _mixed(rows: pd.DataFrame, level: float) -> dict[str, Any]:
    """The first optimizer that converges to finite errors is taken."""
    cells = rows.groupby(["cluster", "group"]).ngroups
    repeated, several = cells < len(rows), cells > _num(rows)
    parts = {"cell": "0 + C(group)"} if repeated and several else None
    effects = "(1 | recipe) + (1 | task:model:recipe)" if parts else "(1 | recipe)"
    method = f"MixedLM f1 ~ predictor + task:model + {effects} on seed rows, REML, z"
    if not repeated and not several:
        reason = "every recipe has one row: its effect cannot be told from noise"
        blank = undefined(reason, n=_num(rows), method=method, tested=True).json()
        return {**blank, "optimizers": [], "details": {}}
    model = smf.mixedlm(_fixed(rows), rows, groups=rows["cluster"], re_formula="1", vc_formula=parts)
    tried: list[dict[str, Any]] = []
    for optimizer in OPTIMIZERS:
        fit, noted = _tried(partial(model.fit, reml=True, method=[optimizer]))
        converged = fit is not None and bool(fit.converged) and math.isfinite(float(fit.bse["x"]))
        tried.append({"optimizer": optimizer, "converged": converged, "warnings": list(noted)})
        if converged:
            variances = {"recipe": float(fit.cov_re.iloc[0, 0]), "residual": float(fit.scale)}
            variances |= {"cell": float(fit.vcomp[0])} if parts else {}
            return _record(fit, rows, method, level, tried, variances)
    blank = undefined("no optimizer converged", n=_num(rows), method=method, tested=True).json()
    warnings = dict.fromkeys(text for item in tried for text in item["warnings"])
    return {**blank, "warnings": list(warnings), "optimizers": tried, "details": {}}


def _tried(call: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """The fit and its warnings; None and the error where it broke."""
    try:
        return recorded(call)
    except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
        return None, (f"{type(error).__name__}: {error}",)


def _gee(rows: pd.DataFrame, level: float) -> dict[str, Any]:
    method = "GEE f1 ~ predictor + task:model, exchangeable within recipes, bias-reduced errors, z"
    model = smf.gee(_fixed(rows), "cluster", rows, cov_struct=sm.cov_struct.Exchangeable())
    fit, noted = _tried(lambda: model.fit(cov_type="bias_reduced"))
    tried = [{"optimizer": "iterated least squares", "converged": _converged(fit), "warnings": list(noted)}]
    details = {} if fit is None else {"correlation_within_recipe": float(np.squeeze(model.cov_struct.dep_params))}
    return _record(fit, rows, method, level, tried, details)


def _converged(fit: Any) -> bool:
    return fit is not None and bool(fit.converged) and math.isfinite(float(fit.bse["x"]))


def _logit(rows: pd.DataFrame, level: float) -> dict[str, Any]:
    """The estimate is in log odds of F1; ``average_marginal_effect`` is in F1 per unit of the predictor."""
    method = "fractional logit f1 ~ predictor + task:model (log odds), errors clustered by recipe, t"
    model = smf.glm(_fixed(rows), rows, family=sm.families.Binomial())
    clusters = {"groups": rows["cluster"].to_numpy()}
    fit, noted = _tried(lambda: model.fit(cov_type="cluster", cov_kwds=clusters, use_t=True))
    tried = [{"optimizer": "IRLS", "converged": _converged(fit), "warnings": list(noted)}]
    details = {}
    if fit is not None:
        slope = fit.params["x"] * float((fit.fittedvalues * (1 - fit.fittedvalues)).mean())
        details["average_marginal_effect"] = float(slope)
    return _record(fit, rows, method, level, tried, details)


def _record(
    fit: Any, rows: pd.DataFrame, method: str, level: float, tried: list[dict[str, Any]], details: Mapping[str, float]
) -> dict[str, Any]:
    """The slope of a finished fit; NaN with a reason where it did not converge, its warnings in either case."""
    warnings = tuple(dict.fromkeys(text for item in tried for text in item["warnings"]))
    if not tried[-1]["converged"]:
        blank = undefined("the fit did not converge", n=_num(rows), method=method, tested=True).json()
        return {**blank, "warnings": list(warnings), "optimizers": tried, "details": {}}
    low, high = (float(end) for end in fit.conf_int(alpha=1 - level).loc["x"])
    statistic = Statistic(
        estimate=float(fit.params["x"]), low=low, high=high, n=_num(rows), method=method,
        p=float(fit.pvalues["x"]), warnings=warnings,
    )  # fmt: skip
    return {**statistic.json(), "optimizers": tried, "details": {name: null(value) for name, value in details.items()}}
