from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest

from rhstudy.data import prompts
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.facts import Fact, Passage
from rhstudy.data.haystack import Haystack
from rhstudy.data.knobs import ContextDiversity, Knobs
from rhstudy.data.leaks import answer_in_question, check_leaks, leaking_passages
from rhstudy.data.recipes import Recipe, open_recipe
from rhstudy.errors import StudyError
from rhstudy.types import Example

CONTEXTS = get_args(ContextDiversity)


@pytest.fixture(scope="module")
def example(config: Callable[..., DataConfig], chat_tokenizer: object) -> Example:
    return build_dataset(config(num_examples=1), chat_tokenizer).parts["train"][0]


def plant(example: Example, text: str) -> Example:
    """The same prompt with `text` at the end of the haystack (after the needle)."""
    start, end = example.metadata["haystack_char_span"]
    prompt = example.prompt[:end] + text + example.prompt[end:]
    return dataclasses.replace(
        example, prompt=prompt, metadata={**example.metadata, "haystack_char_span": [start, end + len(text)]}
    )


def test_a_clean_prompt_passes(example: Example) -> None:
    assert leaking_passages(example) == []
    check_leaks([example])


@pytest.mark.parametrize("shape", [" by {}.", "\n\nDocument [99](Title: {}) x", " ({}-built)", " {},"])
def test_planted_leaks_are_found(example: Example, shape: str) -> None:
    planted = plant(example, shape.format(example.answers[-1].upper()))
    assert len(leaking_passages(planted)) == 1
    with pytest.raises(
        StudyError, match=rf"haystack must hold no gold answer, got .*\(example {example.example_id}, answers"
    ):
        check_leaks([example, planted])


def test_any_gold_answer_counts_and_the_start_of_the_haystack_too(example: Example) -> None:
    start, end = example.metadata["haystack_char_span"]
    head = example.prompt[start : example.needles[0].char_span.start]
    outside = head if "harbour" in head else example.prompt[example.needles[0].char_span.end : end]
    word = next(item for item in outside.split() if item.isalpha() and item not in ("Document", "The"))
    assert leaking_passages(dataclasses.replace(example, answers=(*example.answers, word)))


def test_document_numbers_and_words_across_documents_are_no_leak(example: Example) -> None:
    assert (
        leaking_passages(dataclasses.replace(plant(example, "\n\nDocument [77](Title: x) y"), answers=("77", "Title")))
        == []
    )
    split = plant(example, " New\n\nDocument [9](Title: York) x")
    assert leaking_passages(dataclasses.replace(split, answers=("New York",))) == []


def test_question_is_looked_at_apart(example: Example) -> None:
    assert not answer_in_question(example)
    assert answer_in_question(dataclasses.replace(example, question=f"was it {example.answers[-1]}?"))


def test_planted_leaks_are_found_among_lines(config: Callable[..., DataConfig], chat_tokenizer: object) -> None:
    lines = build_dataset(config(num_examples=1, recipe="symbolic"), chat_tokenizer).parts["train"][0]
    assert leaking_passages(lines) == []
    assert leaking_passages(plant(lines, f"\nkavot38 = {lines.answers[0]}")) == [f"kavot38 = {lines.answers[0]}"]
    two = dataclasses.replace(plant(lines, "\nkavot38 = New\nYork = mudab17"), answers=("New York",))
    assert leaking_passages(two) == []


def test_planted_leaks_are_found_among_thousands_of_documents(example: Example) -> None:
    many = "".join(f"\n\nDocument [{number}](Title: n{number}) mudab {number}." for number in range(99, 1100))
    assert leaking_passages(plant(example, many)) == []
    leak, title = example.answers[-1].upper(), example.metadata["gold_titles"][0]
    for text in (f"(Title: x) by {leak}.", f"(Title: {title}) x"):
        planted = plant(example, f"{many}\n\nDocument [2000]{text}")
        assert leaking_passages(planted) == [text.removeprefix("(Title: ")]


class Leaking:
    """A haystack whose first distractor states the answer."""

    def __init__(self, whole: Haystack) -> None:
        self._whole = whole

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        yield Passage("Aside", f"aside = {fact.answers[0]}")
        yield from self._whole.distractors(fact, rng)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("needle", ["real", "rewritten", "templated", "symbolic"])
def test_every_build_is_checked_whatever_the_needle_and_what_surrounds_it(
    needle: str,
    context: str,
    config: Callable[..., DataConfig],
    chat_tokenizer: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knobs = Knobs(name="drawn", concept_expression=needle, context_diversity=context)  # type: ignore[arg-type]
    asked = config(num_examples=2, knobs=knobs)
    assert len(build_dataset(asked, chat_tokenizer).parts["train"]) == 2

    def leaking(*arguments: Any) -> Recipe:
        recipe = open_recipe(*arguments)
        return dataclasses.replace(recipe, open_haystack=lambda: Leaking(recipe.haystack))

    monkeypatch.setattr(prompts, "open_recipe", leaking)
    with pytest.raises(StudyError, match=r"haystack must hold no gold answer, got .*aside = .*\(example train-00000-"):
        build_dataset(asked, chat_tokenizer)
