"""What is said of the signals of a planted sweep, whose recipes' quality is known; tables, CSV and figures of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from evidence import config, evidence, scores
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.figures.validation import signal_scatter
from rhstudy.stats import reliability
from rhstudy.stats.regret import regret
from rhstudy.sweep.judging import judge
from rhstudy.sweep.validate import by_row
from rhstudy.sweep.validation_page import csv_text, facts_of, page, write_figures
from rhstudy.types import Prediction


@pytest.fixture(scope="module", autouse=True)
def few_splits() -> Iterator[None]:
    """Enough to see that they are used; their number has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reliability, "NUM_SPLITS", 4)
        patch.setattr(reliability, "NUM_GROUPS", 4)
        yield


@pytest.fixture(scope="module")
def given() -> Any:
    return evidence(small={0: scores(0.01, 77), 10: scores(0.6, 78), 50: "the whole reference is made of 40 rows"})


@pytest.fixture(scope="module")
def findings(given: Any) -> dict[str, Any]:
    return judge(given, config())


def test_every_recipe_stands_with_its_f1_and_who_chose_it(given: Any, findings: dict[str, Any]) -> None:
    assert findings["num_evaluated"] == len(findings["recipes"]) == 12
    f1 = [row["f1"]["estimate"] for row in findings["recipes"]]
    assert f1 == sorted(f1, reverse=True)
    for row in findings["recipes"]:
        rows = [list(seed.values()) for seed in given.f1[row["trial"]].values()]
        assert row["f1"]["estimate"] == pytest.approx(np.mean(rows))
        assert row["f1_by_seed"] == pytest.approx({"1": np.mean(rows[0]), "2": np.mean(rows[1])})
        assert row["chosen_by"] == [choice.way for choice in given.choices if row["trial"] in choice.numbers]
    assert findings["beside"]["untuned"]["f1"]["estimate"] == pytest.approx(np.mean(list(given.f1[0][1].values())))


def test_regret_and_correlation_are_those_of_the_statistics(given: Any, findings: dict[str, Any]) -> None:
    rows = [np.array([list(seed.values()) for seed in seeds.values()]) for seeds in given.f1.values()]
    means = [item.mean() for item in rows]
    for way, choice in zip(findings["ways"], given.choices, strict=True):
        expected = max(means) - np.mean([means[number] for number in choice.chosen])
        assert way["regret"]["estimate"] == pytest.approx(expected)
        best = max(means) - max(means[number] for number in choice.numbers)
        assert way["regret_best_of"]["estimate"] == pytest.approx(best)
        assert way["regret"]["low"] <= way["regret"]["estimate"] <= way["regret"]["high"]
    for name, signal in findings["signals"].items():
        values = [item.signals[name].value for item in given.candidates]
        assert signal["correlation"]["estimate"] == pytest.approx(scipy_stats.spearmanr(values, means)[0])
        assert signal["correlation"]["estimate"] > 0.7
        assert signal["reliability"] == signal["reliability_all_trials"]
    assert regret(rows, [0], seed=0, settings=config().validation.statistics).estimate > 0.5


def test_costs_follow_from_rows_and_recorded_seconds(findings: dict[str, Any]) -> None:
    signal, own = findings["signals"]["weighted_head_recall"], findings["f1"]
    rows, f1_rows = signal["reliability"]["needed"]["estimate"], own["reliability"]["needed"]["estimate"]
    assert signal["cost_s"]["estimate"] == pytest.approx(rows * 0.15)
    assert own["cost_s"]["estimate"] == pytest.approx(f1_rows * 0.6)
    now, then = signal["saved_s"]["as_run"], signal["saved_s"]["at_reliability"]
    assert now["trial_s"]["estimate"] == pytest.approx(11 + 40 * 0.15)
    assert now["f1_trial_s"]["estimate"] == pytest.approx(11 + 50 * 0.6)
    assert now["saved_s"]["estimate"] == pytest.approx(12 * (30 - 6) - 17)
    assert then["saved_s"]["estimate"] == pytest.approx(12 * (f1_rows * 0.6 - rows * 0.15) - (11 + rows * 0.15))
    assert own["trial_s"] == then["f1_trial_s"]
    for cost in (signal["cost_s"], own["cost_s"], then["trial_s"], then["f1_trial_s"]):
        assert 0 <= cost["low"] < cost["estimate"] < cost["high"]
    free = findings["signals"]["real_nll"]["saved_s"]["as_run"]
    assert free["saved_s"]["estimate"] == pytest.approx(12 * (30 - 6)), "the loss needs no reference"


