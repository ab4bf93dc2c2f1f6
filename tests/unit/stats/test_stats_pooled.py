"""The pooled analysis against naive refits, full enumeration and statsmodels; every way it can be undefined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.cells import cells_of, point_arms
from rhstudy.stats.frame import validate_frame
from rhstudy.stats.gain import left_out_gain
from rhstudy.stats.permutation import restricted_permutation
from rhstudy.stats.pooled import clustered_slope, joint_coefficient, pooled_analysis, pooled_slope
from rhstudy.stats.prediction import left_out_r2
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.wild import WEIGHTS, cluster_weights, wild_cluster

SETTINGS = StatisticsSettings(num_permutations=500, num_resamples=500, num_power_draws=300)


def arm_table(num_recipes=8, tasks=("mdqa", "musique"), seeds=2, slope=0.4, seed=0, missing=()):
    rng, rows = np.random.default_rng(seed), []
    for recipe in range(num_recipes):
        recall, own = rng.random(), 0.05 * rng.standard_normal()
        for task, arm_seed in itertools.product(tasks, range(seeds)):
            if (recipe, task) in missing:
                continue
            row = {
                "task": task,
                "model": "m",
                "recipe": f"r{recipe:02d}",
                "seed": arm_seed,
                "recipe_digest": f"d{recipe}",
            }
            row["head_recall"] = float(np.clip(recall + 0.1 * rng.standard_normal(), 0, 1))
            row["f1"] = float(np.clip(0.3 + slope * recall + own + 0.05 * rng.standard_normal(), 0, 1))
            row["real_nll"] = 2 - recall + 0.3 * rng.random()
            row["train_loss"] = rng.random()
            rows.append(row)
    return pd.DataFrame(rows)


def cells(predictors=("head_recall",), **changes):
    return cells_of(point_arms(validate_frame(arm_table(**changes))), predictors)


def design(found, *others):
    dummies = (found.group[:, None] == np.arange(len(found.groups))).astype(float)
    return np.column_stack([dummies, *(found.predictors[name] for name in others)])


def t_of(x, y, z, cluster, beta):
    """Cluster-robust t of the last column, by the textbook sandwich without small-sample factor."""
    full = np.column_stack([z, x])
    inverse = np.linalg.inv(full.T @ full)
    coefficients = inverse @ full.T @ y
    residuals = y - full @ coefficients
    meat = sum(
        np.outer(score, score) for score in (full[cluster == c].T @ residuals[cluster == c] for c in np.unique(cluster))
    )
    return (coefficients[-1] - beta) / math.sqrt((inverse @ meat @ inverse)[-1, -1])


def slow_wild_p(x, y, z, cluster, weights, beta):
    """Restricted residuals times weights, refitted draw by draw."""
    restricted = y - beta * x
    fitted = z @ np.linalg.lstsq(z, restricted, rcond=None)[0]
    residuals = restricted - fitted
    observed = abs(t_of(x, y, z, cluster, beta))
    values = [abs(t_of(x, fitted + beta * x + row[cluster] * residuals, z, cluster, beta)) for row in weights]
    return np.mean([value >= observed * (1 - 1e-9) for value in values])


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_means_over_seeds_by_task_model_and_recipe(seed):
    frame = arm_table(seed=seed)
    found = cells(seed=seed)
    wanted = frame.groupby(["task", "recipe"])[["head_recall", "f1"]].mean().reset_index()
    np.testing.assert_allclose(found.f1, wanted["f1"], atol=1e-12)
    np.testing.assert_allclose(found.predictors["head_recall"], wanted["head_recall"], atol=1e-12)
    assert [found.groups[index] for index in found.group] == [f"{task}/m" for task in wanted["task"]]
    assert [found.clusters[index] for index in found.cluster] == list(wanted["recipe"])
    centred = found.within(found.f1)
    np.testing.assert_allclose(centred, wanted["f1"] - wanted.groupby("task")["f1"].transform("mean"), atol=1e-11)


def test_an_arm_with_nan_leaves_its_cell_and_is_named():
    frame = arm_table(3)
    frame.loc[0, "head_recall"] = np.nan
    found = cells_of(point_arms(validate_frame(frame)), ["head_recall"])
    assert found.num_seeds.tolist() == [1, 2, 2, 2, 2, 2]
    assert found.dropped == ("left out r00 seed 0 (head_recall is NaN: not recorded)",)


@pytest.mark.parametrize(("num_recipes", "others"), [(4, ()), (5, ()), (6, ("real_nll",)), (11, ("real_nll",))])
def test_wild_bootstrap_is_the_refit_of_every_draw(num_recipes, others):
    found = cells(("head_recall", *others), num_recipes=num_recipes, seed=num_recipes)
    x, y, z = found.predictors["head_recall"], found.f1, design(found, *others)
    weights, _ = cluster_weights(num_recipes, 300, np.random.default_rng(3))
    basis = np.linalg.qr(z)[0]
    result = wild_cluster(
        x, y, basis, found.cluster, num_draws=300, level=0.8, draws=np.random.default_rng(3)
    )  # fmt: skip
    exact = "all" in result.method
    wanted = slow_wild_p(x, y, z, found.cluster, weights, 0.0)
    assert result.p == pytest.approx(wanted if exact else (300 * wanted + 1) / 301, abs=1e-10)
    for end, outward in ((result.low, -1), (result.high, 1)):
        if math.isnan(end):
            assert "no slope is large enough" in result.reason
            continue
        inside, outside = (slow_wild_p(x, y, z, found.cluster, weights, end - outward * d) for d in (1e-6, -1e-6))
        adjust = (lambda p: p) if exact else (lambda p: (300 * p + 1) / 301)
        assert adjust(outside) <= 0.2 + 1e-12 < adjust(inside) + 1e-9


def test_weights_are_enumerated_where_they_fit_and_webb_below_ten_clusters():
    rows, how = cluster_weights(4, 2000, np.random.default_rng(0))
    assert how == "Webb weights, all 1296 draws"
    assert len(np.unique(rows, axis=0)) == 1296
    rows, how = cluster_weights(10, 2000, np.random.default_rng(0))
    assert how == "Rademacher weights, all 1024 draws"
    assert cluster_weights(9, 2000, np.random.default_rng(0))[1] == "Webb weights, 2000 draws"
    assert cluster_weights(11, 2000, np.random.default_rng(0))[0].shape == (2000, 11)
    for points in WEIGHTS.values():
        assert (points.mean(), (points**2).mean()) == pytest.approx((0, 1))


def test_cluster_robust_t_is_the_sandwich_with_its_small_sample_factor():
    found = cells(num_recipes=9, seed=5)
    x, y, z = found.predictors["head_recall"], found.f1, design(found)
    result = clustered_slope(found, "head_recall", SETTINGS)
    n, k, num = found.n, z.shape[1] + 1, len(found.clusters)
    factor = math.sqrt(num / (num - 1) * (n - 1) / (n - k))
    t = t_of(x, y, z, found.cluster, 0.0) / factor
    assert result.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), num - 1), abs=1e-10)
    slope = np.linalg.lstsq(np.column_stack([z, x]), y, rcond=None)[0][-1]
    half = scipy_stats.t.isf(0.025, num - 1) * abs(slope / t)
    assert (result.estimate, result.low, result.high) == pytest.approx((slope, slope - half, slope + half), abs=1e-10)


def enumerate_slowly(found):
    """Every way to give the recipes of each set of groups one another's recall, one at a time."""
    x, y = found.within(found.predictors["head_recall"]), found.within(found.f1)
    value = {(int(c), int(g)): i for i, (c, g) in enumerate(zip(found.cluster, found.group, strict=True))}
    places = {c: tuple(sorted(g for other, g in value if other == c)) for c, _ in value}
    strata = [[c for c in places if places[c] == pattern] for pattern in sorted(set(places.values()))]

    def total(taken):
        return sum(x[value[taken[c], g]] * y[value[c, g]] for c in places for g in places[c])

    sums = [
        total(
            {c: t for stratum, order in zip(strata, orders, strict=True) for c, t in zip(stratum, order, strict=True)}
        )
        for orders in itertools.product(*(itertools.permutations(stratum) for stratum in strata))
    ]
    centre = np.mean(sums)
    return np.mean([abs(item - centre) >= abs(total({c: c for c in places}) - centre) - 1e-12 for item in sums])


