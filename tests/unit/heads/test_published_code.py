"""Each habit of the published program on a hand-made case: what it gives, and what the definition gives without it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from planted import planted_example, planted_model
from tiny_models import random_example

from rhstudy.heads.detect import detect
from rhstudy.heads.published_code import NOT_FOUND, PublishedQuirks, find_by_set_overlap, gate, score_published, stops
from rhstudy.seeding import generator
from rhstudy.types import Span

OFF = PublishedQuirks(
    decoded_answer=False,
    published_stops=False,
    needle_by_set_overlap=False,
    any_needle_token=False,
    per_step_counting=False,
    needle_length_denominator=False,
    rouge_gate=False,
    model_dtype_weights=False,
)
PROMPT = (5, 6, 7, 8, 7, 9, 30, 7, 9)
"""The needle is positions 1..5 (6 7 8 7 9); the answer 7 9 stands again, outside of it, at the end."""


def hand_made():
    base = random_example(generator(0, "published"), 0)
    needle = dataclasses.replace(base.needles[0], token_span=Span(1, 6), answer_token_span=Span(4, 6))
    return dataclasses.replace(base, prompt_ids=PROMPT, answer_ids=(7, 9), answer=" w7 w9", needles=(needle,))


# Said: 7 7 8 9. Three heads: all copied from the needle; the first 7 twice; the 9 copied from outside of it.
SAID = (7, 7, 8, 9)
ARGMAX = np.array([[[2, 4, 3, 5], [2, 2, 0, 0], [0, 0, 0, 8]]])
ONE_ON = {
    "definition": ({}, [1.0, 0.5, 0.0]),
    "any_needle_token": ({"any_needle_token": True}, [3 / 4, 1 / 4, 0.0]),  # 6 7 8 9 count, 7 8 9 or 7 were copied
    "per_step_counting": ({"per_step_counting": True}, [3 / 2, 2 / 2, 0.0]),
    "needle_length_denominator": ({"needle_length_denominator": True}, [2 / 5, 1 / 5, 0.0]),
    "needle_by_set_overlap": ({"needle_by_set_overlap": True}, [1.0, 0.0, 0.0]),  # the window 7 9 begins at 4
}


@pytest.mark.parametrize("case", ONE_ON)
def test_one_habit_at_a_time(case: str) -> None:
    switches, expected = ONE_ON[case]
    score, reason = score_published(ARGMAX, SAID, hand_made(), dataclasses.replace(OFF, **switches), (7, 9))
    assert reason == ""
    np.testing.assert_allclose(score[0], expected)


def test_all_counting_habits_together_may_exceed_one() -> None:
    said, argmax = (7, 9, 7, 9), np.array([[[4, 5, 4, 5]]])
    score, _ = score_published(argmax, said, hand_made(), PublishedQuirks(), (7, 9))
    assert score[0, 0] == 2.0


def test_the_needle_is_the_first_window_with_nine_tenths_of_its_ids() -> None:
    assert find_by_set_overlap(PROMPT, (7, 9)) == Span(4, 6)
    assert find_by_set_overlap(PROMPT, (9, 7)) == Span(4, 6), "the order does not matter"
    assert find_by_set_overlap(PROMPT, (9, 7, 40)) is None
    ten = tuple(range(100, 110))
    assert find_by_set_overlap((1, *ten[:9], 2), ten) is None, "exactly 0.9 is not enough"
    assert find_by_set_overlap((1, 2, 7), (7, 7)) == Span(1, 3)
    assert find_by_set_overlap((1, 2, 7), (3,)) is None
    assert find_by_set_overlap((1, 7, 9), (7, 9, 9, 9)) == Span(0, 4), "windows are cut at the end, spans are not"


def test_a_needle_that_is_not_found_scores_zero_as_published_and_is_unscored_without_its_denominator() -> None:
    score, reason = score_published(ARGMAX, SAID, hand_made(), PublishedQuirks(), (7, 9, 40))
    assert (score.tolist(), reason) == ([[0.0, 0.0, 0.0]], "")
    quirks = PublishedQuirks(needle_length_denominator=False)
    score, reason = score_published(ARGMAX, SAID, hand_made(), quirks, (7, 9, 40))
    assert np.isnan(score).all()
    assert reason == NOT_FOUND


def test_the_gate_keeps_more_than_half_of_the_words() -> None:
    example = dataclasses.replace(hand_made(), answer=" the oldest sailors sang")
    assert gate(example, "Sailor, the OLDEST") == ""
    assert gate(example, "the oldest") == "the answer failed the published gate: ROUGE-1 recall 0.50 <= 0.5"


def test_the_published_stops() -> None:
    assert stops(PublishedQuirks(), {"<0x0A>": 13, "a": 1}) == {144, 13}
    assert stops(PublishedQuirks(stop_ids=(7, 8)), {"a": 1}) == {7, 8}


def test_published_stops_are_scored_and_end_of_text_is_no_stop() -> None:
    """The planted model counts 10 11 12 and then says its end token for ever."""
    loaded, example = planted_model(), planted_example()

    def scores(**switches):
        quirks = dataclasses.replace(OFF, decoded_answer=True, needle_length_denominator=True, **switches)
        found = detect(loaded.model, loaded.tokenizer, [example], mode="published_code", published=quirks)
        return found.score[0, 0, 0]

    assert scores() == pytest.approx(3 / 5)
    assert scores(published_stops=True, stop_ids=(11,)) == pytest.approx(2 / 5)
    assert scores(published_stops=True, stop_ids=()) == pytest.approx(3 / 5)


def test_all_on_the_planted_head_is_found_and_the_others_are_not() -> None:
    loaded, examples = planted_model(), [planted_example(index) for index in range(3)]
    quirks = PublishedQuirks(stop_ids=(2,))  # else it goes on after its end token and counts from 10 to 12 again
    scores = detect(loaded.model, loaded.tokenizer, examples, mode="published_code", published=quirks)
    assert not scores.unscored
    np.testing.assert_array_equal(scores.mean()[0], [1.0, 0.0, 0.0, 0.0])
