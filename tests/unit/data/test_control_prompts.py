"""Control prompts: the gold passages alone, with needles where they now stand, and running text without any."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from task_worlds import chain, musique_row, topic, write_passages, write_rows

from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.control_prompts import gold_alone, plain_text
from rhstudy.data.encode import Encoder
from rhstudy.errors import InputError
from rhstudy.types import Example


def only_needles(example: Example) -> list[str]:
    return [example.prompt[slice(*needle.char_span)] for needle in example.needles]


def spelled(tokenizer: Any, example: Example, span: tuple[int, int]) -> str:
    return str(tokenizer.decode(example.prompt_ids[slice(*span)]))


@pytest.mark.parametrize("name", ["chat_tokenizer", "plain_tokenizer", "unigram_tokenizer"])
def test_the_gold_passage_stands_alone_with_question_and_frame(
    name: str, config: Any, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    for example in build_dataset(config(recipe="real"), tokenizer).parts["train"]:
        short = gold_alone(example, Encoder(tokenizer))
        (needle,), (before,) = short.needles, example.needles
        assert only_needles(short) == only_needles(example)
        assert short.prompt[slice(*needle.answer_char_span)] == example.prompt[slice(*before.answer_char_span)]
        assert spelled(tokenizer, short, needle.answer_token_span) == spelled(
            tokenizer, example, before.answer_token_span
        )
        assert short.prompt.count("Document [") == 1
        number = example.metadata["gold_position"] + 1
        start, end = example.metadata["haystack_char_span"]
        frame = example.prompt[:start], example.prompt[end:]
        assert short.prompt == f"{frame[0]}Document [{number}](Title: {only_needles(example)[0]}{frame[1]}"
        assert short.prompt_ids == tuple(Encoder(tokenizer).prompt(short.prompt)[0])
        assert (short.answer_ids, short.answers, short.example_id) == (
            example.answer_ids, example.answers, example.example_id,
        )  # fmt: skip
        assert len(short.prompt_ids) < len(example.prompt_ids) / 2


def test_every_hop_is_kept_and_nothing_else(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = DataConfig(
        task="musique",
        train_file=write_rows(tmp_path / "rows.jsonl", [musique_row(number) for number in range(24)]),
        passages_file=write_passages(tmp_path / "passages.jsonl"),
        parts=("eval",),
        num_tokens=1400,
        num_eval=4,
    )
    for example in build_dataset(config, chat_tokenizer).parts["eval"]:
        known = next(known for known in map(chain, range(24)) if known["question"] == example.question)
        short = gold_alone(example, Encoder(chat_tokenizer))
        assert only_needles(short) == only_needles(example)
        assert short.prompt.count("Document [") == 2
        answers = [short.prompt[slice(*needle.answer_char_span)] for needle in short.needles]
        assert answers == [known["town"], known["founder"]]


def test_cited_documents_keep_their_numbers(tmp_path: Path, chat_tokenizer: Any) -> None:
    for number in range(4):
        (tmp_path / f"news{number}.json").write_text(json.dumps(topic(number)), encoding="utf-8")
    config = DataConfig(
        task="summhay", train_file=str(tmp_path), parts=("eval",), num_tokens=3000, num_examples=6, num_eval=3
    )
    for example in build_dataset(config, chat_tokenizer).parts["eval"]:
        short = gold_alone(example, Encoder(chat_tokenizer))
        for needle, before in zip(short.needles, example.needles, strict=True):
            assert short.prompt[slice(*needle.answer_char_span)] == example.prompt[slice(*before.answer_char_span)]
            assert needle.body_token_span is not None
            assert before.body_token_span is not None
            bodies = [
                spelled(chat_tokenizer, short, needle.body_token_span).strip(),
                spelled(chat_tokenizer, example, before.body_token_span).strip(),
            ]
            assert bodies[0] == bodies[1]
        assert short.answer == example.answer


def test_plain_text_is_the_passages_without_gold_numbers_and_titles(config: Any, chat_tokenizer: Any) -> None:
    for example in build_dataset(config(recipe="real"), chat_tokenizer).parts["train"]:
        text = chat_tokenizer.decode(plain_text(example, chat_tokenizer, 10_000))
        (gold,) = only_needles(example)
        assert gold not in text
        assert "Document [" not in text
        assert "Title:" not in text
        assert "The harbour of" in text
        few = plain_text(example, chat_tokenizer, 40)
        assert len(few) == 40
        assert few == plain_text(example, chat_tokenizer, 10_000)[:40]


def test_without_other_passages_there_is_no_text(config: Any, chat_tokenizer: Any) -> None:
    example = build_dataset(config(recipe="real"), chat_tokenizer).parts["train"][0]
    assert plain_text(gold_alone(example, Encoder(chat_tokenizer)), chat_tokenizer, 10) == ()


def test_a_prompt_that_does_not_say_where_its_passages_stand_is_refused(config: Any, chat_tokenizer: Any) -> None:
    example = build_dataset(config(recipe="real"), chat_tokenizer).parts["train"][0]
    own = dataclasses.replace(example, metadata={})
    wanted = r"example must say where its passages stand, got \[\] \(.*\). Use data that make-data built, or switch"
    with pytest.raises(InputError, match=wanted):
        gold_alone(own, Encoder(chat_tokenizer))
    with pytest.raises(InputError, match=wanted):
        plain_text(own, chat_tokenizer, 10)
