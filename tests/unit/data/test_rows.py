from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from rhstudy.data.facts import Passage
from rhstudy.data.rows import read_passages, read_source
from rhstudy.errors import InputError

ROW = {"title": "T", "text": "One.\n\nTwo\u2028three"}


def test_reads_jsonl_and_gzip_alike(tmp_path: Path) -> None:
    content = (json.dumps(ROW, ensure_ascii=False) + "\n\n" + json.dumps({"a": 1}) + "\n").encode()
    (tmp_path / "x.jsonl").write_bytes(content)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    plain, packed = (read_source(str(tmp_path / name), "data.x") for name in ("x.jsonl", "x.jsonl.gz"))
    assert [row for _, row in plain.rows] == [row for _, row in packed.rows] == [ROW, {"a": 1}]
    assert plain.rows[1][0].endswith("line 3")
    assert plain.sha256 == hashlib.sha256(content).hexdigest() != packed.sha256


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", None, r"data\.x must be an existing file, got .*a\.jsonl"),
        ("a.jsonl", b"", r"data\.x must have at least one row, got <0 rows>"),
        ("a.jsonl", b"\n \n", r"data\.x must have at least one row"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"data\.x must hold one JSON object a line, got .*a\.jsonl, line 2"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"hold one JSON object a line, got \[1\] .*line 2"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"data\.x must be UTF-8 text.*line 2"),
        ("a.json", b'{"a": 1,\n "b": [2,\n', r"must hold whole JSON, got <the end of the file> .*a\.json, line 3"),
        ("a.json", b'{"a": 1,\n "b": 2]}', r"data\.x must hold whole JSON, got '\]\}' .*a\.json, line 2"),
        ("a.json", b'[{"a": 1}, 2]', r"data\.x must hold JSON objects, got '2' .*a\.json, item 2"),
        ("a.json", b" \n", r"data\.x must have at least one row"),
        ("a.json", b"[]", r"data\.x must have at least one row"),
        ("a.json", '{"a":\n "\u00e9"}'.encode("latin-1"), r"data\.x must be UTF-8 text.*line 2"),
        ("a.jsonl", '{"a": "\u00e9"}\n'.encode("utf-16"), r"data\.x must be UTF-8 text.*line 1"),
        ("a.jsonl.gz", b"no gzip", r"data\.x must be a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 200, mtime=0)[:-10], r"data\.x must be a whole gzip file"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_source(str(tmp_path / name), "data.x")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.x must have at least one row"):
        read_source(str(tmp_path), "data.x")
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n{"n": 3}\n', encoding="utf-8")
    (tmp_path / "a.json").write_text('{"n": 1}', encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no rows", encoding="utf-8")
    source = read_source(str(tmp_path), "data.x")
    assert [row["n"] for _, row in source.rows] == [1, 2, 3]
    assert source.rows[2][0] == f"{tmp_path / 'b.jsonl'}, line 2"
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n{"n": 4}\n', encoding="utf-8")
    assert read_source(str(tmp_path), "data.x").sha256 != source.sha256


def test_passages_lose_line_breaks_and_repetitions(tmp_path: Path) -> None:
    rows = [ROW, {"title": "U", "text": "Other"}, {"title": "V", "text": "Other"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    passages, sha256 = read_passages(str(tmp_path / "p.jsonl"))
    assert passages == [Passage("T", "One. Two three"), Passage("U", "Other")]
    assert len(sha256) == 64


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"title": "T"}, r"data\.passages_file\.text must be given.*Keys found: title"),
        ({"title": "", "text": "x"}, r"data\.passages_file\.title must be text that is not blank, got ''.*line 1"),
        ({"title": "T", "text": 5}, r"data\.passages_file\.text must be text that is not blank, got 5"),
    ],
)
def test_bad_passages(tmp_path: Path, row: dict[str, object], match: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=match):
        read_passages(str(tmp_path / "p.jsonl"))


def test_hub_layout_is_read_by_datasets_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"title": "T", "text": "x"}\n{"title": "U", "text": "y"}\n')
    (folder / "test.jsonl").write_text('{"title": "V", "text": "z"}\n')
    source = read_source(f"hub:{folder}@train", "data.x")
    assert [row["title"] for _, row in source.rows] == ["T", "U"]
    assert source.sha256 != read_source(f"hub:{folder}@test", "data.x").sha256
    with pytest.raises(InputError, match=r"data\.x must name one of the splits test, train"):
        read_source(f"hub:{folder}", "data.x")
    with pytest.raises(InputError, match=r"data\.x must name one of the splits test, train, got .*@dev'"):
        read_source(f"hub:{folder}@dev", "data.x")
    with pytest.raises(InputError, match=r"data\.x must be a loadable data set.*datasets says"):
        read_source(f"hub:{tmp_path}/none", "data.x")
