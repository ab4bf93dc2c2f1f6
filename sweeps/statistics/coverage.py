"""Do the intervals cover and do the tests keep their level, on arms as a study makes them?

question: do nominal 95 % intervals of the main estimands cover 92 to 98.5 %, and do permutation and randomization tests
          at 5 % reject 4 to 6 % of true hypotheses (at most 6 % below 8 recipes), with recipes as clusters of seeds?
command:  python sweeps/statistics/coverage.py [PART ...] [--settings plain skewed] [--n 10 20 30 60] [--runs 2000]
time:     about half an hour of one core (spearman 8 minutes, slope 3, permutation 10; knockout and gain not timed)
expected: all within; BCa intervals a little short at 10 recipes; exact tests below 5 % where few orders exist

A simulated study has recipes in two tasks, two seeds each. Recall of an arm is its recipe's plus noise of the seed; F1
follows recall, with an effect of the recipe that its tasks share, noise of the seed, and noise of 400 rows. `plain`:
normal errors; `skewed`: exponential effects of recipes whose size grows with recall. What an interval has to cover is
the value in a population of a million recipes. Knockouts: examples differ in difficulty, draws in what they cost,
families of examples in how much of it they feel.

Each part writes PART.csv beside this file (columns: part, setting, n, what, runs, share, nominal) and prints it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.stats.cells import Cells
from rhstudy.stats.gain import left_out_gain
from rhstudy.stats.intervals import bca_interval, paired_difference
from rhstudy.stats.permutation import permutation_p, restricted_permutation, row_spearman
from rhstudy.stats.prediction import left_out_errors
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.wild import wild_cluster

HERE = Path(__file__).parent
NUM_TASKS, NUM_SEEDS = 2, 2
SETTINGS = ("plain", "skewed")
COVERED_N, TESTED_N = (10, 20, 30, 60), (5, 6, 7, 8, 9, 10, 20, 30, 60)
DRAWS, NULL_DRAWS = 999, 499
NUM_RIVALS = (1, 6)
NUM_EXAMPLES = (20, 100, 400)
FAMILY = 5
chosen: dict[str, tuple[Any, ...]] = {"settings": SETTINGS, "n": ()}


def wanted(sizes: tuple[int, ...]) -> list[int]:
    """Of `sizes` those that the command line asks for."""
    return [n for n in sizes if not chosen["n"] or n in chosen["n"]]


def cells(setting: str, n: int, slope: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Recall and F1 (tasks x recipes), means over seeds."""
    own = rng.beta(2, 2, n)
    recall = own + 0.08 * rng.standard_normal((NUM_TASKS, n)) + 0.05 * rng.standard_normal((NUM_SEEDS, NUM_TASKS, n))
    common = rng.standard_normal(n) if setting == "plain" else (0.4 + 1.2 * own) * (rng.exponential(size=n) - 1)
    noise = 0.05 * rng.standard_normal((NUM_TASKS, n)) + 0.04 * rng.standard_normal((NUM_SEEDS, NUM_TASKS, n))
    rows = 0.02 * rng.standard_normal((NUM_SEEDS, NUM_TASKS, n))
    f1 = 0.2 + slope * recall + 0.06 * common + noise + rows
    return recall.mean(axis=0), f1.mean(axis=0)


def as_cells(recall: np.ndarray, f1: np.ndarray) -> Cells:
    """The points of a study, as the pooled analysis takes them."""
    num_tasks, n = recall.shape
    return Cells(
        f1=f1.ravel(), predictors={"recall": recall.ravel()}, group=np.repeat(np.arange(num_tasks), n),
        cluster=np.tile(np.arange(n), num_tasks), groups=tuple(map(str, range(num_tasks))),
        clusters=tuple(map(str, range(n))), num_seeds=np.full(num_tasks * n, NUM_SEEDS),
    )  # fmt: skip


@functools.cache
def population(setting: str, slope: float) -> tuple[float, float]:
    """Spearman's rho of the first task and the pooled slope, among a million recipes."""
    recall, f1 = cells(setting, 1_000_000, slope, np.random.default_rng(99))
    rho = float(row_spearman(recall[:1], f1[:1])[0])
    x, y = (side - side.mean(axis=1, keepdims=True) for side in (recall, f1))
    return rho, float((x * y).sum() / (x * x).sum())


Row = tuple[str, int, str, int, float, float]


def spearman_coverage(runs: int) -> Iterator[Row]:
    """BCa intervals of Spearman's rho in one task."""
    for setting in chosen["settings"]:
        for slope in (0.0, 0.3):
            truth = population(setting, slope)[0]
            for n in wanted(COVERED_N):
                rng, covered, given = np.random.default_rng(n), 0, 0
                for _ in range(runs):
                    recall, f1 = (side[0] for side in cells(setting, n, slope, rng))
                    ends = bca_interval(
                        lambda rows, x=recall, y=f1: row_spearman(x[rows], y[rows]),
                        n, draws=rng, num_resamples=DRAWS, level=0.95,
                    )  # fmt: skip
                    given += not ends.reason
                    covered += ends.low <= truth <= ends.high
                yield setting, n, f"Spearman, BCa, rho {truth:.2f}", given, covered / given, 0.95


