"""What the whole statistical analysis costs: many arms with their examples, all draws, all models.

    python tests/bench/analysis.py --recipes 30 --seeds 2 --examples 400

Arms are made up: recipes x seeds in one task with every rival, one reference of three seeds, and a knockout of 199
draws. Reads nothing, writes nothing; prints one JSON record with wall and CPU seconds and the peak of resident memory.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np
import pandas as pd

from rhstudy.stats.analysis import analyze_arms
from rhstudy.stats.causal import Experiment
from rhstudy.stats.frame import arm_name, validate_frame
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.tables import latex_report, markdown_report
from rhstudy.types import Prediction

KEYS = ("task", "model", "recipe", "seed")


def predictions(f1: np.ndarray) -> list[Prediction]:
    """Marks of one arm."""
    return [
        Prediction(
            example_id=f"e{index}", text="", answers=(), f1=float(mark), exact_match=float(mark == 1), gold_nll=1.0,
            num_prompt_tokens=0, num_new_tokens=0,
        )
        for index, mark in enumerate(f1)
    ]  # fmt: skip


def study(num_recipes: int, seeds: int, examples: int) -> tuple[pd.DataFrame, dict[str, list[Prediction]]]:
    """An arm table and the marks of its arms."""
    rng, rows, marks = np.random.default_rng(0), [], {}
    for recipe in range(-1, num_recipes):
        recall = rng.random() if recipe >= 0 else 1.0
        for seed in range(seeds if recipe >= 0 else 3):
            own = float(np.clip(recall + 0.05 * rng.standard_normal(), 0, 1))
            f1 = np.round(np.clip(0.1 + 0.5 * own + 0.4 * rng.standard_normal(examples), 0, 1), 2)
            key = {"task": "mdqa", "model": "m", "recipe": f"r{recipe:02d}" if recipe >= 0 else "real", "seed": seed}
            marks[arm_name(**key)] = predictions(f1)
            rivals = {
                "weighted_head_recall": 0.9 * own, "num_retrieval_heads": float(round(20 * own)), "cosine": own**0.5,
                "real_nll": 3 - own + rng.random(), "train_loss": 1 + rng.random(), "weight_change_norm": rng.random(),
            }  # fmt: skip
            flags = {"is_reference": recipe < 0, "contains_real": recipe in (-1, 0, 1)}
            rows.append({**key, "f1": float(f1.mean()), "head_recall": own, **rivals, **flags})
    return validate_frame(pd.DataFrame(rows)), marks


def knockout(examples: int) -> Experiment:
    """Outcomes of the top heads and 199 matched draws."""
    rng, rows = np.random.default_rng(1), []
    ease = rng.random(examples)
    plans: list[tuple[str, int, int | None, float]] = [("baseline", 0, None, 0.0), ("top", 10, None, 0.3)]
    plans += [("random", 10, draw, 0.05) for draw in range(199)]
    for kind, dose, draw, cost in plans:
        for index, mark in enumerate(np.clip(ease - cost + 0.1 * rng.standard_normal(examples), 0, 1)):
            f1 = float(mark)
            rows.append({
                "example_id": f"e{index}", "kind": kind, "dose": dose, "draw": draw, "f1": f1,
                "exact_match": float(f1 > 0.5), "gold_nll": 2 - f1, "text_nll": 2.0 + rng.random(),
            })  # fmt: skip
    return Experiment(task="mdqa", model="m", rows=rows)


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=400)
    given = parser.parse_args()
    frame, marks = study(given.recipes, given.seeds, given.examples)
    experiment = knockout(given.examples)
    wall, cpu = time.perf_counter(), time.process_time()
    found: dict[str, Any] = analyze_arms(
        frame, marks, seed=0, settings=StatisticsSettings(), experiments=[experiment]
    )  # fmt: skip
    markdown_report(found), latex_report(found)
    record = {
        "num_arms": len(frame),
        "num_examples": given.examples,
        "num_draws": StatisticsSettings().num_resamples,
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
