"""Literal cues: which word may be asked for, by which words, and whole data sets of the task in every corner."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rhstudy.data.answers import gives_away, leak_forms, leak_text
from rhstudy.data.assemble import TOLERANCE
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.examples_file import write_examples
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.knobs import Knobs
from rhstudy.data.leaks import leaking_passages
from rhstudy.data.needles import symbolic_fact, templated_facts
from rhstudy.data.rows import Source
from rhstudy.data.tasks.cue_retrieval import CUE_WORDS, MAX_ROW_SHARE, as_cue, cue_facts, cue_question, read_facts
from rhstudy.errors import InputError, StudyError
from rhstudy.seeding import generator
from rhstudy.types import Span

QUESTION = re.compile(r'Which word follows "([^"]+)"\?')
TEXT = "one two three four five six Seven, and so on to the end"


def source(*rows: dict[str, Any]) -> Source:
    return Source("f", "0" * 64, [(f"f, line {number}", row) for number, row in enumerate(rows, start=1)])


def row(text: str, number: int = 0) -> dict[str, str]:
    return {"id": f"row-{number}", "title": f"T{number}", "text": text}


def read(*texts: str) -> list[Fact]:
    return read_facts(source(*map(row, texts, range(len(texts)))), "data.f", "skip").facts


def cue_of(question: str) -> str:
    match = QUESTION.fullmatch(question)
    assert match, question
    return match.group(1)


def times_shown(cue: str, texts: Sequence[str]) -> int:
    """How often the words of `cue` stand in `texts`, case ignored: the slow definition."""
    wanted, count = cue.casefold().split(), 0
    for text in texts:
        words = text.casefold().split()
        count += sum(words[start : start + len(wanted)] == wanted for start in range(len(words)))
    return count


def test_a_cue_is_the_words_before_the_answer() -> None:
    assert cue_question(TEXT, TEXT.index("Seven")) == 'Which word follows "one two three four five six"?'
    assert cue_question(TEXT, TEXT.index("three")) == 'Which word follows "one two"?'
    with pytest.raises(UnbuildableRowError, match=r"answer must have words before it, got 'one two.*on_bad_row = skip"):
        cue_question(TEXT, 0)


def test_the_fact_of_a_passage() -> None:
    (fact,) = read(TEXT)
    assert fact.question == 'Which word follows "one two three four five six"?'
    assert (fact.answer, fact.answers, fact.fact_id, fact.origin) == ("Seven", ("Seven",), "row-0", "real")
    assert fact.passage == Passage("T0", TEXT)


WORDS = st.sampled_from(["of", "the", "Salt", "salt", "tin,", "1000", "1,000", "sal-t", '"wool"', "Éton", "north."])
RARE = st.integers(0, 12).map(lambda number: f"{'name' * (number % 2)}{'abcdefghijklm'[number] * 4}")
TEXTS = st.lists(st.one_of(WORDS, RARE), min_size=5, max_size=14).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), shared=st.lists(WORDS, min_size=6, max_size=6).map(" ".join))
def test_one_place_among_the_rows_answers(texts: list[str], shared: str) -> None:
    texts = [*texts, f"{shared} of", f"{shared} Founders built it"]
    try:
        facts = read(*texts)
    except InputError as error:
        assert "have at least one usable row" in str(error)  # noqa: PT017
        return
    for fact in facts:
        cue, word = cue_of(fact.question), leak_text(fact.answer).strip()
        readings = leak_text(f"{fact.passage.title} {fact.passage.text}").split("\n")
        assert max(reading.split().count(word) for reading in readings) == 1
        assert times_shown(cue, texts) == 1
        assert len(cue.split()) == CUE_WORDS
        assert f"{cue} {fact.answer}" in fact.passage.text
        assert sum(gives_away(text, leak_forms(fact.answers)) for text in texts) <= 1


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6, unique=True), order=st.randoms(use_true_random=False))
def test_what_is_asked_does_not_depend_on_the_order_of_rows(texts: list[str], order: Any) -> None:
    rows = [{"title": "T", "text": text} for text in [TEXT, *texts]]
    shuffled = order.sample(rows, len(rows))
    first, second = (read_facts(source(*some), "data.f", "skip") for some in (rows, shuffled))
    assert {fact.fact_id: fact for fact in first.facts} == {fact.fact_id: fact for fact in second.facts}
    assert first.rejected.keys() == second.rejected.keys()


def test_a_cue_shown_before_a_word_that_nobody_asks_for_is_not_unique() -> None:
    assert [fact.fact_id for fact in read("a b c d e f Harbour", "g h i j k l Market", "x a b c d e f of it")] == [
        "row-1"
    ]
    assert [fact.fact_id for fact in read("a b c d e f Harbour", "g h i j k l Market", "it is a b c d e f")] == [
        "row-1"
    ]


def test_frequent_words_are_not_asked_for() -> None:
    some = [f"{number}a {number}b {number}c {number}d {number}e {number}f Harbour" for number in range(100)]
    limit = int(MAX_ROW_SHARE * len(some))
    rare = [text.replace("Harbour", "Tower") if number < limit else text for number, text in enumerate(some)]
    assert [fact.answer for fact in read(*rare)] == ["Tower"] * limit


@pytest.mark.parametrize(
    "text",
    [
        "too short a text",
        'a b "c" d e f Harbour',
        "a b c d e f Harbour and Harbour",
        "a b c d e f Harbour-side",
        "a b c d e f  Harbour",
        "a b c d e f 1000 or 1,000",
    ],
)
def test_passages_without_a_word_to_ask_for_are_an_error_or_counted(text: str) -> None:
    rows = source(row(TEXT), row(text, 1))
    match = r"passage must hold a rare word behind a unique cue, got <'.*\(f, line 2\)\. .*data\.on_bad_row = skip"
    with pytest.raises(UnbuildableRowError, match=match):
        read_facts(rows, "data.f", "error")
    found = read_facts(rows, "data.f", "skip")
    assert [fact.fact_id for fact in found.facts] == ["row-0"]
    assert "rare word" in found.rejected["row-1"]


def test_rows_need_title_and_text() -> None:
    for key in ("title", "text"):
        bad = {name: value for name, value in row(TEXT).items() if name != key}
        with pytest.raises(InputError, match=rf"data\.f\.{key} must be given, got <nothing> \(f, line 1\)"):
            read_facts(source(bad), "data.f", "skip")
    with pytest.raises(InputError, match=r"data\.f\.text must be text that is not blank, got ' ' \(f, line 1\)"):
        read_facts(source(row(" ")), "data.f", "skip")


def test_ids_must_be_unique_and_are_made_up_where_missing() -> None:
    other = row("a b c d e f Harbour")
    with pytest.raises(InputError, match=r"data\.f\.id must be unique, got 'row-0' \(f, line 2\)"):
        read_facts(source(row(TEXT), other), "data.f", "skip")
    fact = read_facts(source({"title": "T", "text": TEXT}), "data.f", "error").facts[0]
    assert re.fullmatch(r"cue_retrieval-[0-9a-f]{12}", fact.fact_id)


def test_an_id_of_zero_is_an_id() -> None:
    assert read_facts(source({**row(TEXT), "id": 0}), "data.f", "error").facts[0].fact_id == "0"


def test_invented_facts_are_asked_for_by_their_first_word() -> None:
    fact = Fact(
        fact_id="x",
        question="Where was Ann Lee born?",
        answers=("Port Vila.",),
        passage=Passage("Ann Lee", "Ann Lee was born in Port Vila."),
        answer_span=Span(20, 30),
        origin="templated",
    )
    asked = as_cue(fact)
    assert asked.question == 'Which word follows "Ann Lee was born in"?'
    assert (asked.answer, asked.answers, asked.passage) == ("Port", ("Port",), fact.passage)


@pytest.mark.parametrize("kind", ["templated", "symbolic"])
def test_an_invented_fact_does_not_name_its_answer_in_the_question(kind: str) -> None:
    make = cue_facts(symbolic_fact if kind == "symbolic" else templated_facts())
    for number in range(600):
        fact = make(generator(5, number), "x")
        assert not gives_away(f"{fact.passage.title} {fact.question}", leak_forms(fact.answers)), fact
        assert f"{cue_of(fact.question)} {fact.answer}" in fact.passage.text


def test_a_maker_that_always_names_its_answer_ends() -> None:
    def make(_rng: np.random.Generator, fact_id: str) -> Fact:
        text = "Smith works for Smith"
        return Fact(fact_id=fact_id, question="?", answers=("Smith",), passage=Passage("Smith", text),
                    answer_span=Span(16, 21), origin="templated")  # fmt: skip

    with pytest.raises(StudyError, match=r"invented cue must differ from its answer within 100 draws, got 'Which"):
        cue_facts(make)(generator(0), "x")


@pytest.fixture(scope="module")
def cue_config(world: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a config of the task over the small world's towns; keywords override."""
    import json

    target = tmp_path_factory.mktemp("cues") / "rows.jsonl"
    towns = [json.loads(line) for line in Path(world["train_file"]).read_text().splitlines()]
    lines = [json.dumps({"id": town["id"], "title": town["title"], "text": town["gold_text"]}) for town in towns]
    target.write_text("\n".join(lines))

    def make(**changes: Any) -> DataConfig:
        files = {"train_file": str(target), "passages_file": world["passages_file"]}
        return DataConfig(**{**files, "task": "cue_retrieval", "num_tokens": 640, "num_examples": 4, **changes})

    return make


