"""What every task shares: reading rows into facts, made-up ids, and the list of tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.needles import symbolic_fact
from rhstudy.data.tasks.reading import derived_id, gather_facts
from rhstudy.data.tasks.registry import TASKS, task_named
from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.types import Span


def fact(row_id: str) -> Fact:
    return Fact(
        fact_id=row_id,
        question="?",
        answers=("a",),
        passage=Passage("t", "a"),
        answer_span=Span(0, 1),
        origin="real",
    )


def bad() -> Fact:
    raise UnbuildableRowError("no answer here")


def rows(**builders: Callable[[], Fact]) -> list[tuple[str, str, Callable[[], Fact]]]:
    return [(f"line {number}", row_id, build) for number, (row_id, build) in enumerate(builders.items(), start=1)]


def test_facts_come_in_file_order_and_rejected_rows_tell_why() -> None:
    found = gather_facts(rows(z=lambda: fact("z"), b=bad, a=lambda: fact("a")), "data.f", "skip")
    assert [item.fact_id for item in found.facts] == ["z", "a"]
    assert found.rejected == {"b": "no answer here"}


def test_a_bad_row_under_error_ends_the_reading() -> None:
    with pytest.raises(UnbuildableRowError, match="no answer here"):
        gather_facts(rows(z=lambda: fact("z"), b=bad), "data.f", "error")


def test_a_mistake_that_is_not_the_rows_own_is_never_skipped() -> None:
    def broken() -> Fact:
        raise InputError("missing key")

    with pytest.raises(InputError, match="missing key"):
        gather_facts(rows(z=lambda: fact("z"), b=broken), "data.f", "skip")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_an_id_seen_before_is_an_error(on_bad_row: str) -> None:
    twice = [*rows(z=lambda: fact("z")), ("line 2", "z", lambda: fact("z"))]
    with pytest.raises(InputError, match=r"data\.f\.id must be unique, got 'z' \(line 2\)"):
        gather_facts(twice, "data.f", on_bad_row)


def test_no_usable_row_is_an_error() -> None:
    with pytest.raises(InputError, match=r"data\.f must have at least one usable row, got <1 bad rows>"):
        gather_facts(rows(b=bad), "data.f", "skip")


def test_made_up_ids_depend_on_every_text_and_on_where_it_ends() -> None:
    ids = [derived_id("t", *texts) for texts in (("ab", "c"), ("a", "bc"), ("ab", "d"), ("ab", "c", ""))]
    assert len(set(ids)) == 4
    assert derived_id("t", "ab", "c") == ids[0]
    assert all(item.startswith("t-") for item in ids)


@pytest.mark.parametrize("name", TASKS)
def test_every_named_task_is_there(name: str) -> None:
    task = task_named(name)
    assert task.name == name
    assert task.documents.titled != task.documents.numbered
    assert not task.lines.titled
    assert "BM25" in task.note or "per document" in task.note


def test_a_task_asks_for_invented_facts_in_its_own_way() -> None:
    asked = {name: task_named(name).ask(symbolic_fact)(generator(0), "x") for name in TASKS}
    assert asked["mdqa"].question.startswith("What is the value of ")
    assert asked["cue_retrieval"].question.startswith('Which word follows "')
    assert asked["mdqa"].answers == asked["cue_retrieval"].answers
