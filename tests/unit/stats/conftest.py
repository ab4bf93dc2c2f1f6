"""A made study: recipes whose F1 rises with head recall, with seeds, a reference, a flagged recipe, a baseline."""

from __future__ import annotations

import numpy as np
import pytest

from rhstudy.stats.frame import ArmRow, arm_frame, arm_name
from rhstudy.types import Estimate, Prediction


def _predictions(f1, examples, rng):
    marks = np.round(np.clip(f1 + 0.3 * rng.standard_normal(examples), 0, 1), 2)
    return [
        Prediction(
            example_id=f"e{index}",
            text="x",
            answers=("x",),
            f1=float(value),
            exact_match=float(value == 1),
            gold_nll=1.0,
            num_prompt_tokens=9,
            num_new_tokens=2,
        )
        for index, value in enumerate(marks)
    ]


def _row(recipe, seed, marks, recall, task, **flags):
    values = {
        "f1": float(np.mean([item.f1 for item in marks])),
        "exact_match": float(np.mean([item.exact_match for item in marks])),
        "head_recall": recall,
        "weighted_head_recall": 0.9 * recall,
        "num_retrieval_heads": float(round(20 * recall)),
        "cosine": recall**0.5,
        "real_nll": 3 - recall,
    }
    measures = {name: Estimate(value) for name, value in values.items()}
    untrained = Estimate.undefined("an untuned model has no training")
    measures["train_loss"] = untrained if flags.get("is_untuned") else Estimate(1 + recall / 7)
    return ArmRow(task=task, model="tiny", recipe=recipe, seed=seed, recipe_digest=recipe, measures=measures, **flags)


@pytest.fixture
def make_study():
    def _make(num_recipes, *, seeds=2, examples=20, task="mdqa", slope=0.3, seed=0):
        rng, rows, predictions = np.random.default_rng(seed), [], {}

        def add(recipe, arm_seed, f1, recall, **flags):
            marks = _predictions(f1, examples, rng)
            predictions[arm_name(task, "tiny", recipe, arm_seed)] = marks
            rows.append(_row(recipe, arm_seed, marks, recall, task, **flags))

        for arm_seed in range(seeds):
            add("real", arm_seed, 0.6, 1.0 - 0.1 * arm_seed, is_reference=True, contains_real=True)
            add("real_limited", arm_seed, 0.5, 0.9, contains_real=True)
            for index in range(num_recipes):
                recall = (index + 1) / (num_recipes + 1)
                add(f"synthetic_{index:02d}", arm_seed, 0.2 + slope * recall, recall)
        add("untuned", 0, 0.05, 0.4, is_untuned=True)
        return arm_frame(rows), predictions

    return _make