def test_smaller_references_are_compared_with_the_whole_one(findings: dict[str, Any]) -> None:
    untuned, ten, fifty = findings["references"]
    assert ten["weighted_head_recall"]["with_whole_reference"]["estimate"] > 0.8
    assert ten["weighted_head_recall"]["with_f1"]["estimate"] > 0.7
    assert untuned["num_retrieval_heads"] == 0
    assert untuned["head_recall"]["with_whole_reference"]["estimate"] is None
    assert untuned["head_recall"]["why_undefined"] == "the reference has no retrieval heads"
    assert fifty == {"num_distinct": 50, "reason": "the whole reference is made of 40 rows"}


def test_rows_that_one_model_lacks_count_for_none(given: Any) -> None:
    short = {number: {seed: dict(rows) for seed, rows in seeds.items()} for number, seeds in given.f1.items()}
    del short[3][2]["eval-7"]
    found = judge(dataclasses.replace(given, f1=short), config())
    assert found["num_eval_rows"] == 49


def test_few_recipes_and_unknown_seconds_are_null_with_a_reason() -> None:
    few = evidence(2, num_seeds=1)
    few = dataclasses.replace(few, seconds=dataclasses.replace(few.seconds, eval_row=[float("nan")]))
    found = judge(few, config())
    json.dumps(found, allow_nan=False)
    assert found["signals"]["real_nll"]["correlation"]["estimate"] is None
    assert "needs 3 recipes" in found["signals"]["real_nll"]["correlation"]["reason"]
    assert found["signals"]["real_nll"]["saved_s"]["as_run"]["saved_s"]["estimate"] is None
    assert "the cost of F1" in found["signals"]["real_nll"]["saved_s"]["as_run"]["saved_s"]["reason"]
    assert "needs 3 recipes" in page(found)


def test_the_page_the_table_and_the_figures_show_the_findings(findings: dict[str, Any], tmp_path: Any) -> None:
    text = page(findings)
    for row in findings["recipes"]:
        assert f"{row['f1']['estimate']:.3f} [" in text
    assert "| 10 real rows |" in text
    assert "data and training of a model 11.0 [" in text
    assert "| untuned | 0 | n/a" in text
    assert "reference of 0, head_recall: the reference has no retrieval heads" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(findings))))
    assert len(rows) == 24
    assert float(rows[0]["f1_recipe"]) == findings["recipes"][0]["f1"]["estimate"]
    assert facts_of(findings)["best_f1"] == findings["recipes"][0]["f1"]["estimate"]
    write_figures(findings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recall_f1.png", "regret.png"}
    assert "orange: chosen by the panel's signal" in signal_scatter(findings).get_supxlabel()
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 10_000


def test_examples_of_one_row_are_averaged_and_unscored_ones_left_out() -> None:
    def mark(name: str, f1: float, cluster: str = "", unscored: str = "") -> Prediction:
        return Prediction(example_id=name, text="", answers=("a",), f1=f1, exact_match=f1, gold_nll=1.0,
                          num_prompt_tokens=1, num_new_tokens=1, cluster=cluster, unscored=unscored)  # fmt: skip

    marks = [mark("a", 1.0, "x"), mark("b", 0.5, "x"), mark("c", 0.2), mark("d", float("nan"), unscored="no gold")]
    assert by_row(marks) == {"x": 0.75, "c": 0.2}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"top_k": 0}, r"validation\.top_k must be at least 1, got 0"),
        ({"num_random": -1}, r"validation\.num_random must be at least 0"),
        ({"reference_sizes": [10, 10]}, r"validation\.reference_sizes must be different numbers of 0 or more"),
        ({"reference_sizes": [-1]}, r"validation\.reference_sizes must be different numbers of 0 or more"),
        ({"reliability": 1.0}, r"validation\.reliability must be in \(0, 1\), got 1\.0"),
    ],
)
def test_a_check_that_cannot_be_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(**values)
