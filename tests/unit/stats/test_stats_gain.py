"""The interval of a gain in leave-one-recipe-out R² against plain refits, and that it covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rhstudy.stats.cells import Cells
from rhstudy.stats.gain import MAX_REFITTED, inflation, left_out_gain, semipartial
from rhstudy.stats.prediction import left_out_errors, orthonormal
from rhstudy.stats.statistic import StatisticsSettings

SETTINGS = StatisticsSettings()


def study(num_recipes=12, slope=0.3, rng=None, rivals=1, missing=()):
    """Cells of two tasks: recall, rivals that follow it, F1 with an effect of the recipe that its tasks share."""
    rng = rng or np.random.default_rng(0)
    own = rng.beta(2, 2, num_recipes)
    recall = own + 0.08 * rng.standard_normal((2, num_recipes))
    f1 = 0.2 + slope * recall + 0.06 * rng.standard_normal(num_recipes)
    f1 = f1 + 0.05 * rng.standard_normal((2, num_recipes)) + np.array([[0.0], [0.3]])
    beside = {f"rival{k}": 0.5 * recall + 0.2 * rng.standard_normal(recall.shape) for k in range(rivals)}
    kept = np.ones(2 * num_recipes, dtype=bool)
    kept[list(missing)] = False
    return Cells(
        f1=f1.ravel()[kept],
        predictors={name: values.ravel()[kept] for name, values in {"recall": recall, **beside}.items()},
        group=np.repeat([0, 1], num_recipes)[kept],
        cluster=np.tile(np.arange(num_recipes), 2)[kept],
        groups=("a", "b"),
        clusters=tuple(f"r{index}" for index in range(num_recipes)),
        num_seeds=np.ones(int(kept.sum()), dtype=np.int64),
    )


def design(cells, names):
    dummies = (cells.group[:, None] == np.arange(2)).astype(float)
    return np.column_stack([dummies, *(cells.predictors[name] for name in names)])


def rest(columns, values):
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def slow_semipartial(cells, others):
    """sign(b) sqrt(increase of R²), by two fits."""
    without, both = design(cells, others), design(cells, [*others, "recall"])
    total, first, second = (float((rest(z, cells.f1) ** 2).sum()) for z in (design(cells, []), without, both))
    slope = np.linalg.lstsq(both, cells.f1, rcond=None)[0][-1]
    return math.copysign(math.sqrt((first - second) / total), slope)


@pytest.mark.parametrize("rivals", [0, 1, 3])
def test_semipartial_correlations_are_refits_without_each_recipe(rivals):
    cells = study(rivals=rivals, missing=(0, 15))
    others = [f"rival{k}" for k in range(rivals)]
    every, without_each = semipartial(cells, others, "recall")
    assert every == pytest.approx(slow_semipartial(cells, others), abs=1e-10)
    wanted = [slow_semipartial(cells.without(c), others) for c in range(12)]
    assert without_each == pytest.approx(wanted, abs=1e-10)


def slow_inflation(cells, names, shared):
    """Mean variance of the left-out errors, from the matrix that makes them: one refit a recipe."""
    z, matrix = design(cells, names), np.zeros((cells.n, cells.n))
    for c in range(len(cells.clusters)):
        own = cells.cluster == c
        matrix[np.ix_(own, ~own)] = -z[own] @ np.linalg.pinv(z[~own])
        matrix[np.ix_(own, own)] = np.eye(int(own.sum()))
    together = cells.cluster[:, None] == cells.cluster
    errors = np.where(together, shared, 0.0) + (1 - shared) * np.eye(cells.n)
    return float(np.trace(matrix @ errors @ matrix.T)) / cells.n


@pytest.mark.parametrize("shared", [0.0, 0.4, 1.0])
def test_the_cost_of_fitting_is_the_variance_of_left_out_errors(shared):
    cells = study(missing=(3,))
    for names in ([], ["rival0"], ["rival0", "recall"]):
        basis = orthonormal(design(cells, names))
        assert inflation(cells, basis, shared) == pytest.approx(slow_inflation(cells, names, shared), rel=1e-9)


def slow_interval(cells, others):
    """The module's equations, refit by refit."""
    num = len(cells.clusters)
    models = ([], others, [*others, "recall"])
    nothing, without, both = (left_out_errors(cells, names) for names in models)
    estimate = (without - both).sum() / nothing.sum()
    z = np.arctanh(slow_semipartial(cells, others))
    left = np.arctanh([slow_semipartial(cells.without(c), others) for c in range(num)])
    pseudo = num * z - (num - 1) * left
    t = scipy_stats.t.ppf(0.975, num - 1)
    ends = np.tanh(pseudo.mean() + np.array([-1, 1]) * t * scipy_stats.sem(pseudo))
    residuals = rest(design(cells, models[2]), cells.f1)
    twice = [residuals[cells.cluster == c] for c in range(num)]
    shared = np.clip(np.mean([pair[0] * pair[1] for pair in twice]) / np.mean(residuals**2), 0, 1)
    f = [slow_inflation(cells, names, shared) for names in models]
    unexplained = without.sum() / nothing.sum()

    def expected(r):
        return r * r * f[2] / f[0] - unexplained * (f[2] / f[1] - 1)

    least, most = sorted(abs(ends))
    if ends[0] > 0 or ends[1] < 0:
        return min(expected(least), estimate), max(expected(most), estimate)
    slope = np.linalg.lstsq(design(cells, models[2]), cells.f1, rcond=None)[0][-1]
    bare = [(left_out_errors(cells, names)) for names in models]
    z0 = design(cells, others)
    flat = cells.f1 - slope * cells.predictors["recall"]
    none = sum(
        ((flat[own] - z0[own] @ np.linalg.lstsq(z0[~own], flat[~own], rcond=None)[0]) ** 2).sum()
        for own in (cells.cluster == c for c in range(num))
    )
    removed = (none - bare[2].sum()) / nothing.sum()
    if num <= MAX_REFITTED:
        gains = []
        for c in range(num):
            d = [left_out_errors(cells.without(c), names).sum() for names in models]
            gains.append((d[1] - d[2]) / d[0])
        error = math.sqrt((num - 1) / num * ((gains - np.mean(gains)) ** 2).sum())
    else:
        leaning = without - both - estimate * nothing
        error = math.sqrt(num / (num - 1) * (leaning**2).sum()) / nothing.sum()
    return min(expected(0.0), removed, estimate - t * error), max(expected(most), estimate)


