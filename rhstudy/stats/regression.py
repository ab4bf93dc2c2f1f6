"""Ordinary least squares of F1 on a predictor over recipes, with heteroscedasticity-consistent errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from rhstudy.stats.frame import RecipePoints
from rhstudy.stats.statistic import Statistic, StatisticsSettings, recorded, undefined


def regress_f1(groups: Sequence[RecipePoints], settings: StatisticsSettings) -> Statistic:
    """Slope of F1 on the predictor, in F1 per unit, HC3 errors (MacKinnon and White 1985, J. Econometrics 29:305).

    F1 = b · predictor + intercept; with several tasks or models each has its own intercept and the predictor is
    centred within it. Fitted by statsmodels `ols(...).fit(cov_type="HC3", use_t=True)`.

    Args:
        groups: the recipe points of each task and model.
        settings: level and the fewest recipes at which the model is fitted.

    Returns:
        NaN with a reason below `settings.min_regression_n` points, without residual degrees of freedom, where the
        predictor does not vary within a group, or where HC3 is undefined (a point that no other supports).
    """
    table = pd.concat([_within(points, str(index)) for index, points in enumerate(groups)], ignore_index=True)
    several = len(groups) > 1
    method = "OLS f1 ~ predictor within task and model, HC3" if several else "OLS f1 ~ predictor, HC3"
    reason = _unfit(table, len(groups), settings)
    if reason:
        return undefined(reason, n=len(table), method=method, tested=True)
    formula = "f1 ~ predictor + C(group)" if several else "f1 ~ predictor"
    fit, noted = recorded(lambda: smf.ols(formula, data=table).fit(cov_type="HC3", use_t=True))
    (low, high), later = recorded(lambda: fit.conf_int(alpha=1 - settings.level).loc["predictor"])
    estimate, p = float(fit.params["predictor"]), float(fit.pvalues["predictor"])
    sound = all(math.isfinite(value) for value in (estimate, low, high, p))
    return Statistic(
        estimate=estimate,
        low=float(low) if sound else math.nan,
        high=float(high) if sound else math.nan,
        n=len(table),
        method=method,
        p=p if sound else math.nan,
        reason="" if sound else "HC3 errors are undefined: the fit hangs on a single point",
        warnings=(*noted, *later),
    )


def _within(points: RecipePoints, group: str) -> pd.DataFrame:
    centre = points.x.mean() if len(points.x) else 0.0
    return pd.DataFrame({"f1": points.f1, "predictor": points.x - centre, "group": group})


def _unfit(table: pd.DataFrame, num_groups: int, settings: StatisticsSettings) -> str:
    n = len(table)
    if n < settings.min_regression_n:
        return f"the regression needs {settings.min_regression_n} recipes, there are {n}"
    if n <= num_groups + 1:
        return f"{n} recipes leave no residual degree of freedom for {num_groups + 1} coefficients"
    if np.allclose(table["predictor"], 0, atol=1e-12):
        return "every recipe has the same predictor value"
    return ""
