"""A sweep's measurements without a model: head scores and F1 that follow a planted quality of each recipe."""

from __future__ import annotations

from typing import Any

import numpy as np

from rhstudy.configs import from_mapping
from rhstudy.data.knobs import Knobs
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.course import Budget
from rhstudy.sweep.judging import Evidence, Seconds
from rhstudy.sweep.selection import Candidate, choose
from rhstudy.sweep.signals import signals_of
from rhstudy.types import HeadScores

NUM_ROWS, SHAPE = 40, (4, 5)


def scores(quality: float, seed: int, *, num_rows: int = NUM_ROWS, unscored: tuple[int, ...] = ()) -> HeadScores:
    """Seven heads copy with probability `quality`, the others hardly ever."""
    draws = np.random.default_rng(seed)
    chance = np.where(np.arange(20) < 7, quality * np.linspace(1.0, 0.4, 20), 0.02).reshape(SHAPE)
    hits = (draws.random((num_rows, *SHAPE)) < chance).astype(np.float32)
    names = tuple(f"row-{index}" for index in range(num_rows))
    hits[list(unscored)] = np.nan
    return HeadScores(
        score=hits, aligned=hits, example_ids=names, unscored={names[index]: "no token" for index in unscored},
        real_nll=(2.0 - quality + draws.normal(0, 0.3, num_rows)).astype(np.float32), model="m", model_digest="d",
        data_digest="rows", mode="teacher_forced", seed=seed,
    )  # fmt: skip


def config(**validation: Any) -> SweepConfig:
    statistics = {"num_resamples": 200, "num_permutations": 200, "num_power_draws": 100}
    values = {
        "name": "planted",
        "space": [{"knob": "real_fraction"}],
        "base": {"name": "base", "concept_expression": "templated"},
        "data": {"train_file": "mdqa"},
        "scoring": {"threshold": 0.2},
        "validation": {"statistics": statistics, "reliability": 0.8, **validation},
    }
    return from_mapping(SweepConfig, values)


def candidates(qualities: list[float], reference: HeadScores) -> tuple[list[Candidate], dict[int, list[HeadScores]]]:
    scored = {number: [scores(quality, number)] for number, quality in enumerate(qualities)}
    found = [
        Candidate(
            number=number,
            knobs=Knobs(name=f"recipe-{number}", concept_expression="templated", real_fraction=number / 100),
            budget=Budget(num_examples=8, num_tokens=256),
            corner="low_high" if number == 2 else "",
            signals=signals_of(scored[number], reference, config().scoring),
            detect_runs={1: f"{number:032x}"},
        )
        for number in scored
    ]
    return found, scored


def evidence(num_recipes: int = 12, *, small: Any = None, num_seeds: int = 2) -> Evidence:
    """Recipes of rising quality 0.1 ... 0.9, all evaluated; F1 of a row is 1 with that probability."""
    qualities = [float(value) for value in np.linspace(0.1, 0.9, num_recipes)]
    reference = scores(0.95, 999)
    found, scored = candidates(qualities, reference)
    draws = np.random.default_rng(5)
    f1 = {
        number: {
            seed: {f"eval-{row}": float(draws.random() < quality) for row in range(50)}
            for seed in range(1, 1 + num_seeds)
        }
        for number, quality in enumerate(qualities)
    }
    return Evidence(
        candidates=found, scores=scored, reference=reference, small_references={} if small is None else small,
        choices=choose(found, top_k=2, num_random=3, seed=0), f1=f1, beside={"untuned": {0: f1[0][1]}},
        seconds=Seconds(
            training=[10.0, 12.0], score_row=[0.1, 0.2], eval_row=[0.5, 0.7], num_score_rows=NUM_ROWS, num_eval_rows=50
        ),
    )  # fmt: skip
