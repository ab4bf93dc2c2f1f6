from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rhstudy.data.assemble import TOLERANCE, Label, assemble
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.fill import CLOSE_ENOUGH, Distractors, fill
from rhstudy.data.layout import DOCUMENTS, LINES
from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.types import Example, Span

TEXT = "In 1300 Ann Lee built the harbour — 日本 😀 and left."
FACT = Fact(
    fact_id="f",
    question="who built it",
    answers=("Ann Lee",),
    passage=Passage("Old Harbour", TEXT),
    answer_span=Span(8, 15),
    origin="real",
)
WORDS = [
    "salt",
    "wool,",
    "timber",
    "日本語の文章です",
    "ёжик",
    "x",
    "harbour.",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 2,
]


def passages(seed: int, longest: int) -> Iterator[Passage]:
    rng = np.random.Generator(np.random.PCG64(seed))
    while True:
        count = int(rng.integers(1, longest + 1))
        title = " ".join(rng.choice(WORDS[:4], size=int(rng.integers(1, 6))).tolist())
        yield Passage(title, " ".join(rng.choice(WORDS, size=count).tolist()))


def build(
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[Passage],
    num_tokens: int,
    name: str = "x",
    layout: object = DOCUMENTS,
    fact: Fact = FACT,
) -> Example:
    label = Label(example_id="e", task="mdqa", recipe="real")
    return assemble(fact, stream, layout, Encoder(tokenizer), num_tokens, generator(0, name), label)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), longest=st.integers(1, 40), num_tokens=st.integers(260, 900), lines=st.booleans())
def test_every_length_is_met_and_every_span_is_exact(
    chat_tokenizer: PreTrainedTokenizerFast, seed: int, longest: int, num_tokens: int, lines: bool
) -> None:
    example = build(chat_tokenizer, passages(seed, longest), num_tokens, layout=LINES if lines else DOCUMENTS)
    assert num_tokens - TOLERANCE <= len(example.prompt_ids) <= num_tokens
    whole = chat_tokenizer(example.prompt + example.answer, add_special_tokens=False)["input_ids"]
    assert whole == [*example.prompt_ids, *example.answer_ids]
    needle = example.needles[0]
    shown = TEXT if lines else f"Old Harbour) {TEXT}"
    assert example.prompt[slice(*needle.char_span)] == shown
    assert chat_tokenizer.decode(example.prompt_ids[slice(*needle.token_span)]).strip() == shown
    assert example.prompt[slice(*needle.answer_char_span)] == "Ann Lee"
    assert chat_tokenizer.decode(example.prompt_ids[slice(*needle.answer_token_span)]) == example.answer == " Ann Lee"
    assert example.prompt.count(TEXT) == 1


def test_the_needle_position_is_uniform_over_the_slots(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    same = Passage("T", "salt wool timber " * 5)
    places = []
    for number in range(150):
        example = build(chat_tokenizer, iter([same] * 60), 700, name=str(number))
        places.append(example.metadata["gold_position"] / (example.metadata["num_documents"] - 1))
        marks = example.prompt[: example.needles[0].char_span.start].count("Document [")
        assert marks == example.metadata["gold_position"] + 1
    assert 0.42 < np.mean(places) < 0.58
    assert min(places) == 0
    assert max(places) == 1


def test_a_prompt_shorter_than_the_needle_raises(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        UnbuildableRowError,
        match=r"data\.num_tokens must be longer than the needle, got <90 tokens, \d+ needed.*\(row f\)",
    ):
        build(chat_tokenizer, passages(0, 9), 90)


def test_too_few_passages_raise(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    few = iter([Passage("T", "salt and wool")] * 3)
    with pytest.raises(
        UnbuildableRowError,
        match=r"data\.passages_file must hold enough answer-free passages, got <3 passages, \d+ tokens> \(row f\)",
    ):
        build(chat_tokenizer, few, 900)


def test_no_room_for_any_distractor_raises(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    bare = len(build(chat_tokenizer, passages(0, 9), 400).prompt_ids)
    long_titles = (Passage("timber " * 60, "salt") for _ in range(99))
    needed = next(n for n in range(60, bare) if _fits(chat_tokenizer, n))
    with pytest.raises(
        UnbuildableRowError, match=r"data\.num_tokens must be met within 16 tokens, got <\d+ tokens> \(row f\)"
    ):
        build(chat_tokenizer, long_titles, needed + 30)


def _fits(tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> bool:
    try:
        build(tokenizer, iter([]), num_tokens)
    except InputError as error:
        return "longer than the needle" not in str(error)
    return True


def test_an_answer_outside_the_text_cannot_be_placed(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    broken = dataclasses.replace(FACT, answer_span=Span(7, 15))
    with pytest.raises(InputError, match="answer must start with one space"):
        assemble(
            broken,
            passages(0, 9),
            DOCUMENTS,
            Encoder(chat_tokenizer),
            500,
            generator(0),
            Label(example_id="e", task="mdqa", recipe="real"),
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), longest=st.integers(1, 30), budget=st.integers(0, 400))
def test_fill_spends_what_it_says_in_the_stream_order(
    chat_tokenizer: PreTrainedTokenizerFast, seed: int, longest: int, budget: int
) -> None:
    encoder = Encoder(chat_tokenizer)
    distractors = Distractors(passages(seed, longest), encoder, DOCUMENTS)
    filling = fill(distractors, budget, at_words=True)
    pieces = [
        encoder.count(DOCUMENTS.lead(number)) + encoder.count(DOCUMENTS.body(passage) + "\n\n")
        for number, passage in enumerate(filling.passages, start=2)
    ]
    assert sum(pieces) == filling.num_tokens <= budget + 3  # a cut may split the tokens of its last character
    stream = [passage for passage, _ in (distractors.get(index) for index in range(300)) if passage]
    position = 0
    for chosen in filling.passages:
        while not (stream[position].title == chosen.title and stream[position].text.startswith(chosen.text)):
            position += 1
        position += 1
    assert filling.num_cut >= sum(item not in stream for item in filling.passages)
    assert not filling.exhausted


def test_fill_with_nothing_left_says_so(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    distractors = Distractors(iter([Passage("T", "salt")]), Encoder(chat_tokenizer), DOCUMENTS)
    assert fill(distractors, 500, at_words=True).exhausted
    assert not fill(distractors, CLOSE_ENOUGH, at_words=True).exhausted


def test_cut_passages_of_one_title_are_known_as_the_rows_own(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    """MuSiQue rows hold several paragraphs of one article: each is the row's own, also where it was cut."""
    own = tuple(Passage("Velm", f"Part {number}. {'Salt and  wool. ' * 12}") for number in range(5))
    row = dataclasses.replace(FACT, given=own)
    num_cut = 0
    for num_tokens in range(300, 460, 10):
        example = build(chat_tokenizer, iter(own), num_tokens, fact=row)
        assert len(example.metadata["own_documents"]) == example.metadata["num_documents"] - 1
        num_cut += example.metadata["num_cut"]
    assert num_cut > 5