@pytest.mark.parametrize(
    ("num_recipes", "missing"), [(4, ()), (5, ((0, "mdqa"), (1, "mdqa"))), (6, ((0, "mdqa"), (1, "musique")))]
)
def test_exact_permutation_p_is_full_enumeration(num_recipes, missing):
    found = cells(num_recipes=num_recipes, missing=missing, slope=0.1, seed=num_recipes)
    x, y = found.within(found.predictors["head_recall"]), found.within(found.f1)
    test = restricted_permutation(
        x, y, found.group, found.cluster, num_draws=100, draws=np.random.default_rng(0)
    )  # fmt: skip
    assert test.method == "exact restricted permutation"
    assert test.p == pytest.approx(enumerate_slowly(found), abs=1e-10)


def test_monte_carlo_permutation_is_near_the_exact_p_and_never_zero():
    found = cells(num_recipes=10, slope=0.05, seed=2)
    x, y = found.within(found.predictors["head_recall"]), found.within(found.f1)
    first, second = (
        restricted_permutation(x, y, found.group, found.cluster, num_draws=20_000, draws=np.random.default_rng(seed))
        for seed in (0, 1)
    )
    assert "20000 draws" in first.method
    assert first.p == pytest.approx(second.p, abs=0.02)
    strong = restricted_permutation(
        x, x, found.group, found.cluster, num_draws=300, draws=np.random.default_rng(0)
    )  # fmt: skip
    assert strong.p == pytest.approx(1 / 301)


