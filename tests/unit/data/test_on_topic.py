"""One passage again and again: the best real one on the question's topic that states no answer, of any hop."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_worlds import chain, musique_row, topic, write_passages, write_rows

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.contexts import OnTopicHaystack
from rhstudy.data.facts import Fact, Gold, Passage, UnbuildableRowError
from rhstudy.data.haystack import PassageHaystack, PassagePool
from rhstudy.data.knobs import Knobs
from rhstudy.data.layout import document_text
from rhstudy.seeding import generator
from rhstudy.types import Span

QUESTION = "Who founded the harbour town that the painter Alden was born in?"
TOWN = Passage("Velm", "Velm was founded by Ruth Roe.")
PERSON = Passage("Alden", "Alden was born in Velm.")
FIRST = Passage("Nothing", "Salt and wool.")
NAMES_A_HOP = Passage("Painters", "The painter who founded the harbour town of Velm was born in Velm.")
ON_TOPIC = Passage("Harbours", "A harbour town was founded where a painter was born.")
NEAR_TOPIC = Passage("Towns", "A town was founded.")
POOL = [Passage("Birds", "Birds sing."), Passage("Sea", "A harbour lies by the sea.")]
BETTER = Passage("Zan", "The harbour town Zan was founded where the painter Alden Birch was born; the painter left.")


def fact(*given: Passage, draw: int = 0) -> Fact:
    return Fact(
        fact_id="f", question=QUESTION, answers=("Ruth Roe",), passage=TOWN, answer_span=Span(20, 28), origin="real",
        further=(Gold(PERSON, Span(18, 22)),), given=given, draw=draw,
    )  # fmt: skip


def repeated(asked: Fact, pool: list[Passage], seed: int = 0) -> Passage:
    stream = OnTopicHaystack(PassageHaystack(PassagePool(pool))).distractors(asked, generator(seed))
    first, second = next(stream), next(stream)
    assert first == second
    return first


def test_the_rows_own_best_paragraph_without_a_hops_answer_is_repeated() -> None:
    assert repeated(fact(FIRST, NAMES_A_HOP, NEAR_TOPIC, ON_TOPIC), POOL) == ON_TOPIC
    assert repeated(fact(ON_TOPIC, FIRST, NAMES_A_HOP), POOL) == ON_TOPIC


def test_the_pools_best_is_taken_where_it_is_nearer_or_the_rows_own_all_leak() -> None:
    assert repeated(fact(FIRST, NEAR_TOPIC), [*POOL, BETTER]) == BETTER
    assert repeated(fact(NAMES_A_HOP), POOL) == POOL[1]
    assert repeated(fact(), POOL) == POOL[1]


def test_rows_used_again_repeat_other_passages_too() -> None:
    own = (FIRST, NEAR_TOPIC, ON_TOPIC)
    found = Counter(repeated(fact(*own, draw=draw), POOL, draw).title for draw in range(1, 40))
    assert found.most_common(1)[0][0] == ON_TOPIC.title
    assert len(found) > 1


def test_no_free_passage_makes_a_row_unbuildable() -> None:
    match = r"data\.passages_file must hold an answer-free passage, got <none> \(row f\)"
    with pytest.raises(UnbuildableRowError, match=match):
        repeated(fact(NAMES_A_HOP), [NAMES_A_HOP])


def test_the_choice_agrees_with_scores_written_out() -> None:
    """The slow version: of everything that may be shown, the passage of highest score in one index of it all."""
    rng = np.random.Generator(np.random.PCG64(0))
    words = [*QUESTION.rstrip("?").split(), "Velm", "salt", "wool", "bird", "song", "ship"]
    for _ in range(20):
        own = [Passage(f"T{n}", " ".join(rng.choice(words, size=9).tolist())) for n in range(8)]
        asked = dataclasses.replace(fact(*own))
        free = [item for item in own if not gives_away(document_text(item), leak_forms(["Velm", "Ruth Roe"]))]
        if not free:
            continue
        scores = PassagePool([*free, POOL[1]]).scores(QUESTION)
        assert repeated(asked, POOL) == [*free, POOL[1]][int(np.argmax(scores))]


def test_musique_prompts_repeat_a_passage_that_names_no_town(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [musique_row(number) for number in range(24)]
    for number, row in enumerate(rows):
        row["paragraphs"][0]["paragraph_text"] = f"Born in {chain(number)['town']}, painters founded it."
    config = DataConfig(
        task="musique", train_file=write_rows(tmp_path / "rows.jsonl", rows), num_tokens=1400, num_examples=6,
        passages_file=write_passages(tmp_path / "p.jsonl"),
        knobs=Knobs(name="x", context_diversity="repeated_on_topic"),
    )  # fmt: skip
    for example in build_dataset(config, chat_tokenizer).parts["train"]:
        known = next(known for known in map(chain, range(24)) if known["question"] == example.question)
        assert example.prompt.count(known["town"]) == 3  # in both needles' paragraphs, and its title
        assert "was a painter who was born in" in example.prompt


def test_summhay_repeats_the_nearest_document_that_lacks_the_insight(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = write_rows(tmp_path / "topics.jsonl", [topic(number) for number in range(4)])
    knobs = Knobs(name="x", context_diversity="repeated_on_topic")
    config = DataConfig(task="summhay", train_file=rows, num_tokens=3000, num_examples=4, knobs=knobs)
    for example in build_dataset(config, chat_tokenizer).parts["train"]:
        name = example.question.split("Insight: The ")[1].split(" bank ")[0]
        num_others = example.metadata["num_documents"] - len(example.needles)
        assert example.prompt.count(f"{name} bank lost") == len(example.needles) + 1
        assert example.prompt.count(" bank lost") >= num_others + len(example.needles)
