"""Sensitivity models against closed forms and plain statsmodels calls; noise between seeds against its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from rhstudy.stats import mixed
from rhstudy.stats.ceiling import attainable, reliability
from rhstudy.stats.cells import point_arms
from rhstudy.stats.frame import validate_frame
from rhstudy.stats.mixed import seed_rows, sensitivity
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings()


def arms(num_recipes=10, tasks=("a", "b"), seeds=2, seed=0, **columns):
    rng, rows = np.random.default_rng(seed), []
    for recipe in range(num_recipes):
        recall, own = rng.random(), 0.08 * rng.standard_normal()
        for task in tasks:
            cell = 0.05 * rng.standard_normal()
            for arm_seed in range(seeds):
                value = float(np.clip(recall + 0.1 * rng.standard_normal(), 0, 1))
                f1 = float(np.clip(0.3 + 0.3 * value + own + cell + 0.05 * rng.standard_normal(), 0, 1))
                row = {"task": task, "model": "m", "recipe": f"r{recipe:02d}", "seed": arm_seed}
                rows.append({**row, "f1": f1, "head_recall": value})
    return point_arms(validate_frame(pd.DataFrame(rows).assign(**columns)))


def log_likelihood(rows, slope_and_variances):
    """REML of y = a_g + b x + u_recipe + v_cell + e by the full covariance matrix, profiled over the fixed effects."""
    recipe, cell, residual = slope_and_variances
    same = rows["cluster"].to_numpy()[:, None] == rows["cluster"].to_numpy()
    both = same & (rows["group"].to_numpy()[:, None] == rows["group"].to_numpy())
    covariance = recipe * same + cell * both + residual * np.eye(len(rows))
    x = np.column_stack([pd.get_dummies(rows["group"]).to_numpy(float), rows["x"]])
    inverse = np.linalg.inv(covariance)
    information = x.T @ inverse @ x
    b = np.linalg.solve(information, x.T @ inverse @ rows["f1"].to_numpy())
    r = rows["f1"].to_numpy() - x @ b
    value = -0.5 * (np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1] + r @ inverse @ r)
    return value, b[-1], math.sqrt(np.linalg.inv(information)[-1, -1])


def test_the_mixed_model_is_the_restricted_likelihood_s_maximum():
    table = arms(seed=3)
    rows, found = seed_rows(table, "head_recall"), sensitivity(table, "head_recall", SETTINGS)["mixed"]
    assert "(1 | task:model:recipe)" in found["method"]
    given = [found["details"][name] for name in ("recipe", "cell", "residual")]
    best, slope, error = log_likelihood(rows, given)
    assert found["estimate"] == pytest.approx(slope, rel=1e-5)
    half = scipy_stats.norm.isf(0.025) * error  # by the expected information; statsmodels takes the observed one
    assert found["high"] - slope == pytest.approx(half, rel=0.3)
    x = np.column_stack([np.ones(len(rows)), rows["group"] == 1, rows["x"]]).astype(float)
    parts = {"cell": "0 + C(group)"}
    plain = sm.MixedLM.from_formula("f1 ~ x + C(group)", rows, groups="cluster", re_formula="1", vc_formula=parts)
    fit = plain.fit(reml=True, method="lbfgs")
    assert (found["low"], found["high"]) == pytest.approx(tuple(fit.conf_int().loc["x"]), rel=1e-5)
    assert fit.model.exog.shape == x.shape
    for index, factor in itertools.product(range(3), (0.9, 1.1)):
        moved = [value * factor if place == index else value for place, value in enumerate(given)]
        assert log_likelihood(rows, moved)[0] <= best + 1e-6


def test_gee_and_fractional_logit_are_the_plain_statsmodels_calls():
    table = arms(seed=4)
    rows, found = seed_rows(table, "head_recall"), sensitivity(table, "head_recall", SETTINGS)
    x = np.column_stack([np.ones(len(rows)), rows["group"] == 1, rows["x"]]).astype(float)
    gee = sm.GEE(rows["f1"], x, groups=rows["cluster"], cov_struct=sm.cov_struct.Exchangeable())
    plain = gee.fit(cov_type="bias_reduced")
    assert found["gee"]["estimate"] == pytest.approx(plain.params.iloc[2], rel=1e-5)
    assert found["gee"]["p"] == pytest.approx(plain.pvalues.iloc[2], rel=1e-4)
    logit = sm.GLM(rows["f1"], x, family=sm.families.Binomial())
    fit = logit.fit(cov_type="cluster", cov_kwds={"groups": rows["cluster"].to_numpy()}, use_t=True)
    assert found["fractional_logit"]["estimate"] == pytest.approx(fit.params.iloc[2], rel=1e-5)
    assert found["fractional_logit"]["low"] == pytest.approx(fit.conf_int().iloc[2, 0], rel=1e-5)
    score = x.T @ (rows["f1"] - 1 / (1 + np.exp(-x @ fit.params)))
    np.testing.assert_allclose(score, 0, atol=1e-6)
    effect = fit.params.iloc[2] * np.mean(fit.fittedvalues * (1 - fit.fittedvalues))
    assert found["fractional_logit"]["details"]["average_marginal_effect"] == pytest.approx(effect, rel=1e-5)


def test_what_cannot_be_fitted_is_nan_with_the_reason():
    cases = {
        "the regression needs 5 recipes, there are 1": arms(1),
        "every arm has the same predictor value": arms(head_recall=0.5),
        "every arm has the same F1": arms(f1=0.0),
    }
    for reason, table in cases.items():
        for found in sensitivity(table, "head_recall", SETTINGS).values():
            assert (found["estimate"], found["optimizers"]) == (None, [])
            assert reason in found["reason"]
    lone = sensitivity(arms(tasks=("a",), seeds=1), "head_recall", SETTINGS)["mixed"]
    assert lone["reason"] == "every recipe has one row: its effect cannot be told from noise"
    chance = arms().assign(f1=lambda t: t["f1"] - 0.5)
    assert (
        "fractional logit takes F1 in 0-1" in sensitivity(chance, "head_recall", SETTINGS)["fractional_logit"]["reason"]
    )
    one_task = sensitivity(arms(tasks=("a",)), "head_recall", SETTINGS)["mixed"]
    assert "(1 | task:model:recipe)" not in one_task["method"]
    assert one_task["estimate"] is not None


def test_failed_optimizers_are_recorded_and_the_next_is_tried(monkeypatch):
    seen = []
    original = mixed.recorded

    def failing(call):
        seen.append(1)
        if len(seen) == 1:
            raise np.linalg.LinAlgError("Singular matrix")
        return original(call)

    monkeypatch.setattr(mixed, "recorded", failing)
    found = sensitivity(arms(), "head_recall", SETTINGS)["mixed"]
    assert [(item["optimizer"], item["converged"]) for item in found["optimizers"]] == [
        ("lbfgs", False),
        ("bfgs", True),
    ]
    assert "LinAlgError: Singular matrix" in found["warnings"]

    def broken(_call):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(mixed, "recorded", broken)
    for name, found in sensitivity(arms(), "head_recall", SETTINGS).items():
        assert found["estimate"] is None
        assert found["reason"] == ("no optimizer converged" if name == "mixed" else "the fit did not converge")
        assert found["warnings"] == ["LinAlgError: Singular matrix"]


def test_too_many_rows_for_a_mixed_model(monkeypatch):
    monkeypatch.setattr(mixed, "MAX_ROWS", 10)
    found = sensitivity(arms(), "head_recall", SETTINGS)
    for name in ("mixed", "gee"):
        assert found[name]["reason"] == "it is not fitted to more than 10 rows, there are 40"
    assert found["fractional_logit"]["estimate"] is not None


def test_reliability_is_one_minus_one_over_f():
    table = arms(12, tasks=("a",), seeds=3, seed=1)
    groups = [part["f1"].to_numpy() for _, part in table.groupby("recipe")]
    ratio = scipy_stats.f_oneway(*groups).statistic
    found = reliability(table, "f1", 0.95)
    assert found.estimate == pytest.approx(1 - 1 / ratio, abs=1e-10)
    low, high = (1 - scipy_stats.f.ppf(q, 11, 24) / ratio for q in (0.975, 0.025))
    assert (found.low, found.high) == pytest.approx((max(low, 0), high), abs=1e-10)
    both = attainable(table, "head_recall", 0.95)
    product = both["f1"]["estimate"] * both["predictor"]["estimate"]
    assert both["highest_correlation"] == pytest.approx(math.sqrt(product))
    alone = attainable(arms(seeds=1), "head_recall", 0.95)
    assert alone["reasons"]["highest_correlation"] == "no recipe has two seeds"
    assert reliability(arms(head_recall=0.5), "head_recall", 0.95).reason == "head_recall does not differ between seeds"