def slow_left_out(found, names):
    """Refit without each recipe, predict it: squared errors of the model and of group means."""
    full, plain = design(found, *names), design(found)
    errors = []
    for c in range(len(found.clusters)):
        keep = found.cluster != c
        parts = []
        for z in (full, plain):
            fitted = z[~keep] @ np.linalg.lstsq(z[keep], found.f1[keep], rcond=None)[0]
            parts.append(((found.f1[~keep] - fitted) ** 2).sum())
        errors.append(parts)
    return np.array(errors)


def test_leave_one_recipe_out_is_the_refit_without_each():
    names = ("head_recall", "real_nll", "train_loss")
    found = cells(names, num_recipes=12, missing=((0, "mdqa"), (3, "musique")))
    for chosen in (names[:1], names[1:], names):
        errors = slow_left_out(found, chosen)
        wanted = 1 - errors[:, 0].sum() / errors[:, 1].sum()
        assert left_out_r2(found, chosen).estimate == pytest.approx(wanted, abs=1e-10)
    gain = left_out_gain(found, names[1:], names[0], settings=SETTINGS)
    both, rivals = (left_out_r2(found, chosen).estimate for chosen in (names, names[1:]))
    assert gain.estimate == pytest.approx(both - rivals, abs=1e-10)
    assert gain.low <= gain.estimate <= gain.high
    few = left_out_gain(cells(names, num_recipes=7), names[1:], names[0], settings=SETTINGS)
    assert few.reason == "no interval: it needs 10 recipes, there are 7"


def test_joint_coefficients_are_least_squares_per_standard_deviation():
    names = ("head_recall", "real_nll", "train_loss")
    found = cells(names, num_recipes=12)
    scaled = [found.within(found.predictors[name]) for name in names]
    scaled = [item / item.std() for item in scaled]
    wanted = np.linalg.lstsq(np.column_stack([design(found), *scaled]), found.f1, rcond=None)[0][2:]
    for index, name in enumerate(names):
        result = joint_coefficient(found, name, [other for other in names if other != name], 0, SETTINGS)
        assert result.estimate == pytest.approx(wanted[index], abs=1e-10)
    twin = cells_of(
        point_arms(validate_frame(arm_table(12).assign(cosine=lambda t: t["head_recall"]))), ("head_recall", "cosine")
    )
    assert "combination of the others" in joint_coefficient(twin, "cosine", ["head_recall"], 0, SETTINGS).reason


