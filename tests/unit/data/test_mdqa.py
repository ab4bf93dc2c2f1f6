from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhstudy.data.facts import Passage
from rhstudy.data.rows import Source, read_source
from rhstudy.data.tasks.mdqa import first_word_in, read_facts
from rhstudy.errors import InputError

OURS = {
    "id": "nq-1",
    "question": "who ran",
    "answers": ["no one", "ann lee"],
    "title": "Runs",
    "gold_text": "Then Ann Lee ran.",
}
PUBLIC = {
    "question": "who ran",
    "answers": ["ann lee"],
    "ctxs": [
        {"title": "Other", "text": "Ann Lee sat.", "hasanswer": True, "isgold": False},
        {"title": "Runs", "text": "Then Ann Lee ran.", "hasanswer": True, "isgold": True},
    ],
}


def source(*rows: dict[str, Any]) -> Source:
    return Source("f", "0" * 64, [(f"f, line {number}", row) for number, row in enumerate(rows, start=1)])


def test_both_layouts_give_the_same_fact() -> None:
    ours, public = (read_facts(source(row), "data.f", "error").facts[0] for row in (OURS, PUBLIC))
    assert ours.passage == public.passage == Passage("Runs", "Then Ann Lee ran.")
    assert ours.answer == public.answer == "Ann Lee"
    assert ours.fact_id == "nq-1"
    assert public.fact_id.startswith("mdqa-")
    assert ours.answers == ("no one", "ann lee")


def test_without_isgold_the_first_passage_with_the_answer_is_gold() -> None:
    contexts = [{"title": "A", "text": "x"}, {"title": "B", "text": "Ann Lee", "hasanswer": True}]
    assert read_facts(source({**PUBLIC, "ctxs": contexts}), "data.f", "error").facts[0].passage.title == "B"


def test_bad_rows_are_an_error_or_counted() -> None:
    bad = {**OURS, "id": "nq-2", "gold_text": "Nobody was there."}
    with pytest.raises(
        InputError,
        match=r"data\.f\.gold_text must hold one of the row's answers .*\(row nq-2, f, line 2\).*on_bad_row = skip",
    ):
        read_facts(source(OURS, bad), "data.f", "error")
    rows = read_facts(source(OURS, bad), "data.f", "skip")
    assert [fact.fact_id for fact in rows.facts] == ["nq-1"]
    assert list(rows.rejected) == ["nq-2"]
    with pytest.raises(InputError, match=r"data\.f must have at least one usable row, got <1 bad rows>"):
        read_facts(source(bad), "data.f", "skip")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({**OURS, "question": None}, r"data\.f\.question must be text that is not blank, got None \(f, line 1\)"),
        ({key: value for key, value in OURS.items() if key != "gold_text"}, r"data\.f\.gold_text must be given"),
        ({**OURS, "answers": "ann"}, r"data\.f\.answers must be a list of texts, got 'ann'"),
        ({**OURS, "answers": []}, r"data\.f\.answers must be a list of texts, got \[\]"),
        ({**PUBLIC, "ctxs": []}, r"data\.f\.ctxs must mark a passage as isgold or hasanswer, got <0 passages"),
        ({**PUBLIC, "ctxs": ["x"]}, r"data\.f\.ctxs must be a list of passages"),
        ({**OURS, "answers": ["..."]}, r"data\.f\.gold_text must hold one of the row's answers"),
    ],
)
def test_broken_rows(row: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_facts(source(row), "data.f", "error")


def test_ids_must_be_unique() -> None:
    with pytest.raises(InputError, match=r"data\.f\.id must be unique, got 'nq-1' \(f, line 2\)"):
        read_facts(source(OURS, OURS), "data.f", "error")


def test_first_word() -> None:
    fact = read_facts(source(OURS), "data.f", "error").facts[0]
    assert first_word_in(fact, ())
    assert first_word_in(fact, ("WHO", "when"))
    assert not first_word_in(fact, ("when",))


@pytest.mark.real_data
def test_every_public_row_is_read(data_root: Path) -> None:
    for name, count in (("train", 1805), ("eval", 400)):
        rows = read_facts(read_source(str(data_root / "mdqa" / f"{name}.jsonl"), "data.f"), "data.f", "error")
        assert len(rows.facts) == count
        assert all(fact.answer.casefold() in fact.passage.text.casefold() for fact in rows.facts)


def test_public_layout_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "nq.jsonl").write_text(json.dumps(PUBLIC) + "\n")
    assert read_facts(read_source(str(tmp_path / "nq.jsonl"), "data.f"), "data.f", "error").facts[0].answer == "Ann Lee"
