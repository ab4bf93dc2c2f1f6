from __future__ import annotations

import pytest

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.needles import RELATIONS, symbolic_fact, symbols, templated_facts
from rhstudy.seeding import generator


def test_templated_facts_state_their_answer_once_and_only_in_the_needle() -> None:
    make = templated_facts()
    facts = [make(generator(0, "t", number), str(number)) for number in range(400)]
    for fact in facts:
        forms = leak_forms(fact.answers)
        assert fact.answers == (fact.answer,)
        assert fact.passage.text.count(fact.answer) == 1
        assert fact.passage.text[fact.answer_span.start - 1] == " "
        assert not gives_away(fact.question, forms)
        assert not gives_away(fact.passage.title, forms)
        assert fact.passage.title in fact.question
        assert len(fact.answer) < 60
    wordings = {relation.name: relation for relation in RELATIONS}
    used = {
        name
        for name, relation in wordings.items()
        for fact in facts
        if fact.question == relation.question.format(subject=fact.passage.title)
    }
    assert used == set(wordings)
    assert len(used) >= 8
    assert len({fact.passage.text for fact in facts}) == len(facts)


def test_each_fact_depends_on_its_own_stream_alone() -> None:
    first, second = templated_facts(), templated_facts()
    for number in range(20):
        second(generator(9, number), "other")
    assert first(generator(1, "a"), "x") == second(generator(1, "a"), "x")
    assert first(generator(1, "a"), "x") != first(generator(1, "b"), "x")


def test_symbolic_fact_is_a_line() -> None:
    fact = symbolic_fact(generator(0, "s"), "s-0")
    assert fact.passage.text == f"{fact.passage.title} = {fact.answer}"
    assert fact.question == f"What is the value of {fact.passage.title}?"
    assert fact.answer != fact.passage.title


def test_symbols_have_one_shape() -> None:
    drawn = symbols(generator(0, "w"), 500)
    assert len(drawn) == 500
    assert len(set(drawn)) > 495
    assert all(len(item) == 7 and item[:5].isalpha() and item[5:].isdigit() and item[1] in "aeiou" for item in drawn)


def test_symbol_tokens_are_the_same_in_line_and_answer(chat_tokenizer: object) -> None:
    for number in range(50):
        fact = symbolic_fact(generator(number), "s")
        line = chat_tokenizer(f"x = y\n{fact.passage.text}\nz = w", add_special_tokens=False)["input_ids"]
        answer = chat_tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"]
        assert any(line[start : start + len(answer)] == answer for start in range(len(line)))


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_wordings_put_a_space_before_the_value(relation: object) -> None:
    assert " {value}" in relation.statement
    assert "{value}" not in relation.question
    assert "{subject}" in relation.statement
    assert "{subject}" in relation.question
