"""Rewritten needles: the checks, and a recording that ends with the same bytes however often it is interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from rhstudy.data.recorded_needles import read_rewritten
from rhstudy.data.relations import ALL_RELATIONS, INSIGHTS
from rhstudy.data.rewriting import MAX_ATTEMPTS, SHOT_NAMES, Plan, rewrite
from rhstudy.data.rewritten import OtherAnswers, RewriteItem, check_rewrite, rewrite_items, usable_items
from rhstudy.errors import InputError, StudyError


class FakeWriter:
    """Words a fact well, or badly where the seed says so; may be killed."""

    def __init__(self, fails_every: int = 8, dies_after: int = 10**9, name: str = "fake") -> None:
        self.fails_every, self.left, self.name = fails_every, dies_after, name

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": self.name, "digest": "0" * 64}

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return [
            "Nobody knows." if seed % self.fails_every == 0 else f"As is told in the valley, {chat[-1]['content']}"
            for chat, seed in zip(chats, seeds, strict=True)
        ]


def item(**changes: Any) -> RewriteItem:
    values: dict[str, Any] = {
        "item_id": "x-0",
        "group": "x-0",
        "statement": "Ann Hill was born in Port Bruce.",
        "required": ("Ann Hill", "Port Bruce"),
        "answer": "Port Bruce",
        "copied": True,
        "evidence": r"\b(born|native)",
        "facts": {"relation": "born_in", "subject": "Ann Hill", "value": "Port Bruce", "value_kind": "city", "hop": 0},
    }
    return RewriteItem(**{**values, **changes})


OTHERS = OtherAnswers([item(), item(item_id="x-1", required=("Bo Reed", "Lakeview"), answer="Lakeview")], SHOT_NAMES)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("In a small house by the sea, Ann Hill was born in Port Bruce.", ""),
        ("Ann Hill was born in Port Bruce.", "only the plain sentence"),
        ("Ann Hill saw the light in the harbour of Port Bruce.", "does not state the relation"),
        ("Anne Hill was born in lovely Port Bruce.", "misses Ann Hill"),
        ("Ann Hill was born in lovely port bruce.", "misses Port Bruce"),
        ("Ann Hill was born in Port Bruce, and Port Bruce loves her.", "states the answer more than once"),
        ("Port Bruce is where Ann Hill was born.", "no space before the answer"),
        ("Ann Hill was not born in Port Bruce.", "denies or doubts"),
        ("Ann Hill wasn't born in Port Bruce.", "denies or doubts"),
        ("Ann Hill was born in Port Bruce in 1950.", "a number of its own"),
        ("Ann Hill was born in Port Bruce, far from Lakeview.", "holds lakeview"),
        ("Ann Hill was born in Port Bruce, as was Omar Lind.", "holds omar lind"),
        ("Ann Hill was born in lovely Port Bruce", "length"),
        ("Ann Hill, Port Bruce.", "length"),
        (f"Ann Hill was born in Port Bruce {'and there ' * 40}she stayed.", "length"),
        ("**Ann Hill** was born in lovely Port Bruce.", "not one plain line"),
        ("Sure!\nAnn Hill was born in lovely Port Bruce.", "not one plain line"),
        ("", "not one plain line"),
    ],
)
def test_checks(text: str, refused: str) -> None:
    assert check_rewrite(text, item(), OTHERS) == refused


def test_direction_and_hops() -> None:
    teacher = item(
        statement="Ann Hill studied under Bo Reed.", required=("Ann Hill", "Bo Reed"), answer="Bo Reed",
        evidence=next(i.evidence for i in rewrite_items("musique", 0, 200) if i.facts["relation"] == "teacher"),
    )  # fmt: skip
    others = OtherAnswers([teacher])
    assert check_rewrite("For years Ann Hill studied law under Bo Reed.", teacher, others) == ""
    assert check_rewrite("For years Bo Reed taught the young Ann Hill.", teacher, others) == ""
    assert check_rewrite("For years one Bo Reed studied under Ann Hill.", teacher, others)
    hop = item(copied=False)
    assert check_rewrite("Port Bruce is where Ann Hill was born.", hop, OTHERS) == ""


@pytest.mark.parametrize("task", ["mdqa", "musique", "summhay"])
def test_items_follow_from_the_seed_and_share_no_names(task: Any) -> None:
    items, longer = rewrite_items(task, 3, 60), rewrite_items(task, 3, 90)
    assert longer[: len(items)] == items
    assert rewrite_items(task, 4, 60) != items
    assert len({item.item_id for item in longer}) == len(longer)
    owners: dict[str, str] = {}
    for one in longer:
        for name in one.required:
            if " " in name and one.facts.get("value_kind") in (None, "name", "company"):
                assert owners.setdefault(name, one.group) == one.group, name
    if task == "musique":
        groups = {one.group for one in items}
        for group in groups:
            hops = [one for one in items if one.group == group]
            assert [one.facts["hop"] for one in hops] == list(range(len(hops)))
            assert 2 <= len(hops) <= 4
            assert [one.copied for one in hops] == [False] * (len(hops) - 1) + [True]
            for first, second in pairwise(hops):
                assert first.facts["value"] == second.facts["subject"]


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    plan = Plan(task="musique", num_needles=40, batch_size=7)
    whole = tmp_path / "whole.jsonl"
    outcome = rewrite(plan, FakeWriter(), whole)
    assert outcome.num_needles >= 40
    assert 0.5 < outcome.acceptance_rate < 0.9
    parted = tmp_path / "parted.jsonl"
    for dies_after in (1, 0, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            rewrite(plan, FakeWriter(dies_after=dies_after), parted)
    content = whole.read_bytes()
    for size in (parted.stat().st_size - 5, content.index(b"\n") - 3, 4000, 0):
        parted.write_bytes(content[:size])
        assert rewrite(plan, FakeWriter(), parted) == outcome
        assert parted.read_bytes() == content
    assert rewrite(plan, FakeWriter(dies_after=0), whole) == outcome  # replayed: no writer is asked
    rows = [json.loads(line) for line in content.splitlines()[1:]]
    assert len(rows) == outcome.num_texts
    assert sum(not row["refused"] for row in rows) == outcome.num_accepted
    assert max(row["attempt"] for row in rows) < MAX_ATTEMPTS


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_every_item_is_asked_for(batch_size: int, tmp_path: Path) -> None:
    plan, path = Plan(num_needles=24, batch_size=batch_size), tmp_path / "a.jsonl"
    rewrite(plan, FakeWriter(), path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    asked = [row["id"] for row in rows if row["attempt"] == 0]
    assert asked == [one.item_id for one in rewrite_items("mdqa", 0, len(asked))]


def test_another_plan_or_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rewrite(Plan(num_needles=5), FakeWriter(), path)
    with pytest.raises(InputError, match=r"output must be the recording of this very config.*\['seed'\]"):
        rewrite(Plan(num_needles=5, seed=1), FakeWriter(), path)
    with pytest.raises(InputError, match=r"output must be the recording of this very config.*\['writer'\]"):
        rewrite(Plan(num_needles=5), FakeWriter(name="other"), path)


def test_a_writer_that_cannot_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"rewritten needles must pass 5 times, got <0 of 45 texts>.*length 45"):
        rewrite(Plan(num_needles=5), FakeWriter(fails_every=1), tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["seed", "num_needles", "batch_size"])
def test_plans_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least"):
        Plan(**{name: -1})


def test_recordings_become_facts(tmp_path: Path) -> None:
    for task in ("mdqa", "musique"):
        path = tmp_path / f"{task}.jsonl"
        rewrite(Plan(task=task, num_needles=30), FakeWriter(), path)
        needles = read_rewritten(path)
        facts = needles.facts()
        assert sum(len(fact.golds) for fact in facts) >= 30
        for fact in facts:
            assert fact.origin == "rewritten"
            assert fact.answers == (fact.answer,)
            assert fact.passage.text[: fact.answer_span.start].endswith(" ")
            for gold, after in pairwise(fact.golds):
                assert gold.answer == after.passage.title
            assert fact.golds[0].passage.title in fact.question


HEADER = '{"kind": "rhstudy rewritten needles", "version": 2, "writer": {"model": "m"}}'


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", r"recording must hold one JSON object a line.*line 1"),
        ('{"kind": "other"}\n', "rewritten needles must be a recording of version 2, got 'other'"),
        (f"{HEADER.replace('writer', 'w')}\n", r"needles\.writer must name its model, got None \(.*line 1\)"),
        (f"{HEADER}\n" + '{"id": "x"}\n', r"needles\.attempt must be a whole number, got <nothing> \(.*line 2\)"),
        (f"{HEADER}\n" + '{"id": \n', r"one JSON object a line.*line 2"),
        (f"{HEADER}\n", "must hold a usable group"),
    ],
)
def test_bad_recordings(content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=match):
        read_rewritten(path)


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rewritten needles must be an existing file"):
        read_rewritten(tmp_path / "none.jsonl")


REFUTED = "states something else"


@pytest.mark.parametrize(
    ("relation", "text", "refused"),
    [
        ("spouse", "Ann Hill, the son of Bo Reed, was married young.", "does not state the relation"),
        ("spouse", "Ann Hill is married to Bo Reed, as is his wife, Mary.", REFUTED),
        ("spouse", "Ann Hill and Bo Reed were married by the river.", ""),
        ("spouse", "Married to Bo Reed, lucky Ann Hill lives by the sea and was never alone.", "denies or doubts"),
        ("spouse", "Happily married to Bo Reed, Ann Hill lives by the sea.", ""),
        ("spouse", "Ann Hill had one friend, Bo Reed, and married young.", "does not state the relation"),
        ("teacher", "Bo Reed was a scholar who studied under Ann Hill, as Ann Hill studied with Bo Reed.", REFUTED),
        ("teacher", "Ann Hill studied for years under Bo Reed.", ""),
        ("founder", "Bo Reed's father was the founder of Ann Hill.", REFUTED),
        ("founder", "It was the old miller Bo Reed who founded Ann Hill.", ""),
        ("founder", "Ann Hill was founded in a kitchen, as Bo Reed knows.", "does not state the relation"),
        ("address", "It was Ann Hill who lived in a house near Bo Reed.", REFUTED),
        ("language", "The name Ann Hill comes from the language Bo Reed.", REFUTED),
    ],
)
def test_texts_that_state_something_else(relation: str, text: str, refused: str) -> None:
    kind = next(kind for kind in ALL_RELATIONS if kind.name == relation)
    made = item(
        statement=kind.statement.format(subject="Ann Hill", value="Bo Reed"), required=("Ann Hill", "Bo Reed"),
        answer="Bo Reed", copied=False, evidence=kind.evidence, refuted=kind.refuted,
    )  # fmt: skip
    assert check_rewrite(text, made, OtherAnswers([made])) == refused


@pytest.mark.parametrize(
    ("insight", "text", "refused"),
    [
        ("waste", "In all, Brook Ltd recycles 34 percent of the waste of Port Elia.", ""),
        ("waste", "In all, Brook Ltd recycles more than 34% of the waste of Port Elia.", REFUTED),
        ("electricity", "In Port Elia, Brook Ltd cut its electricity use to 34 percent.", REFUTED),
        ("electricity", "In Port Elia, Brook Ltd cut its electricity use by 34 percent.", ""),
        ("rents", "Brook Ltd said that rents in Port Elia rose, then fell by 34 percent.", REFUTED),
    ],
)
def test_insights_that_state_another_number(insight: str, text: str, refused: str) -> None:
    kind = next(kind for kind in INSIGHTS if kind.name == insight)
    made = item(
        statement="", required=("Brook Ltd", "34", "Port Elia"), answer="", copied=False,
        evidence=kind.evidence, refuted=kind.refuted,
    )  # fmt: skip
    made = replace(made, statement=kind.statement.format(company="Brook Ltd", percent=34, city="Port Elia"))
    assert check_rewrite(text, made, OtherAnswers([made])) == refused


def test_copies_of_the_examples_state_their_fact_but_are_no_needles(tmp_path: Path) -> None:
    shot = "It was a stormy night in Lakeview when Bo Reed was born, the youngest child of a family of sailors."
    known = OtherAnswers([item()], examples=[shot])
    copy = "Few know that Ann Hill was born in Port Bruce, the youngest child of a family of sailors."
    assert check_rewrite(copy, item(), known) == "copies an example"
    assert check_rewrite("Ann Hill was born in Port Bruce, the only child of a family.", item(), known) == ""

    class Copier(FakeWriter):
        def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
            texts = super().write(chats, seeds)
            tail = ", when the street was still a field."
            return [
                text.removesuffix(".") + tail if seed % 3 == 0 else text
                for text, seed in zip(texts, seeds, strict=True)
            ]

    outcome = rewrite(Plan(num_needles=20), Copier(fails_every=10**9), path := tmp_path / "a.jsonl")
    assert outcome.reasons["copies an example"] > 0
    assert outcome.acceptance_rate == 1
    needles = read_rewritten(path)
    assert needles.num_accepted == needles.num_texts == outcome.num_texts
    assert sum(map(len, needles.groups.values())) == outcome.num_needles
    assert not any("still a field" in row["text"] for rows in needles.groups.values() for row in rows)


def test_a_chain_without_its_first_hops_is_a_shorter_chain() -> None:
    items = rewrite_items("musique", 0, 60)
    chains = [list(hops) for _, hops in groupby(items, key=lambda one: one.group)]
    chain = next(hops for hops in chains if len(hops) == 4)
    names = [one.item_id for one in chain]
    assert usable_items(set(names), chain) == chain
    assert usable_items(set(names[1:]), chain) == chain[1:]
    assert usable_items(set(names[2:]), chain) == chain[2:]
    assert usable_items({names[0], names[1], names[3]}, chain) == []
    assert usable_items(set(names[:3]), chain) == []
    assert usable_items(set(names[:3]), chain[:3]) == []  # a file that ends within a chain
    assert usable_items(set(names), [chain[0], chain[1], chain[3]]) == []  # a file without the third hop
    assert usable_items(set(names), [chain[0], *chain[2:]]) == chain[2:]
    assert usable_items(set(names), chain[3:]) == []


def test_verdicts_of_earlier_checks_stand_but_what_is_refused_now_is_no_needle(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.jsonl", Plan(num_needles=30, batch_size=10)
    before = rewrite(plan, FakeWriter(fails_every=10**9), path)
    assert before.num_needles == before.num_texts == 30
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[1])
    old = json.dumps({**row, "text": f"Nobody knows that {row['statement']} Never."}, ensure_ascii=False)
    path.write_text("\n".join([lines[0], old, *lines[2:]]) + "\n", encoding="utf-8")
    after = rewrite(plan, FakeWriter(fails_every=10**9), path)
    assert (after.num_texts, after.num_needles) == (40, 39)
    assert row["id"] not in read_rewritten(path).groups
    assert path.read_text(encoding="utf-8").splitlines()[1] == old


def test_a_relation_that_is_not_known_here(tmp_path: Path) -> None:
    rewrite(Plan(num_needles=5), FakeWriter(), path := tmp_path / "a.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace('"relation": "', '"relation": "un'), encoding="utf-8")
    with pytest.raises(InputError, match=r"facts\.relation must be a known relation, got 'un.*line 2"):
        read_rewritten(path)