@pytest.mark.parametrize(("num_recipes", "slope"), [(12, 0.0), (12, 0.5), (20, 0.0), (20, 0.5)])
def test_the_interval_is_its_definition(num_recipes, slope):
    cells = study(num_recipes, slope)
    for others in ([], ["rival0"]):
        found = left_out_gain(cells, others, "recall", settings=SETTINGS)
        assert (found.low, found.high) == pytest.approx(slow_interval(cells, others), rel=1e-7)
        assert found.low <= found.estimate <= found.high
        assert found.method.endswith("jackknife-t over recipes of the semipartial correlation")


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_the_interval_covers(slope):
    """Four binomial standard errors wide; sweeps/statistics has it from 2,000 runs for each number of recipes."""
    rng, ends, sums = np.random.default_rng(1), [], np.zeros(2)
    for _ in range(200):
        cells = study(16, slope, rng)
        nothing, without, both = (left_out_errors(cells, names) for names in ((), ("rival0",), ("rival0", "recall")))
        sums += [(without - both).sum(), nothing.sum()]
        found = left_out_gain(cells, ["rival0"], "recall", settings=SETTINGS)
        ends.append((found.low, found.high))
    low, high = np.array(ends).T
    assert ((low <= sums[0] / sums[1]) & (sums[0] / sums[1] <= high)).mean() >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / 200)
    assert (low > 0).mean() <= 0.05 if slope == 0 else (low > 0).mean() > 0.3


def test_without_an_interval_there_is_the_reason(monkeypatch):
    assert left_out_gain(study(9), ["rival0"], "recall", settings=SETTINGS).reason == (
        "no interval: it needs 10 recipes, there are 9"
    )
    line = study()
    exact = Cells(**{name: getattr(line, name) for name in line.__slots__} | {"f1": 0.5 * line.predictors["recall"]})
    assert left_out_gain(exact, [], "recall", settings=SETTINGS).reason == (
        "no interval: the fit is not determined, or exact, without recipe r0"
    )
    monkeypatch.setattr("rhstudy.stats.gain.MAX_BOOTSTRAP_N", 11)
    assert left_out_gain(study(), [], "recall", settings=SETTINGS).reason == (
        "no interval: no jackknife is made of more than 11 recipes"
    )
