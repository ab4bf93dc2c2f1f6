"""Whatever a file holds, it is read or refused in one message that names file and line; no traceback."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from task_worlds import hotpot_row, musique_row, own_row, topic, two_wiki_row
from town_world import town_row

from rhstudy.data.examples_file import read_examples
from rhstudy.data.recorded_needles import RECORDED, read_rewritten
from rhstudy.data.rows import read_passages, read_source
from rhstudy.data.tasks.registry import TaskName, task_named
from rhstudy.errors import InputError, message

LOST_IN_THE_MIDDLE = {
    "question": "who built it",
    "answers": ["Ann Lee"],
    "ctxs": [{"title": "T", "text": "Ann Lee built it.", "isgold": True, "hasanswer": True}],
}
ROWS: dict[str, tuple[TaskName, Callable[[int], Any]]] = {
    "mdqa": ("mdqa", town_row),
    "lost in the middle": ("mdqa", lambda number: {**LOST_IN_THE_MIDDLE, "id": str(number)}),
    "musique": ("musique", musique_row),
    "two_wiki_multihop": ("musique", two_wiki_row),
    "hotpotqa": ("musique", hotpot_row),
    "hotpotqa on the hub": ("musique", lambda number: hotpot_row(number, columns=True)),
    "own": ("own", lambda number: {**own_row(number), "id": number, "group": "g"}),
    "cue_retrieval": ("cue_retrieval", lambda number: {"title": f"T {number}", "text": town_row(number)["gold_text"]}),
    "summhay": ("summhay", lambda number: topic(number, num_documents=30, sentences=2)),
}
DEEP = "[" * 50 + "]" * 50
ODD: list[Any] = [
    None, 0, 7, -1, 2.5, float("nan"), float("inf"), True, "", "  ", "x", "\ud800", "a\x00b", "no such id", [], {},
    [None], [[]], [["a"]], [[["b"]]], [1, 2], {"a": 1}, {"a": None, "b": []}, 10**400, json.loads(DEEP), "\u202e\u0301",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, but few of long lists."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    if isinstance(value, list):
        for index in range(min(len(value), 2)):
            yield from places(value[index], (*path, index))


def some(number: int, place: tuple[Any, ...]) -> list[Any]:
    """A quarter of the odd values, other ones at the next place, and nothing at all."""
    return [*ODD[number % 4 :: 4], *([...] if place else [])]


def changed(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    found = copy.deepcopy(row)
    at = found
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return found


def require_one_message(error: InputError, path: Path, line: str = r"line \d+|<0 rows>") -> None:
    told = str(error)
    assert "\n" not in told
    assert str(path) in told
    assert re.search(line, told), told


def read(task: TaskName, path: Path) -> int:
    """Read the rows as both settings do; returns how often the file was refused, in one message each time."""
    refused = 0
    for on_bad_row in ("error", "skip"):
        try:
            task_named(task).read_facts(read_source(str(path), "data.f"), "data.f", on_bad_row)  # type: ignore[arg-type]
        except InputError as error:
            refused += 1
            if "data.f must have at least one usable row" not in str(error):
                require_one_message(error, path)
    return refused


@pytest.mark.parametrize("layout", ROWS)
def test_every_odd_value_at_every_place_of_a_row(layout: str, tmp_path: Path) -> None:
    task, make = ROWS[layout]
    first, second, path = make(0), make(1), tmp_path / "rows.jsonl"
    refused = 0
    for number, place in enumerate(places(second)):
        for value in some(number, place):
            lines = [json.dumps(first), json.dumps(changed(second, place, value))]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            refused += read(task, path)
    assert refused > 0


@pytest.mark.parametrize("layout", ["mdqa", "musique", "hotpotqa", "own", "cue_retrieval", "summhay"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), at=st.floats(0, 1), noise=st.binary(max_size=8))
@example(cut=1.0, at=0.0, noise=b"")
@example(cut=0.0, at=0.0, noise=b"")
def test_torn_and_noisy_bytes(layout: str, tmp_path: Path, cut: float, at: float, noise: bytes) -> None:
    task, make = ROWS[layout]
    path = tmp_path / "rows.jsonl"
    content = "".join(json.dumps(make(number), ensure_ascii=False) + "\n" for number in range(2)).encode()
    middle = round(at * len(content))
    written = (content[:middle] + noise + content[middle:])[: round(cut * len(content))]
    path.write_bytes(written)
    refused = read(task, path)
    if written == content:
        assert refused == 0
    if not written.strip():
        assert refused == 2


FILES: dict[str, tuple[str, bytes]] = {
    "UTF-16": ("a.jsonl", json.dumps(town_row(0)).encode("utf-16")),
    "UTF-16 without a mark": ("a.jsonl", json.dumps(town_row(0)).encode("utf-16-le")),
    "UTF-32": ("a.jsonl", json.dumps(town_row(0)).encode("utf-32")),
    "Latin 1": ("a.jsonl", '{"title": "caf\xe9"}'.encode("latin-1")),
    "deep": ("a.jsonl", b'{"id": "1"}\n' + b"[" * 100_000),
    "deep and whole": ("a.jsonl", b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "deep, one value": ("a.json", b"[" * 100_000),
    "a number of 10,000 digits": ("a.jsonl", b'{"id": ' + b"1" * 10_000 + b"}"),
    "the same, one value": ("a.json", b'{"id": ' + b"1" * 10_000 + b"}"),
    "not a number": ("a.jsonl", b'{"id": NaN, "question": NaN, "answers": [Infinity]}'),
    "truncated": ("a.jsonl", b'{"id": "1", "question'),
    "no rows": ("a.jsonl", b"\n\n"),
    "a text": ("a.jsonl", b'"a text"'),
    "null": ("a.json", b"null"),
    "a million characters": ("a.jsonl", json.dumps({**town_row(0), "gold_text": "x " * 500_000}).encode()),
    "broken gzip": ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:12] + b"\xff" * 40),
    "Parquet": ("a.parquet", b"PAR1\x15\x04PAR1"),
    "Arrow": ("a.arrow", b"ARROW1\x00\x00"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("task", ["mdqa", "musique", "own", "cue_retrieval", "summhay"])
def test_odd_files(kind: str, task: TaskName, tmp_path: Path) -> None:
    name, content = FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^data\.f.* must .*, got ") as caught:
        task_named(task).read_facts(read_source(str(path), "data.f"), "data.f", "error")
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"^data\.passages_file.* must .*, got ") as caught:
        read_passages(str(path))
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"title": "T", "text": "x"}).encode("utf-8-sig"))
    assert read_passages(str(path))[0][0].title == "T"


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("a\x00b", "be a readable file"),
        ("x" * 5000, "be a readable file"),
        ("folder", "be a readable file"),
        ("empty", "have at least one row"),
    ],
)
def test_odd_paths(reference: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "folder.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=match):
        read_source(reference, "data.f")


@pytest.mark.parametrize("place", [("title",), ("text",)])
def test_every_odd_value_in_a_passage(place: tuple[str, ...], tmp_path: Path) -> None:
    path, refused = tmp_path / "passages.jsonl", 0
    for value in [*ODD, ...]:
        rows = [{"title": "T", "text": "x"}, changed({"title": "U", "text": "y"}, place, value)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            read_passages(str(path))
        except InputError as error:
            refused += 1
            require_one_message(error, path, "line 2")
    assert refused > 0


def use_recording(path: Path, task: str) -> None:
    if task == "summhay":
        read_rewritten(path).require_insights(True)
    else:
        read_rewritten(path).facts()


@pytest.mark.parametrize("task", ["mdqa", "musique", "summhay"])
def test_every_odd_value_in_a_recording(task: str, tmp_path: Path) -> None:
    lines = (RECORDED / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:14]
    refused = 0
    for number in (0, 2):
        for count, place in enumerate(places(json.loads(lines[number]))):
            for value in some(count, place):
                path = tmp_path / "recording.jsonl"
                new = json.dumps(changed(json.loads(lines[number]), place, value))
                path.write_text("\n".join([*lines[:number], new, *lines[number + 1 :]]), encoding="utf-8")
                read_rewritten.cache_clear()
                try:
                    use_recording(path, task)
                except InputError as error:
                    refused += 1
                    where = rf"line {number + 1}\b|be a recording of version|hold facts, not|line \d+\)\. Mend"
                    require_one_message(error, path, where)
    assert refused > 0


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("Parquet", "Arrow", "broken gzip")])
def test_odd_files_are_no_recordings(kind: str, tmp_path: Path) -> None:
    path = tmp_path / FILES[kind][0]
    path.write_bytes(FILES[kind][1])
    with pytest.raises(InputError, match=r"^re(cording|written needles).* must ") as caught:
        use_recording(path, "mdqa")
    assert str(path) in str(caught.value)


def test_a_folder_and_recordings_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rewritten needles must be a readable file"):
        read_rewritten(tmp_path)
    with pytest.raises(InputError, match=r"must hold facts \(any other task\), got <insights \(task summhay\)>"):
        use_recording(RECORDED / "summhay.jsonl", "mdqa")
    with pytest.raises(InputError, match=r"must hold insights \(task summhay\), got <facts \(any other task\)>"):
        use_recording(RECORDED / "mdqa.jsonl", "summhay")


def test_ids_twice_in_a_recording(tmp_path: Path) -> None:
    lines = (RECORDED / "mdqa.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([*lines, lines[3]]), encoding="utf-8")
    match = r"rewritten needles\.id must be unique among first attempts, got 'mdqa-00002' \(.*line 21\)"
    with pytest.raises(InputError, match=match):
        read_rewritten(path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_odd_files_are_no_examples(suffix: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    contents = [content for _, content in FILES.values()]
    for number, content in enumerate([b"", *contents]):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^examples file must "):
            read_examples(path, chat_tokenizer)
    with pytest.raises(InputError, match=r"^examples file must "):
        read_examples(tmp_path / f"none{suffix}", chat_tokenizer)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match=r"^examples file must "):
        read_examples(tmp_path / f"folder{suffix}", chat_tokenizer)


def test_parquet_files_of_other_kinds_are_no_examples(tmp_path: Path, chat_tokenizer: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    tables = [
        {"needles": [None], "metadata": ["{}"]},
        {"needles": [[]], "metadata": [None]},
        {"needles": [[]], "metadata": ["[" * 100_000]},
        {"needles": [[{"char_span": ["a", "b"]}]], "metadata": ["{}"]},
        {"needles": [1], "metadata": ["{}"]},
    ]
    for number, columns in enumerate(tables):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=r"^examples file must "):
            read_examples(path, chat_tokenizer)


def test_examples_with_odd_values_are_refused(tmp_path: Path, chat_tokenizer: Any) -> None:
    span = {name: [0, 1] for name in ("char_span", "token_span", "answer_char_span", "answer_token_span")}
    row = {
        **dict.fromkeys(("example_id", "task", "recipe", "question", "prompt", "answer"), "x"),
        "answers": ["x"], "needles": [span], "metadata": {"a": 1}, "prompt_ids_sha256": "0", "answer_ids_sha256": "0",
    }  # fmt: skip
    for place in places(row):
        for value in [*ODD, ...] if place else ODD:
            path = tmp_path / "examples.jsonl"
            path.write_text(json.dumps(changed(row, place, value)) + "\n", encoding="utf-8")
            with pytest.raises(InputError) as caught:
                read_examples(path, chat_tokenizer)
            assert str(path) in str(caught.value) or "tokenizer must" in str(caught.value)


def test_values_of_too_many_levels_are_named_and_not_printed() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert "got <a list of too many levels>" in message("x", "be text", value, "Mend it")
