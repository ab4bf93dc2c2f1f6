"""Every row of the local copies of the public data sets is read or rejected with a reason, and the sums are right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import rhstudy
from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.named import NAMED_DATA, local_copies, with_named_sources
from rhstudy.data.rows import read_source
from rhstudy.data.splits import split_facts
from rhstudy.data.tasks.registry import TaskName, task_named

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from shared_rows import FILES, kind_of

READ = {
    "mdqa/train.jsonl": (1805, 0),
    "mdqa/eval.jsonl": (400, 0),
    "musique/train.jsonl": (99, 1),
    "musique/eval.jsonl": (159, 0),
    "two_wiki_multihop/train.jsonl": (378, 42),
    "two_wiki_multihop/eval.jsonl": (89, 11),
    "hotpotqa/train.jsonl": (301, 27),
    "summhay/news1.json": (65, 0),
    "summhay/news2.json": (72, 0),
    "summhay/news3.json": (79, 0),
    "summhay/news4.json": (66, 0),
}
REASONS = {
    "row must hold one of the row's answers in its last gold passage",
    "row.answer must be stated by a supporting passage (answers such as yes and no are not to be retrieved)",
}


def folder_of(name: str) -> Path:
    root = local_copies()
    if root is None or not (root / name).exists():
        pytest.skip(f"no local copy of {name}: set RHSTUDY_DATA")
    return root


@pytest.mark.parametrize(("task", "name"), FILES)
def test_every_row_is_read_or_rejected_with_a_reason(task: TaskName, name: str) -> None:
    source = read_source(str(folder_of(name) / name), "data.train_file")
    found = task_named(task).read_facts(source, "data.train_file", "skip")
    assert (len(found.facts), len(found.rejected)) == READ[name]
    assert {kind_of(reason) for reason in found.rejected.values()} <= REASONS
    if task != "summhay":
        assert len(found.facts) + len(found.rejected) == len(source.rows)
    for fact in found.facts:
        for gold in fact.golds:
            assert not gold.answer_span or gold.answer == gold.passage.text[slice(*gold.answer_span)]


def test_topics_make_parts_of_their_own() -> None:
    source = read_source(str(folder_of("summhay/news1.json") / "summhay"), "data.train_file")
    facts = task_named("summhay").read_facts(source, "data.train_file", "error").facts
    parts = split_facts(facts, None, 0).parts
    assert sorted(len({fact.group for fact in rows}) for rows in parts.values()) == [1, 1, 1, 1]
    assert sorted(label for rows in parts.values() for label in {fact.labels[0] for fact in rows}) == [
        "news1", "news2", "news3", "news4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "name", "recipe", "num_tokens", "num_examples"),
    [
        ("musique", "musique", "real", 1536, 80),
        ("musique", "musique", "real", 2048, 80),
        ("summhay", "summhay", "real_limited", 4096, 8),
        ("summhay", "summhay", "high_high", 4096, 8),
        ("summhay", "summhay", "high_low", 4096, 8),
    ],
)
def test_recipes_are_built_of_the_local_copies(
    task: TaskName, name: str, recipe: str, num_tokens: int, num_examples: int, tmp_path: Path
) -> None:
    """Lengths at which MuSiQue's paragraphs of one title are cut; SummHay's topics as they are split by default."""
    folder_of(NAMED_DATA[name].train)
    asked = DataConfig(task=task, recipe=recipe, train_file=name, num_tokens=num_tokens, num_examples=num_examples)
    tokenizer = AutoTokenizer.from_pretrained(Path(rhstudy.__file__).parent / "models" / "tiny")
    card = build_dataset(with_named_sources(asked, tmp_path), tokenizer).card["parts"]["train"]
    assert card["num_examples"] == num_examples
    assert num_tokens - 16 <= card["num_prompt_tokens"]["min"]
    assert card["num_prompt_tokens"]["max"] <= num_tokens
