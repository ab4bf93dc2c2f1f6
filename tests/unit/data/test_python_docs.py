"""Passages from the running Python's own documentation."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from rhstudy.data.config import DataConfig
from rhstudy.data.named import with_named_sources
from rhstudy.data.python_docs import MIN_WORDS, python_docs_file, python_docs_rows
from rhstudy.errors import InputError


def test_rows_are_prose_and_unique() -> None:
    rows = python_docs_rows()
    assert len(rows) > 300
    for key in ("id", "text"):
        assert len({row[key] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "title", "text"}
        assert len(row["text"].split()) >= MIN_WORDS
        assert row["text"] == " ".join(row["text"].split())
        assert "::=" not in row["text"]
        assert ">>>" not in row["text"]


def test_grammar_and_console_sessions_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data import topics

    prose = " ".join(["plain words"] * 12)
    texts = [prose, f"{prose} ::= x", f">>> {prose}", "plain words", "x = y " * 20, prose.replace(" ", "\n")]
    monkeypatch.setattr(topics, "topics", {"b": "\n\n".join(texts), "a": f"{prose} too\n \n{prose}"})
    assert python_docs_rows() == [
        {"id": "a-0000", "title": "a", "text": f"{prose} too"},
        {"id": "a-0001", "title": "a", "text": prose},
    ]


def test_the_file_is_written_once_and_named_by_its_content(tmp_path: Path) -> None:
    first = python_docs_file(tmp_path)
    written = first.stat().st_mtime_ns
    assert python_docs_file(tmp_path) == first
    assert first.stat().st_mtime_ns == written
    assert hashlib.sha256(first.read_bytes()).hexdigest()[:12] in first.name
    assert list(first.parent.iterdir()) == [first]
    assert [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()] == python_docs_rows()


def test_a_python_without_topics_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    match = (
        r"data\.train_file must be on this machine, got <Python 3\.\S+ without pydoc_data> \(python-docs\)\. Install"
    )
    with pytest.raises(InputError, match=match):
        python_docs_file(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_name_stands_for_the_file_and_other_options_are_kept(tmp_path: Path) -> None:
    config = DataConfig(task="cue_retrieval", train_file="python-docs", eval_file="e", num_dev=7)
    named = with_named_sources(config, tmp_path)
    assert named.train_file == str(python_docs_file(tmp_path))
    assert (named.on_bad_row, named.eval_file, named.num_dev, named.passages_file) == ("skip", "e", 7, "")
