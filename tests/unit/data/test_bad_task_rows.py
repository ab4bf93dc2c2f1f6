"""Rows of the tasks with several gold documents that cannot be used: why, and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_worlds import (
    hotpot_row,
    musique_row,
    own_row,
    topic,
    write_rows,
)

from rhstudy.data.rows import read_source
from rhstudy.data.tasks.registry import TaskName, task_named
from rhstudy.errors import InputError


def broken(change: Callable[[dict[str, Any]], Any], make: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    row = make(1)
    change(row)
    return row


BAD_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no answer in the last hop": (
        "musique",
        broken(lambda row: row.update(answer="Nobody"), musique_row),
        r"data\.f must hold one of the row's answers in its last gold passage, got .'Nobody'. .row 2hop__1, .*line 2",
    ),
    "no such paragraph": (
        "musique",
        broken(lambda row: row["question_decomposition"][0].update(paragraph_support_idx=None), musique_row),
        r"question_decomposition\[0\]\.paragraph_support_idx must name one of the paragraphs, got None .*line 2",
    ),
    "yes or no": (
        "musique",
        broken(lambda row: row.update(answer="yes"), hotpot_row),
        r"data\.f\.answer must be stated by a supporting passage .* got 'yes' \(row hotpot-1, .*line 2",
    ),
    "supporting title not in context": (
        "musique",
        broken(lambda row: row["supporting_facts"].append(["Nowhere", 0]), hotpot_row),
        r"supporting_facts must name titles of the row's context, got \['Nowhere'\] .*line 2",
    ),
    "no gold document": (
        "own",
        {"question": "q", "answers": ["x"], "documents": [{"title": "t", "text": "y"}]},
        r"data\.f\.documents must mark a document as gold, or have one that holds an answer, got <1 docu.*.*line 2",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_rejected_with_file_and_line(case: str, tmp_path: Path) -> None:
    task, row, match = BAD_ROWS[case]
    path = write_rows(tmp_path / "rows.jsonl", [own_row(0) if task == "own" else musique_row(0), row])
    read = task_named(task).read_facts
    with pytest.raises(InputError, match=match):
        read(read_source(path, "data.f"), "data.f", "error")
    found = read(read_source(path, "data.f"), "data.f", "skip")
    assert (len(found.facts), len(found.rejected)) == (1, 1)


BAD_FIELDS: dict[str, tuple[TaskName, Any, str]] = {
    "no documents": (
        "own",
        {"question": "q", "answers": ["x"]},
        r"documents must be a list of objects, got <nothing>",
    ),
    "answers no list": ("own", {**own_row(1), "answers": "x"}, r"answers must be a list of texts, got 'x'"),
    "no answers": ("own", {**own_row(1), "answers": [" "]}, r"answers must hold at least 1 text"),
    "no question": ("own", {"answers": ["x"], "documents": []}, r"data\.f\.question must be given"),
    "text missing": (
        "own",
        {**own_row(1), "documents": [{"title": "t"}]},
        r"data\.f\.documents\[0\]\.text must be given, got <nothing>",
    ),
    "layout unknown": ("musique", {"question": "q"}, r"have question_decomposition or supporting_facts or documents"),
    "paragraph without text": (
        "musique",
        broken(lambda row: row["paragraphs"][2].pop("paragraph_text"), musique_row),
        r"data\.f\.paragraphs\[2\]\.paragraph_text must be given",
    ),
    "step without answer": (
        "musique",
        broken(lambda row: row["question_decomposition"][1].pop("answer"), musique_row),
        r"question_decomposition\[1\]\.answer must be given",
    ),
    "context no pairs": (
        "musique",
        {**hotpot_row(1), "context": [["one"]]},
        r"data\.f\.context must be pairs or two columns",
    ),
    "context without sentences": (
        "musique",
        broken(lambda row: row["context"].append(["t", []]), hotpot_row),
        r"data\.f\.context\[6\] must be a title with sentences",
    ),
    "a million characters": (
        "own",
        {**own_row(1), "documents": [{"title": "t", "text": "x" * 1_000_000}]},
        r"documents\[0\]\.text must have fewer than 1000000 characters, got <1000000>",
    ),
    "topic without documents": ("summhay", {"topic_id": "t", "documents": []}, r"documents must be a list of objects"),
    "topic without insights": (
        "summhay",
        {**topic(1), "subtopics": [{"query": "q"}]},
        r"subtopics\[0\]\.insights must",
    ),
    "insight nobody lists": (
        "summhay",
        broken(lambda row: row["documents"][0]["insights_included"].append("other"), topic),
        r"insights_included must name insights of the topic, got \['other'\]",
    ),
    "document ids twice": (
        "summhay",
        broken(lambda row: row["documents"][0].update(document_id="t1-d1"), topic),
        r"documents must have ids of their own",
    ),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields_end_the_reading_with_file_and_line(case: str, tmp_path: Path) -> None:
    task, row, match = BAD_FIELDS[case]
    first = {"own": own_row(0), "musique": musique_row(0), "summhay": topic(0)}[task]
    path = write_rows(tmp_path / "rows.jsonl", [first, row])
    for on_bad_row in ("error", "skip"):
        with pytest.raises(InputError, match=match) as caught:
            task_named(task).read_facts(read_source(path, "data.f"), "data.f", on_bad_row)
        assert f"{path}, line 2" in str(caught.value)


@pytest.mark.parametrize("task", ["own", "musique", "summhay"])
def test_ids_seen_before_are_refused(task: TaskName, tmp_path: Path) -> None:
    row = {"own": own_row(0), "musique": musique_row(0), "summhay": topic(0)}[task]
    path = write_rows(tmp_path / "rows.jsonl", [row, row])
    with pytest.raises(InputError, match=r"data\.f\.id must be unique, got .*line 2"):
        task_named(task).read_facts(read_source(path, "data.f"), "data.f", "skip")