def slope_coverage(runs: int) -> Iterator[Row]:
    """The pooled slope's interval, and the level of the same bootstrap's p."""
    for setting in chosen["settings"]:
        for slope in (0.0, 0.3):
            truth = population(setting, slope)[1]
            for n in wanted(COVERED_N):
                rng, covered, rejected, given = np.random.default_rng(n), 0, 0, 0
                for _ in range(runs):
                    found = as_cells(*cells(setting, n, slope, rng))
                    x, y = found.within(found.predictors["recall"]), found.within(found.f1)
                    wild = wild_cluster(
                        x, y, found.dummies(), found.cluster, num_draws=DRAWS, level=0.95, draws=rng
                    )  # fmt: skip
                    given += not wild.reason
                    covered += wild.low <= truth <= wild.high
                    rejected += wild.p <= 0.05
                yield setting, n, f"pooled slope, wild cluster bootstrap, slope {slope}", given, covered / given, 0.95
                if slope == 0:
                    yield setting, n, "level of the wild cluster bootstrap's p", runs, rejected / runs, 0.05


def gain_coverage(runs: int) -> Iterator[Row]:
    """The gain of recall over rivals in leave-one-recipe-out R2; its true value is the ratio of mean errors."""
    how = StatisticsSettings()
    for setting, num_rivals, slope in itertools.product(chosen["settings"], NUM_RIVALS, (0.0, 0.3)):
        for n in wanted(COVERED_N):
            rng, ends, sums = np.random.default_rng(n), [], np.zeros(2)
            for _ in range(runs):
                found, rivals = with_rivals(setting, n, slope, num_rivals, rng)
                nothing, without, both = (left_out_errors(found, k) for k in ((), rivals, (*rivals, "recall")))
                gain = left_out_gain(found, rivals, "recall", settings=how)
                ends.append((gain.low, gain.high))
                sums += [(without - both).sum(), nothing.sum()]
            low, high = np.array(ends).T
            truth, given = float(sums[0] / sums[1]), int(np.isfinite(low).sum())
            covered, claimed = ((low <= truth) & (truth <= high)).sum(), (low > 0).sum()
            over = "a rival" if num_rivals == 1 else f"{num_rivals} rivals"
            effect = "no effect" if slope == 0 else f"slope {slope}"
            yield setting, n, f"gain in leave-one-recipe-out R2 over {over}, {effect}", given, covered / given, 0.95
            what = "'adds to rivals' where recall adds nothing" if slope == 0 else f"'adds to rivals' at slope {slope}"
            yield setting, n, f"{what}, {over}", given, claimed / given, 0.025 if slope == 0 else 0.8


def with_rivals(setting: str, n: int, slope: float, count: int, rng: np.random.Generator) -> tuple[Cells, list[str]]:
    """A study with rivals that follow recall: the first closely, the others less."""
    recall, f1 = cells(setting, n, slope, rng)
    shares = [0.5, *[0.3] * (count - 1)]
    rivals = {f"rival{k}": (s * recall + 0.2 * rng.standard_normal(recall.shape)).ravel() for k, s in enumerate(shares)}
    found = as_cells(recall, f1)
    return dataclasses.replace(found, predictors={**found.predictors, **rivals}), list(rivals)


