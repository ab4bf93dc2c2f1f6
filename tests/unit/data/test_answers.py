from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhstudy.data.answers import any_gives_away, find_answer, gives_away, leak_forms, leak_text, may_give_away


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("born in Paris, France", ["paris"], "Paris"),
        ("Parisian, then Paris", ["Paris"], "Paris"),
        ("the second then the first", ["first", "second"], "first"),
        ("a  New\u00a0York day", ["New York"], "New\u00a0York"),
        ("cost $5.00 each", ["$5.00"], "$5.00"),
        ("(x), starting on Monday", ["), starting on"], "), starting on"),
        ("in 1066 and 1066", ["1066"], "1066"),
        ("Ünal çay", ["ÜNAL"], "Ünal"),
    ],
)
def test_finds_the_first_answer_at_word_boundaries(text: str, answers: list[str], found: str) -> None:
    span = find_answer(text, answers)
    assert span is not None
    assert text[slice(*span)] == found


def test_first_occurrence_counts() -> None:
    assert find_answer("Parisian, then Paris and Paris", ["Paris"]) == (15, 20)


@pytest.mark.parametrize(
    ("text", "answers"), [("Parisian", ["Paris"]), ("a b", ["", "  "]), ("20661", ["2066"]), ("x", [])]
)
def test_absent_answers(text: str, answers: list[str]) -> None:
    assert find_answer(text, answers) is None


@pytest.mark.parametrize(
    ("text", "answer", "leaks"),
    [
        ("It cost 1,000 marks", "1000", True),
        ("by Smith-Jones himself", "Jones", True),
        ("BEYONCÉ sang", "Beyonce", True),
        ("that court sat", "the court", True),
        ("king of hearts", "the King of Hearts", True),
        ("U.S. troops", "US", True),
        ("Parisian cafés", "Paris", False),
        ("New\n\nYork", "New York", True),
        ("nothing", "thing", False),
        ("grade a work", "A", True),
        ("no word", "!!!", False),
        ("smith", "jones\nsmith", False),
    ],
)
def test_leaks_ignore_case_accents_and_punctuation(text: str, answer: str, leaks: bool) -> None:
    assert gives_away(text, leak_forms([answer])) is leaks


def test_any_answer_is_enough_and_readings_do_not_join() -> None:
    assert gives_away("in spring", leak_forms(["autumn", "spring"]))
    assert not gives_away("a-b c", leak_forms(["c a"]))
    assert leak_forms(["!!!", ""]) == ()


@given(texts=st.lists(st.text(max_size=12), max_size=4), answers=st.lists(st.text(max_size=4), max_size=3))
def test_texts_together_miss_nothing_that_one_gives_away(texts: list[str], answers: list[str]) -> None:
    forms = leak_forms([*answers, *(text[2:5] for text in texts)])
    assert any_gives_away(texts, forms) >= any(gives_away(text, forms) for text in texts)
    assert not any_gives_away(["alpha beta", "gamma"], leak_forms(["bet", "delta"]))


@given(
    text=st.text(st.sampled_from("aB1 ,-'._é\n"), max_size=12),
    answer=st.lists(st.sampled_from([*"aB1 ,-'._é", "the ", "a "]), min_size=1, max_size=5).map("".join),
)
def test_an_answer_that_may_not_be_given_away_is_not(text: str, answer: str) -> None:
    if gives_away(text, leak_forms([answer])):
        assert may_give_away(text, answer)


def test_answers_that_are_not_there_are_told_fast() -> None:
    assert not may_give_away("Where was Ann Hill born?", "Port Hillview")
    assert may_give_away("Where was Ann Hill born?", "Was-Ann")
    assert may_give_away("Where was Ann Hill born?", "Hill")


@given(text=st.text(max_size=40) | st.text(st.characters(max_codepoint=127), max_size=40))
def test_both_readings_of_a_text_are_those_of_its_definition(text: str) -> None:
    folded = "".join(char for char in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(char))
    removed, gaps = (" ".join(re.sub(r"[^\w\s]|_", sign, folded).split()) for sign in ("", " "))
    assert leak_text(text) == (f" {removed} " if removed == gaps else f" {removed} \n {gaps} ")