@pytest.mark.parametrize("context", ["real", "repeated_filler", "templated"])
@pytest.mark.parametrize("concept", ["real", "templated", "symbolic"])
def test_every_corner_asks_for_the_word_behind_a_cue(
    cue_config: Any, chat_tokenizer: PreTrainedTokenizerFast, concept: str, context: str, tmp_path: Path
) -> None:
    knobs = Knobs(name="corner", concept_expression=concept, context_diversity=context)
    first, again = (build_dataset(cue_config(knobs=knobs), chat_tokenizer) for _ in range(2))
    examples = first.parts["train"]
    for example in examples:
        needle, cue = example.needles[0], cue_of(example.question)
        before = example.prompt[needle.char_span.start : needle.answer_char_span.start]
        assert before.endswith(f"{cue} ")
        assert example.prompt[slice(*needle.answer_char_span)] == example.answers[0] == example.answer.strip()
        assert example.prompt.count(f"{cue} {example.answers[0]}") == 1
        assert example.prompt.count(cue) == 2
        assert leaking_passages(example) == []
        assert 640 - TOLERANCE <= len(example.prompt_ids) <= 640
        assert example.prompt.removeprefix("<|im_start|>user\n").startswith("Copy the word that follows")
        assert example.prompt.endswith("<|im_start|>assistant\nAnswer:")
        assert example.task == "cue_retrieval"
    for name, dataset in (("first", first), ("again", again)):
        write_examples(tmp_path / name, dataset.parts["train"])
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert first.card["task"] == "cue_retrieval"
    assert "this is not question answering" in first.card["notes"][0]


def test_held_out_parts_share_no_passage_with_train(cue_config: Any, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    config = cue_config(parts=("train", "score", "dev", "eval"), num_examples=12)
    parts = build_dataset(config, chat_tokenizer).parts
    seen = {name: {example.metadata["fact_id"] for example in examples} for name, examples in parts.items()}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
