"""Intervals of the gain in leave-one-recipe-out R2 that were tried and not taken.

question: which interval of the gain covers 92 to 98.5 %, whether recall adds something or nothing?
command:  python sweeps/statistics/gain_candidates.py [--n 10 20] [--runs 200]
time:     about five minutes of one core
expected: those that hold the fits are too short; those that refit cover, and are wide where nothing is added

    held        BCa bootstrap over recipes with each recipe's errors held (what was in use before)
    jackknife   estimate +- t se, se the jackknife error of the gain itself, all left-out errors made anew
    percentile  bootstrap over recipes that refits; all copies of a recipe are left out together
    corrected   the same, bias-corrected
    taken       `rhstudy.stats.gain`

Prints a line per number of recipes and slope, studies as in coverage.py with one rival, and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from coverage import with_rivals
from scipy.special import ndtr, ndtri
from scipy.stats import t as student_t

from rhstudy.stats.cells import Cells
from rhstudy.stats.gain import left_out_gain
from rhstudy.stats.intervals import bca_interval
from rhstudy.stats.prediction import left_out_errors
from rhstudy.stats.statistic import StatisticsSettings

Ends = tuple[float, float]
RESAMPLES = 200


def errors(cells: Cells, rivals: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What recall saves and what there is to save, a number a recipe."""
    nothing, without, both = (left_out_errors(cells, names) for names in ((), rivals, (*rivals, "recall")))
    return without - both, nothing


def gain(cells: Cells, rivals: Sequence[str]) -> float:
    """The estimate."""
    saved, nothing = errors(cells, rivals)
    return float(saved.sum() / nothing.sum())


def drawn(cells: Cells, picked: np.ndarray) -> Cells:
    """A resample: recipes with all their cells, copies of one recipe still one cluster."""
    rows = np.concatenate([np.flatnonzero(cells.cluster == c) for c in picked])
    kept, cluster = np.unique(cells.cluster[rows], return_inverse=True)
    return dataclasses.replace(
        cells, f1=cells.f1[rows], predictors={name: x[rows] for name, x in cells.predictors.items()},
        group=cells.group[rows], cluster=cluster, clusters=tuple(cells.clusters[c] for c in kept),
        num_seeds=cells.num_seeds[rows],
    )  # fmt: skip


def candidates(cells: Cells, rivals: Sequence[str], rng: np.random.Generator) -> dict[str, Ends]:
    """Every interval of one study."""
    saved, nothing = errors(cells, rivals)
    num, estimate = len(saved), float(saved.sum() / nothing.sum())
    held = bca_interval(
        lambda rows: saved[rows].sum(axis=1) / nothing[rows].sum(axis=1),
        num, draws=rng, num_resamples=999, level=0.95,
    )  # fmt: skip
    left = [gain(cells.without(c), rivals) for c in range(num)]
    half = float(student_t.ppf(0.975, num - 1)) * (num - 1) / math.sqrt(num) * float(np.std(left, ddof=1))
    found = [gain(drawn(cells, rng.integers(0, num, num)), rivals) for _ in range(RESAMPLES)]
    values = np.array([value for value in found if np.isfinite(value)])
    below = np.clip((values < estimate).mean(), 1 / (2 * len(values)), 1 - 1 / (2 * len(values)))
    corrected = np.quantile(values, ndtr(2 * ndtri(below) + np.array([-1.96, 1.96])))
    percentile = np.quantile(values, [0.025, 0.975])
    taken = left_out_gain(cells, rivals, "recall", settings=StatisticsSettings())
    return {
        "held": (held.low, held.high), "jackknife": (estimate - half, estimate + half),
        "percentile": (float(percentile[0]), float(percentile[1])),
        "corrected": (float(corrected[0]), float(corrected[1])), "taken": (taken.low, taken.high),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", nargs="+", type=int, default=[10, 20])
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    for n in given.n:
        for slope in (0.0, 0.3):
            rng, sums, found = np.random.default_rng(n), np.zeros(2), []
            for _ in range(given.runs):
                cells, rivals = with_rivals("plain", n, slope, 1, rng)
                sums += [side.sum() for side in errors(cells, rivals)]
                found.append(candidates(cells, rivals, rng))
            truth = sums[0] / sums[1]
            print(f"n {n}, slope {slope}, true gain {truth:.3f}, {given.runs} runs", flush=True)
            for name in found[0]:
                low, high = np.array([item[name] for item in found]).T
                covered, above = ((low <= truth) & (truth <= high)).mean(), (low > 0).mean()
                width = np.median(high - low)
                print(f"  {name}: covers {covered:.1%}, above 0 {above:.1%}, median width {width:.2f}", flush=True)


if __name__ == "__main__":
    main()
