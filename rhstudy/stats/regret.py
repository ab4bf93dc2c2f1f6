"""Regret of a choice: how much F1 is lost to the best recipe that was evaluated, by choosing without knowing F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.shapes import Float
from rhstudy.stats.statistic import Statistic, StatisticsSettings, undefined
from rhstudy.types import Estimate

NUM_SPLITS = 200
"""Random halves of the rows behind a cross-fitted regret."""

_MAX_HELD = 4_000_000  # resampled numbers that are in memory at a time

SeedRows = Sequence[Float[np.ndarray, "_ rows"]]
"""F1 of every evaluated recipe, by its training seeds and (independent) eval row; the same rows for all."""


def regret(
    f1: SeedRows, choices: Sequence[int], *, best_of: bool = False, seed: int, settings: StatisticsSettings
) -> Statistic:
    """max_r F1(r) - F1(choice), F1 the mean over rows and seeds; never below 0.

    Rows are resampled for all recipes alike, seeds within each recipe that has several; percentile interval. Since the
    best of noisy means is best partly by luck, the estimate is too high: see `cross_fitted_regret`.

    Args:
        f1: see `SeedRows`.
        choices: recipes that a way of choosing named; of several their mean F1 counts.
        best_of: all of them are evaluated and the best is taken.
        seed: root seed of the resamples.
        settings: level and draws.

    Returns:
        NaN with a reason without recipes, choices or rows; NaN ends with a reason for a single row.
    """
    method = "best evaluated F1 minus " + ("the best of the choices" if best_of else "F1 of the choice")
    num_rows = f1[0].shape[1] if len(f1) else 0
    if not len(choices) or not num_rows:
        reason = "nothing was chosen" if num_rows else "no recipe was evaluated"
        return undefined(reason, n=num_rows, method=method, seed=seed)
    chosen = [*choices]
    require(min(chosen) >= 0 and max(chosen) < len(f1), "choices", f"be below {len(f1)}", chosen, "Name recipes of f1")
    estimate = _regrets(np.array([[rows.mean()] for rows in f1]), chosen, best_of)[0]
    if num_rows < 2:
        nan, reason = float("nan"), "no interval: resampling needs at least 2 rows"
        return Statistic(
            estimate=float(estimate), low=nan, high=nan, n=num_rows, method=method, seed=seed, reason=reason
        )
    values = _regrets(_resampled(f1, seed, settings.num_resamples), chosen, best_of)
    low, high = np.quantile(values, [(1 - settings.level) / 2, (1 + settings.level) / 2])
    seeds = "rows and seeds" if max(len(rows) for rows in f1) > 1 else "rows (one seed a recipe)"
    return Statistic(
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        n=num_rows,
        method=f"{method}, percentile bootstrap over {seeds}",
        seed=seed,
    )


def _regrets(f1: Float[np.ndarray, "recipes draws"], chosen: list[int], best_of: bool) -> Float[np.ndarray, " draws"]:
    mine = f1[chosen].max(axis=0) if best_of else f1[chosen].mean(axis=0)
    return np.asarray(f1.max(axis=0) - mine)


def _resampled(f1: SeedRows, seed: int, num_resamples: int) -> Float[np.ndarray, "recipes draws"]:
    """Mean F1 of each recipe in each resample."""
    num_rows = f1[0].shape[1]
    draws, seeds = generator(seed, "regret", "rows"), generator(seed, "regret", "seeds")
    found = np.empty((len(f1), num_resamples))
    step = max(1, _MAX_HELD // num_rows)
    for start in range(0, num_resamples, step):
        count = min(step, num_resamples - start)
        weights = draws.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=count) / num_rows
        for index, rows in enumerate(f1):
            by_seed = weights @ rows.T
            taken = seeds.integers(0, len(rows), by_seed.shape)
            found[index, start : start + count] = np.take_along_axis(by_seed, taken, axis=1).mean(axis=1)
    return found


def cross_fitted_regret(f1: SeedRows, choices: Sequence[int], *, seed: int) -> Estimate:
    """What a search on F1 would have gained: the best recipe of one half of the rows minus the choice, on the other.

    Mean over random halves, both ways round. Unlike `regret` it is not lifted by luck, and it may be negative.

    Args:
        f1: see `SeedRows`.
        choices: as in `regret`.
        seed: root seed of the halves.

    Returns:
        NaN with a reason without recipes or choices, or with fewer than 2 rows.
    """
    means = np.array([rows.mean(axis=0) for rows in f1])
    num_rows = means.shape[1] if means.ndim == 2 else 0
    if not len(choices) or num_rows < 2:
        reason = "nothing was chosen" if num_rows >= 2 else f"two halves need at least 2 rows, there are {num_rows}"
        return Estimate.undefined(reason)
    draws, size = generator(seed, "regret", "halves"), num_rows // 2
    gains = []
    for _ in range(NUM_SPLITS):
        order = draws.permutation(num_rows)
        for chooses, judges in ((order[:size], order[size:]), (order[size:], order[:size])):
            judged = means[:, judges].mean(axis=1)
            gains.append(judged[means[:, chooses].mean(axis=1).argmax()] - judged[list(choices)].mean())
    return Estimate(float(np.mean(gains)))
