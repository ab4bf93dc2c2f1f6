"""The recordings of rewritten needles in this package: enough of them, accepted by the checks, replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rhstudy.data.insights import RewrittenInsights
from rhstudy.data.recorded_needles import RECORDED, read_rewritten
from rhstudy.data.rewriting import Plan, rewrite
from rhstudy.seeding import generator

TASKS = ("mdqa", "musique", "summhay")
MAX_BYTES = 2_000_000


class Silent:
    """A writer that must not be asked."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = identity

    def write(self, chats: Sequence[Any], seeds: Sequence[int]) -> list[str]:
        raise AssertionError(f"asked for {len(chats)} texts that are not in the recording")


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORDED.iterdir()) < MAX_BYTES


@pytest.mark.parametrize("task", TASKS)
def test_they_hold_500_needles_of_a_named_model(task: str) -> None:
    needles = read_rewritten(RECORDED / f"{task}.jsonl")
    texts = [row["text"] for rows in needles.groups.values() for row in rows]
    assert len(set(texts)) == len(texts) >= 500
    assert needles.num_accepted / needles.num_texts >= 0.5
    assert needles.header["writer"]["model"] == "qwen2.5-coder-0.5b"
    assert needles.header["writer"]["weights_sha256"].startswith("1d9614638d18")
    assert needles.header["prompts"]


@pytest.mark.parametrize("task", TASKS)
def test_they_are_replayed_to_the_same_bytes(task: str, tmp_path: Path) -> None:
    source = RECORDED / f"{task}.jsonl"
    header = json.loads(source.read_text(encoding="utf-8").splitlines()[0])
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    plan = Plan(**{key: header[key] for key in ("task", "seed", "num_needles", "batch_size")})
    outcome = rewrite(plan, Silent(header["writer"]), copy)
    assert copy.read_bytes() == source.read_bytes()
    needles = read_rewritten(source)
    assert (outcome.num_texts, outcome.num_accepted) == (needles.num_texts, needles.num_accepted)
    assert outcome.num_needles == sum(map(len, needles.groups.values()))


def test_they_become_facts() -> None:
    for task, most in (("mdqa", 1), ("musique", 4)):
        facts = read_rewritten(RECORDED / f"{task}.jsonl").facts()
        assert {len(fact.golds) for fact in facts} <= set(range(1, most + 1))
        assert all(fact.passage.text[slice(*fact.answer_span)] == fact.answers[0] for fact in facts)
    fact = RewrittenInsights(RECORDED / "summhay.jsonl")(generator(0, "x"), "x")
    assert fact.cites
