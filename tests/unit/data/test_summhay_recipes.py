"""Recipes of SummHay: a limited real one in any split, insights worded by a model and shown nowhere else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from task_worlds import topic, write_rows

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.build import Dataset, build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import load_corpus
from rhstudy.data.insights import RewrittenInsights
from rhstudy.data.knobs import Knobs, preset
from rhstudy.data.leaks import check_leaks, leaking_passages
from rhstudy.data.recipes import open_recipe
from rhstudy.data.recorded_needles import RECORDED, read_rewritten
from rhstudy.data.rewriting import Plan, rewrite
from rhstudy.errors import InputError, StudyError
from rhstudy.seeding import generator
from rhstudy.types import Example

RECORDING = RECORDED / "summhay.jsonl"
WORDINGS = {rows[0]["statement"]: [row["text"] for row in rows] for rows in read_rewritten(RECORDING).groups.values()}


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [topic(number, num_documents=80, sentences=8) for number in range(4)]
    return write_rows(tmp_path_factory.mktemp("topics") / "topics.jsonl", rows)


def build(topics: str, tokenizer: Any, knobs: Knobs, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"num_tokens": 2500, "num_examples": 12, "min_answer_in_needle_share": 0.5, **changes}
    return build_dataset(DataConfig(task="summhay", train_file=topics, knobs=knobs, **given), tokenizer)


@pytest.mark.parametrize("split_seed", [0, 1, 2, 3])
def test_the_limited_recipe_finds_rows_whichever_topic_is_the_training_one(
    split_seed: int, topics: str, chat_tokenizer: Any
) -> None:
    rows = [json.loads(line) for line in Path(topics).read_text(encoding="utf-8").splitlines()]
    for row in rows:  # more subtopics than the recipe keeps, one insight in each
        given = [item for subtopic in row["subtopics"] for item in subtopic["insights"]]
        row["subtopics"] = [{"query": f"What of {place}?", "insights": [item]} for place, item in enumerate(given)]
    path = write_rows(Path(topics).with_name(f"many-{split_seed}.jsonl"), rows)
    built = {
        name: build(path, chat_tokenizer, preset(name, "summhay"), split_seed=split_seed).card["parts"]["train"]
        for name in ("real", "real_limited")
    }
    assert built["real"]["num_distinct_rows"] == 5
    assert built["real_limited"]["num_distinct_rows"] == 4
    assert built["real_limited"]["num_examples"] == built["real"]["num_examples"] == 12
    size, reference = (built[name]["num_prompt_tokens"]["mean"] for name in ("real_limited", "real"))
    assert size == pytest.approx(reference, rel=0.01)


def test_labels_that_no_row_has_are_named(topics: str, chat_tokenizer: Any) -> None:
    knobs = Knobs(name="x", row_labels=("subtopic 77",))
    match = r"knobs\.row_labels must leave at least one row, got \('subtopic 77',\)\. Labels found: .*subtopic 1"
    with pytest.raises(InputError, match=match):
        build(topics, chat_tokenizer, knobs)


@pytest.mark.parametrize("name", ["high_high", "high_low", "high_on_topic"])
def test_corners_of_rewritten_insights_are_built_from_the_recording(
    name: str, topics: str, chat_tokenizer: Any
) -> None:
    data = build(topics, chat_tokenizer, preset(name, "summhay"))
    assert len(data.parts["train"]) == 12
    assert {example.metadata["origin"] for example in data.parts["train"]} == {"rewritten"}
    for example in data.parts["train"]:
        wordings = WORDINGS[example.question.split("Insight: ")[1]]
        documents = [example.prompt[slice(*needle.char_span)] for needle in example.needles]
        assert len(documents) == max(2, len(wordings))
        assert {text for text in wordings if any(text in document for document in documents)} == set(wordings)


def test_recorded_insights_come_to_an_end_before_one_is_used_again(topics: str) -> None:
    config = DataConfig(task="summhay", train_file=topics, recipe="high_low")
    recipe = open_recipe(config.resolved_knobs, load_corpus(config), "train")
    facts = list(itertools.islice(recipe.facts(0, ()), len(WORDINGS) + 5))
    assert len({fact.fact_id for fact in facts[: len(WORDINGS)]}) == len(WORDINGS)
    again = {fact.fact_id: fact for fact in facts[: len(WORDINGS)]}
    for fact in facts[len(WORDINGS) :]:
        assert (again[fact.fact_id].draw, fact.draw) == (0, 1)
        assert again[fact.fact_id].question == fact.question
        assert again[fact.fact_id].passage != fact.passage


def test_no_other_document_shows_a_wording_of_the_insight_asked_for(topics: str, chat_tokenizer: Any) -> None:
    knobs = Knobs(name="x", concept_expression="rewritten", context_diversity="templated")
    data = build(topics, chat_tokenizer, knobs, num_examples=30)
    for example in data.parts["train"]:
        start, end = example.metadata["haystack_char_span"]
        text = example.prompt[start:end]
        for needle in example.needles:
            text = text.replace(example.prompt[slice(*needle.char_span)], "")
        for wording in WORDINGS[example.question.split("Insight: ")[1]]:
            assert not gives_away(text, leak_forms([wording]))


def planted(example: Example, text: str) -> Example:
    start, end = example.metadata["haystack_char_span"]
    text = f"\n\nDocument [99]: {text}"
    metadata = {**example.metadata, "haystack_char_span": [start, end + len(text)]}
    return dataclasses.replace(example, prompt=example.prompt[:end] + text + example.prompt[end:], metadata=metadata)


def test_a_planted_wording_is_a_leak_whichever_it_is(topics: str, chat_tokenizer: Any) -> None:
    knobs = Knobs(name="x", concept_expression="rewritten", context_diversity="templated")
    for example in build(topics, chat_tokenizer, knobs, num_examples=4).parts["train"]:
        assert leaking_passages(example) == []
        statement = example.question.split("Insight: ")[1]
        for wording in (statement, *WORDINGS[statement]):
            leaking = planted(example, f"It is cold. {wording.upper()} So be it.")
            assert len(leaking_passages(leaking)) == 1
            with pytest.raises(StudyError, match="haystack must hold no gold answer"):
                check_leaks([leaking])


class Echo:
    """Words every insight in one way."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "echo", "digest": "0"}

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        return [f"As is told {'again and ' * (seed % 7)}again, {chat[-1]['content']}"
                for chat, seed in zip(chats, seeds, strict=True)]  # fmt: skip


def test_a_recording_of_too_few_insights_says_how_many_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    rewrite(Plan(task="summhay", num_needles=3), Echo(), path)
    with pytest.raises(InputError, match=r"rewritten needles must hold \d+ insights of other kinds .*, got <3"):
        RewrittenInsights(path)(generator(0), "x")
