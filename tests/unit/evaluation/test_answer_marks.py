"""Parsing, marking and summing up: an unscored example is counted, never a zero."""

from __future__ import annotations

import json
import math

import pytest

from rhstudy.evaluation.answers import mark_answer, parse_answer, summarize_predictions


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris\nQuestion: what", "Paris"),
        (" Paris \r\n", "Paris"),
        ("Paris", "Paris"),
        ("\nParis", ""),
        ("", ""),
        ("a\u2028b", "a\u2028b"),
    ],
)
def test_parse(text, answer):
    assert parse_answer(text) == answer


def mark(text, answers, **more):
    return mark_answer("e", text, answers, num_prompt_tokens=10, num_new_tokens=3, **more)


def test_marks():
    found = mark(" the Paris\nmore", ["Paris", ""], gold_nll=0.7)
    assert (found.text, found.f1, found.exact_match, found.gold_nll, found.unscored) == ("the Paris", 1, 1, 0.7, "")
    assert found.answers == ("Paris", "")


def test_a_blank_gold_answer_earns_an_empty_prediction_nothing():
    assert mark("", ["Paris", " "]).f1 == 0


@pytest.mark.parametrize(("answers", "reason"), [([], "no gold answer"), (["", " "], "every gold answer is blank")])
def test_unscored(answers, reason):
    found = mark("Paris", answers)
    assert found.unscored == reason
    assert math.isnan(found.f1)
    assert math.isnan(found.exact_match)


def test_summary_averages_scored_rows_and_counts_the_rest():
    rows = [mark("Paris", ["Paris"], gold_nll=1.0), mark("Rome", ["Paris"]), mark("x", []), mark("x", [], gold_nll=2.0)]
    found = summarize_predictions(rows)
    assert found.f1.value == found.exact_match.value == 0.5
    assert found.gold_nll.value == 1.5
    assert (found.num_examples, found.num_scored, found.num_unscored) == (4, 2, 2)
    assert found.unscored == {"no gold answer": 2}
    assert json.loads(json.dumps(found.facts(), allow_nan=False))["num_unscored"] == 2


def test_summary_of_nothing_is_nan_with_the_reason():
    facts = summarize_predictions([mark("x", [])]).facts()
    assert facts["f1"] is None
    assert facts["reasons"] == {
        "f1": "no prediction was scored",
        "exact_match": "no prediction was scored",
        "gold_nll": "no loss was measured",
    }