def permutation_level(runs: int) -> Iterator[Row]:
    """How often a permutation test rejects where recall tells nothing."""
    for setting in chosen["settings"]:
        for n in wanted(TESTED_N):
            rng, rejected, tied, pooled = np.random.default_rng(n), 0, 0, 0
            for run in range(runs if n != 9 else runs // 3):  # 362,880 orders each
                recall, f1 = cells(setting, n, 0.0, rng)
                rejected += permutation_p(recall[0], f1[0], seed=run, num_draws=NULL_DRAWS)[0] <= 0.05
                steps = np.round(5 * recall[0])
                tied += np.ptp(steps) > 0 and permutation_p(steps, f1[0], seed=run, num_draws=NULL_DRAWS)[0] <= 0.05
                found = as_cells(recall, f1)
                pooled += restricted_permutation(
                    found.within(found.predictors["recall"]), found.within(found.f1), found.group, found.cluster,
                    num_draws=NULL_DRAWS, draws=rng,
                ).p <= 0.05  # fmt: skip
            done = runs if n != 9 else runs // 3
            yield setting, n, "level of Spearman's permutation p", done, rejected / done, 0.05
            yield setting, n, "the same with heavy ties", done, tied / done, 0.05
            yield setting, n, "level of the restricted permutation p", done, pooled / done, 0.05


def marks(num_examples: int, effects: np.ndarray, rng: np.random.Generator, family: int = 1) -> np.ndarray:
    """F1 per condition and example where condition c costs about effects[c], on the grid and in the range of F1.

    Examples come in families of `family`, of which each has its own share of what a condition costs.
    """
    ease = rng.beta(0.8, 0.8, num_examples)
    shares = rng.gamma(4, 0.25, -(-num_examples // family)).repeat(family)[:num_examples] if family > 1 else 1.0
    found = ease - effects[:, None] * shares + 0.25 * rng.standard_normal((len(effects), num_examples))
    return np.clip(np.round(found, 2), 0, 1)


def named(values: np.ndarray) -> dict[str, float]:
    """Marks by example."""
    return {f"e{index}": float(value) for index, value in enumerate(values)}


def knockout(runs: int) -> Iterator[Row]:
    """Level of the randomization p when the top heads are one more random draw; coverage of the excess."""
    for num_examples in wanted(NUM_EXAMPLES):
        rng = np.random.default_rng(num_examples)
        costs = 0.1 + 0.03 * rng.standard_normal(2000)
        rejected = 0
        for _ in range(runs):
            effects = np.concatenate([[0.0, rng.choice(costs)], rng.choice(costs, 199)])
            means = marks(num_examples, effects, rng).mean(axis=1)
            rejected += (1 + (means[2:] <= means[1] + 1e-12).sum()) / 200 <= 0.05
        yield "null", num_examples, "level of the knockout's randomization p (199 draws)", runs, rejected / runs, 0.05
        yield from excess_coverage(num_examples, min(runs, 2000), costs)


def excess_coverage(num_examples: int, runs: int, costs: np.ndarray) -> Iterator[Row]:
    """The excess of heads that cost 0.2 more, where examples are alone and where they come in families of five."""
    for family, setting in ((1, "effect 0.2"), (FAMILY, f"effect 0.2, families of {FAMILY}")):
        rng, truth = np.random.default_rng(num_examples + family), _true_excess(0.2, costs, family)
        together = {f"e{index}": str(index // family) for index in range(num_examples)}
        covered = np.zeros(2)
        for _ in range(runs):
            table = marks(num_examples, np.concatenate([[0.0, 0.3], rng.choice(costs, 199)]), rng, family)
            matched, top = named(table[2:].mean(axis=0)), named(table[1])  # what `dose_effect` compares
            for index, clusters in enumerate((together, {}) if family > 1 else (together,)):
                found = paired_difference(matched, top, 0.95, clusters)
                covered[index] += found.low <= truth <= found.high
        over = "families" if family > 1 else "examples"
        yield setting, num_examples, f"excess over matched draws, t over {over}", runs, covered[0] / runs, 0.95
        if family > 1:
            yield setting, num_examples, "the same, families ignored", runs, covered[1] / runs, 0.95


def _true_excess(extra: float, costs: np.ndarray, family: int) -> float:
    rng = np.random.default_rng(7)
    table = marks(20_000, np.concatenate([[costs.mean() + extra], costs[:400]]), rng, family).mean(axis=1)
    return float(table[1:].mean() - table[0])


def patching(runs: int) -> Iterator[Row]:
    """Coverage of patched - real, and how often the two one-sided tests call a difference of the margin nothing."""
    for num_examples in wanted(NUM_EXAMPLES):
        rng, covered, equal = np.random.default_rng(num_examples), 0, 0
        shift = 0.05
        for _ in range(runs):
            ease = rng.beta(0.8, 0.8, num_examples)
            hits = rng.random((2, num_examples)) < np.stack([ease, ease * (1 - 2 * shift)])
            found = paired_difference(named(hits[1]), named(hits[0]), 0.95)
            inner = paired_difference(named(hits[1]), named(hits[0]), 0.90)
            covered += found.low <= -shift <= found.high
            equal += inner.low > -0.05 and inner.high < 0.05
        yield "difference 0.05", num_examples, "patched - real, paired t", runs, covered / runs, 0.95
        yield (
            "difference 0.05",
            num_examples,
            "TOST says equal at a true difference of the margin",
            runs,
            equal / runs,
            0.05,
        )


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "spearman": spearman_coverage,
    "slope": slope_coverage,
    "gain": gain_coverage,
    "permutation": permutation_level,
    "knockout": knockout,
    "patching": patching,
}
NULL_PARTS = ("permutation", "knockout", "patching")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--null-runs", type=int, default=6000)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--n", nargs="+", type=int, help="only these numbers of recipes or examples")
    parser.add_argument("--name", default="", help="added to the file names, where processes share the work")
    given = parser.parse_args()
    chosen.update(settings=tuple(given.settings), n=tuple(given.n or ()))
    for part in given.parts:
        start, used = time.perf_counter(), time.process_time()
        runs = given.null_runs if part in NULL_PARTS else given.runs
        with (HERE / f"{part}{given.name}.csv").open("w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream, lineterminator="\n")
            out.writerow(("part", "setting", "n", "what", "runs", "share", "nominal"))
            for row in PARTS[part](runs):
                out.writerow((part, *row[:4], f"{row[4]:.4f}", row[5]))
                stream.flush()
                print(part, *row, flush=True)
        print(f"{part}: {time.perf_counter() - start:.0f} s, {time.process_time() - used:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
