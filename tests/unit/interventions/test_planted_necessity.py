"""Planted truth through scores, plan, knockout, marks and statistics: the copying head is necessary, no other is."""

from __future__ import annotations

import numpy as np
import pytest
from planted import copying_model, planted_example

from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.heads.detect import detect
from rhstudy.interventions.conditions import KnockoutSettings, plan_knockout
from rhstudy.stages.intervene import outcomes_under
from rhstudy.stages.outcomes import BEHAVIOURS, condition_means, headline
from rhstudy.stats.necessity import necessity


def rows_of(examples, answered):
    return [
        {"example_id": example.example_id, **condition.names(), **dict.fromkeys(BEHAVIOURS), **outcomes[index]}
        for condition, outcomes in answered
        for index, example in enumerate(examples)
    ]


@pytest.fixture(scope="module")
def measured():
    loaded = copying_model()
    settings = KnockoutSettings(doses=(1, 2, 3, 9), num_draws=6, lowest=False)
    config = AnsweringSettings()
    scores = detect(loaded.model, loaded.tokenizer, [planted_example(5), planted_example(6)])
    plan = plan_knockout(scores, settings, seed=0)
    examples = [planted_example(index) for index in range(4)]
    answered = list(outcomes_under(plan.conditions, config, loaded, examples))
    return config, loaded, plan, examples, answered


def test_knocking_out_the_copying_head_destroys_copying_and_no_matched_draw_does(measured):
    _, _, plan, examples, answered = measured
    assert plan.retrieval_heads.ordered() == [(0, 0)]
    outcomes = rows_of(examples, answered)
    doses = necessity(
        outcomes, [{"mode": "zero_output", "scope": "decode", **dose.facts()} for dose in plan.doses], 0.95
    )
    numbers = headline(condition_means(outcomes), doses)
    assert numbers["f1_baseline"] == numbers["exact_match_baseline"] == 1
    for dose in (1, 2, 3):
        assert numbers[f"f1_top{dose}"] == numbers[f"exact_match_top{dose}"] == 0
        assert numbers[f"f1_random{dose}"] == 1
        assert numbers[f"drop_f1_top{dose}"] == numbers[f"excess_f1_top{dose}"] == 1
        assert numbers[f"drop_f1_random{dose}"] == 0
        assert numbers[f"p_f1_top{dose}"] == pytest.approx(1 / 7)
        assert numbers[f"gold_nll_top{dose}"] == pytest.approx(np.log(50))
        assert numbers[f"gold_nll_random{dose}"] < 0.1
        assert numbers[f"excess_gold_logp_top{dose}"] > 3.8
        assert numbers[f"p_gold_logp_top{dose}"] == pytest.approx(1 / 7)
    assert np.isnan(numbers["f1_top9"])
    assert doses[-1]["reason"] == "the model has 8 heads"


def test_a_batch_marks_as_its_examples_one_at_a_time(measured):
    config, loaded, plan, examples, answered = measured
    for index, example in enumerate(examples):
        alone = list(outcomes_under(plan.conditions, config, loaded, [example]))
        for (_, batched), (_, (single,)) in zip(answered, alone, strict=True):
            loss, other = batched[index].pop("gold_nll"), single.pop("gold_nll")
            assert single == batched[index]
            assert loss == pytest.approx(other, abs=1e-5)
            batched[index]["gold_nll"] = loss


def test_the_baseline_is_an_empty_knockout_bit_for_bit(measured):
    config, loaded, plan, examples, answered = measured
    first, *_, last = outcomes_under(
        [plan.conditions[0], *plan.conditions[1:4], plan.conditions[0]], config, loaded, examples
    )
    assert first == last == answered[0]