DEGENERATE = {
    "one recipe": (arm_table(1), "the regression needs 5 recipes, there are 1"),
    "four recipes": (arm_table(4), "the regression needs 5 recipes, there are 4"),
    "constant recall": (arm_table().assign(head_recall=0.5), "the same head recall within its task and model"),
    "all F1 zero": (arm_table().assign(f1=0.0), "every recipe has the same F1 within its task and model"),
    "no recall at all": (arm_table().assign(head_recall=np.nan), "the regression needs 5 recipes, there are 0"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_tables_are_nan_with_the_reason(name):
    table, reason = DEGENERATE[name]
    found = pooled_analysis(validate_frame(table), seed=0, settings=SETTINGS)["all"]
    for kind in ("slope", "wild", "clustered"):
        assert found[kind]["estimate"] is None
        assert reason in found[kind]["reason"]
    for item in found["prediction"].values():
        assert "reason" not in item or item["reason"]


def test_points_on_a_line_have_a_slope_and_no_error():
    frame = arm_table().assign(f1=lambda t: 0.1 + 0.5 * t["head_recall"])
    found = pooled_slope(
        cells_of(point_arms(validate_frame(frame)), ["head_recall"]), "head_recall", seed=0, settings=SETTINGS
    )
    assert found["slope"]["estimate"] == pytest.approx(0.5, abs=1e-9)
    assert found["slope"]["reason"] == "no interval: every point lies on the fitted line"
    assert found["slope"]["p"] == pytest.approx(1 / math.factorial(8))
    assert found["smallest_detectable_slope"]["value"] is None


def test_missing_cells_and_unequal_seeds_are_said():
    frame = arm_table(9, missing=((0, "mdqa"),)).drop(index=[0])
    found = pooled_analysis(validate_frame(frame), seed=0, settings=SETTINGS)["all"]
    assert (found["num_cells"], found["num_recipes"]) == (17, 9)
    assert "cells have unequal numbers of seeds: 1 to 2" in found["slope"]["warnings"]
    assert found["rivals_left_out"]["cosine"] == "not recorded in any arm"
    assert found["slope"]["low"] < found["slope"]["estimate"] < found["slope"]["high"]


def test_flagged_recipes_leave_every_task_and_seeds_decide_the_numbers():
    frame = arm_table(12).assign(contains_real=lambda t: (t["recipe"] == "r03") & (t["task"] == "mdqa"))
    checked = validate_frame(frame)
    found = pooled_analysis(checked, seed=0, settings=SETTINGS)
    assert (found["all"]["num_cells"], found["without_flagged"]["num_cells"]) == (24, 22)
    assert "r03" not in found["without_flagged"]["recipes"]
    assert found == pooled_analysis(checked, seed=0, settings=SETTINGS)
    assert found != pooled_analysis(checked, seed=1, settings=SETTINGS)


def test_the_smallest_detectable_slope_is_found_with_the_wanted_power():
    """By running the permutation test itself on studies with that slope."""
    found = cells(num_recipes=12, slope=0.0, seed=4)
    x = found.within(found.predictors["head_recall"])
    slope = pooled_slope(found, "head_recall", seed=0, settings=SETTINGS)["smallest_detectable_slope"]["value"]
    y = found.within(found.f1)
    residuals = y - x * (x @ y) / (x @ x)
    rng, variance = np.random.default_rng(0), residuals @ residuals / (found.n - 3)
    pairs = np.prod(residuals[np.argsort(found.cluster, kind="stable")].reshape(-1, 2), axis=1).mean()
    shared = variance * np.clip(pairs / (residuals**2).mean(), 0, 1)
    detected = 0
    for _ in range(300):
        noise = math.sqrt(variance - shared) * rng.standard_normal(found.n)
        noise += math.sqrt(shared) * rng.standard_normal(12)[found.cluster]
        outcome = found.within(slope * x + noise)
        detected += restricted_permutation(x, outcome, found.group, found.cluster, num_draws=199, draws=rng).p <= 0.05
    assert detected / 300 == pytest.approx(0.8, abs=0.1)
