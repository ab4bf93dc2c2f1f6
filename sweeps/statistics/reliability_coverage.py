"""Do the intervals of rank reliability cover, where recipes and rows are both samples?

question: does the nominal 95 % interval of the mean rank correlation between halves of the rows cover 92 to 98.5 %, and
          does one that resamples recipes alone?
command:  python sweeps/statistics/reliability_coverage.py [--runs 300] [--n 12x40 30x100]
time:     about 5 minutes of one core
expected: a jackknife over recipes and rows covers, a little long; a bootstrap over recipes alone is short where rows
          differ in how well they tell recipes apart

`plain`: a recipe's quality plus an effect of the row plus noise, all normal. `slopes`: rows weigh the quality
differently (a squared exponential factor). `f1`: right or wrong, most rows hopeless or easy. What has to be covered is
the mean estimate over all simulated studies of that size. Writes reliability.csv beside this file and prints it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from rhstudy.stats.intervals import bca_interval
from rhstudy.stats.permutation import row_spearman
from rhstudy.stats.reliability import NUM_SPLITS, rank_reliability
from rhstudy.stats.statistic import StatisticsSettings

LAWS = ("plain", "slopes", "f1")
RESAMPLES = 400


def values(law: str, recipes: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """The signal of every recipe on every row."""
    quality = rng.normal(size=(recipes, 1))
    if law == "f1":
        chance = 1 / (1 + np.exp(-(0.8 * quality + 3 * rng.normal(size=rows))))
        return (rng.random((recipes, rows)) < chance).astype(float)
    factor = rng.exponential(size=rows) ** 2 if law == "slopes" else np.ones(rows)
    return np.asarray(quality * factor + rng.normal(size=rows) + 3 * rng.normal(size=(recipes, rows)))


def over_recipes(table: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A BCa bootstrap of the same correlation over recipes, the rows held."""
    half, orders = table.shape[1] // 2, [rng.permutation(table.shape[1]) for _ in range(NUM_SPLITS)]
    pairs = [(table[:, o[:half]].mean(axis=1), table[:, o[half : 2 * half]].mean(axis=1)) for o in orders]
    ends = bca_interval(
        lambda drawn: np.nanmean([row_spearman(a[drawn], b[drawn]) for a, b in pairs], axis=0),
        len(table), draws=rng, num_resamples=RESAMPLES, level=0.95,
    )  # fmt: skip
    return ends.low, ends.high


def main() -> None:
    """All laws and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--n", nargs="+", default=["12x40", "30x100"], help="recipes x rows")
    parser.add_argument("--laws", nargs="+", default=LAWS)
    given = parser.parse_args()
    with (Path(__file__).parent / "reliability.csv").open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, lineterminator="\n")
        out.writerow(("law", "recipes", "rows", "what", "runs", "reliability", "share", "nominal"))
        for size in given.n:
            recipes, rows = map(int, size.split("x"))
            for law in given.laws:
                rng, both, alone = np.random.default_rng(recipes), [], []
                for _ in range(given.runs):
                    table = values(law, recipes, rows, rng)
                    found = rank_reliability(
                        lambda kept, table=table: table[:, kept].mean(axis=1), rows, target=0.9, seed=0,
                        settings=StatisticsSettings(),
                    ).half  # fmt: skip
                    both.append((found.estimate, found.low, found.high))
                    alone.append(over_recipes(table, rng))
                truth = float(np.mean([one[0] for one in both]))
                ends = {"jackknife-t over recipes and rows": [one[1:] for one in both], "BCa over recipes": alone}
                for what, intervals in ends.items():
                    share = float(np.mean([low <= truth <= high for low, high in intervals]))
                    row = (law, recipes, rows, what, given.runs, f"{truth:.3f}", f"{share:.4f}", 0.95)
                    out.writerow(row)
                    stream.flush()
                    print(*row, flush=True)


if __name__ == "__main__":
    main()
