"""SQuAD marks against an independent character-level implementation and their algebra."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhstudy.errors import InputError
from rhstudy.evaluation.metrics import exact_match, normalize_answer, token_f1

PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
words = st.lists(st.sampled_from(["the", "a", "An", "Paris", "paris,", "New", "York.", "1,000", "--", "é"]), max_size=6)
texts = st.one_of(st.text(max_size=20), words.map(" ".join))


def naive_tokens(text):
    kept = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def naive_f1(prediction, gold):
    left, right = naive_tokens(prediction), naive_tokens(gold)
    if not left or not right:
        return 1.0 if left == right else 0.0
    rest, shared = list(right), 0
    for token in left:
        if token in rest:
            rest.remove(token)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


@given(words.map(" ".join), st.lists(words.map(" ".join), min_size=1, max_size=3))
def test_f1_and_exact_match_equal_the_naive_twin(prediction, answers):
    assert token_f1(prediction, answers) == pytest.approx(
        max(naive_f1(prediction, gold) for gold in answers), abs=1e-12
    )
    naive_exact = any(naive_tokens(prediction) == naive_tokens(gold) for gold in answers)
    assert exact_match(prediction, answers) == float(naive_exact)


@given(texts, texts)
def test_f1_is_symmetric_bounded_and_one_on_exact_match(first, second):
    value = token_f1(first, [second])
    assert 0 <= value <= 1
    assert value == token_f1(second, [first])
    if exact_match(first, [second]):
        assert value == 1


@given(texts, st.lists(texts, min_size=1, max_size=3), texts)
def test_another_gold_answer_never_lowers_a_mark(prediction, answers, extra):
    assert token_f1(prediction, [*answers, extra]) >= token_f1(prediction, answers)
    assert exact_match(prediction, [*answers, extra]) >= exact_match(prediction, answers)


@given(texts)
def test_normalisation_is_idempotent_on_its_words(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1.0, 1.0),
        ("in Paris, France", ["Paris"], 0.5, 0.0),
        ("Rome", ["Paris", "rome"], 1.0, 1.0),
        ("paris paris", ["Paris"], 2 / 3, 0.0),
        ("", ["Paris"], 0.0, 0.0),
        ("the", ["The"], 1.0, 1.0),
        ("theatre", ["atre"], 0.0, 0.0),
    ],
)
def test_by_hand(prediction, answers, f1, exact):
    assert token_f1(prediction, answers) == pytest.approx(f1)
    assert exact_match(prediction, answers) == exact


@pytest.mark.parametrize("mark", [token_f1, exact_match])
def test_no_gold_answer_is_refused(mark):
    with pytest.raises(InputError, match=r"answers must hold at least one gold answer, got \[\]"):
        mark("Paris", [])
