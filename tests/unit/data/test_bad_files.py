"""What the files of every layout can be wrong in: one message with file and line, exit code 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_fuzzed_files import ROWS, changed, places

from rhstudy.data.rows import MAX_CHARS, read_source
from rhstudy.data.tasks.registry import task_named
from rhstudy.errors import InputError


def encoded(*rows: Any) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def longest_text(row: Any) -> tuple[Any, ...]:
    """Where the longest text of a row stands."""

    def length(path: tuple[Any, ...]) -> int:
        value = row
        for key in path:
            value = value[key]
        return len(value) if isinstance(value, str) else -1

    return max(places(row), key=length)


def without_needed(row: Mapping[str, Any]) -> dict[str, Any]:
    needed = next(key for key in ("question", "text", "documents") if key in row)
    return {key: value for key, value in row.items() if key != needed}


def without_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer that no document states; for a topic, an insight that no document holds."""
    if "subtopics" in row:
        documents = [{**document, "insights_included": []} for document in row["documents"]]
        return {**row, "documents": documents}
    return {**row, **({"answers": ["Atlantis"]} if "answers" in row else {"answer": "Atlantis", "answer_aliases": []})}


def of_a_million(row: Any) -> Any:
    return changed(row, longest_text(row), "long text." * (MAX_CHARS // 10))


def in_another_encoding(row: Any) -> bytes:
    return json.dumps({**row, "by": "café"}, ensure_ascii=False).encode("cp1252")


# Kind -> (the second of three lines, made from the first and the second row; what the message says).
KINDS: dict[str, tuple[Callable[[Any, Any], bytes], str]] = {
    "truncated": (lambda first, row: encoded(row)[0][:-40], "hold one JSON object a line"),
    "missing field": (lambda first, row: encoded(without_needed(row))[0], "be (given|a list of .*), got <nothing>"),
    "answer absent": (lambda first, row: encoded(without_answer(row))[0], "got .*'Atlantis'"),
    "id twice": (lambda first, row: encoded(first)[0], r"data\.f\.id must be unique, got "),
    "a million characters": (lambda first, row: encoded(of_a_million(row))[0], "fewer than 1000000 characters, got <"),
    "Windows-1252": (lambda first, row: in_another_encoding(row), "be UTF-8 text"),
}  # fmt: skip
HAS_NONE = {("cue_retrieval", "answer absent"), ("summhay", "answer absent"), ("cue_retrieval", "id twice")}
"""Its answers are words of its passages, which have no ids; insights without documents are left out and counted."""


def refusal(layout: str, content: bytes, path: Path) -> str:
    task, _ = ROWS[layout]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^data\.f[^\n]* must [^\n]*, got [^\n]*$") as caught:
        task_named(task).read_facts(read_source(str(path), "data.f"), "data.f", "error")
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ROWS)
def test_what_is_wrong_with_a_line_is_said_with_file_and_line(layout: str, kind: str, tmp_path: Path) -> None:
    if (layout, kind) in HAS_NONE:
        return
    first, second, third = map(ROWS[layout][1], range(3))
    make, said = KINDS[kind]
    lines = [*encoded(first), make(first, second), *encoded(third)]
    told = refusal(layout, b"\n".join(lines) + b"\n", tmp_path / "rows.jsonl")
    assert re.search(said, told), told
    assert re.search(r"rows\.jsonl('|, )", told), told
    assert re.search(r"\bline 2\)", told), told


def test_insights_without_documents_are_counted_with_file_and_line(tmp_path: Path) -> None:
    make, path = ROWS["summhay"][1], tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(encoded(make(0), without_answer(make(1)))))
    found = task_named("summhay").read_facts(read_source(str(path), "data.f"), "data.f", "error")
    reasons = {row: told for row, told in found.rejected.items() if row.startswith("t1-")}
    assert len(reasons) == 6
    for told in reasons.values():
        assert re.search(rf"^insight must be held by a document, got <0 documents> .*{path}, line 2\)", told)


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_named(layout: str, content: bytes, tmp_path: Path) -> None:
    refused = refusal(layout, content, tmp_path / "rows.jsonl")
    assert refused.startswith(f"data.f must have at least one row, got <0 rows> ({tmp_path / 'rows.jsonl'})")
