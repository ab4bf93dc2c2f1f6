"""The regression against HC3 written out in matrices; its refusals; its warnings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.frame import RecipePoints
from rhstudy.stats.regression import regress_f1
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings()


def points(x, f1):
    names = tuple(f"r{index}" for index in range(len(x)))
    x, f1 = np.asarray(x, dtype=float), np.asarray(f1, dtype=float)
    return RecipePoints(recipes=names, x=x, f1=f1, num_seeds=(1,) * len(x), contains_real=np.zeros(len(x), bool))


def naive_hc3(design, y, column):
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    residual = y - design @ beta
    leverage = np.array([row @ inverse @ row for row in design])
    meat = sum(np.outer(row, row) * (r / (1 - h)) ** 2 for row, r, h in zip(design, residual, leverage, strict=True))
    error = math.sqrt((inverse @ meat @ inverse)[column, column])
    t, degrees = beta[column] / error, len(y) - design.shape[1]
    half = scipy_stats.t.ppf(0.975, degrees) * error
    return beta[column], beta[column] - half, beta[column] + half, 2 * scipy_stats.t.sf(abs(t), degrees)


def test_one_group_is_hc3_by_hand():
    x, noise = np.random.default_rng(0).random((2, 12))
    y = 0.3 * x + 0.1 * noise
    found = regress_f1([points(x, y)], SETTINGS)
    expected = naive_hc3(np.column_stack([x, np.ones(12)]), y, 0)
    assert (found.estimate, found.low, found.high, found.p) == pytest.approx(expected, abs=1e-10)
    assert found.n == 12
    assert found.warnings == ()


def test_two_groups_have_their_own_intercepts():
    rng = np.random.default_rng(1)
    x1, x2 = rng.random(6), rng.random(7)
    y1, y2 = 0.2 * x1 + 0.05 * rng.random(6), 0.2 * x2 + 0.5 + 0.05 * rng.random(7)
    found = regress_f1([points(x1, y1), points(x2, y2)], SETTINGS)
    group = np.repeat([0.0, 1.0], [6, 7])
    design = np.column_stack([np.concatenate([x1, x2]), 1 - group, group])
    expected = naive_hc3(design, np.concatenate([y1, y2]), 0)
    assert (found.estimate, found.low, found.high, found.p) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([points([], [])], "the regression needs 5 recipes, there are 0"),
        ([points([1, 2, 3, 4], [1, 2, 3, 4])], "the regression needs 5 recipes, there are 4"),
        ([points([1] * 5, [0, 1, 0, 1, 0])], "every recipe has the same predictor value"),
        (
            [points([1, 2], [0, 1]), points([1], [0]), points([1], [0]), points([2], [0])],
            "5 recipes leave no residual degree of freedom for 5 coefficients",
        ),
    ],
)
def test_undefined(groups, reason):
    found = regress_f1(groups, SETTINGS)
    assert found.reason == reason
    assert math.isnan(found.p)


def test_a_lone_lever_point_is_reported_with_its_warnings():
    found = regress_f1([points([0, 0, 0, 0, 1], [0.1, 0.2, 0.1, 0.3, 0.9])], SETTINGS)
    assert found.estimate == pytest.approx(0.725)
    assert found.reason == "HC3 errors are undefined: the fit hangs on a single point"
    assert found.warnings
