"""Recordings of rewritten needles, read without a model: accepted texts as facts or as insights.

The checks are made again when a recording is read, so that a check that was added later leaves recordings valid: texts
that it refuses are left out.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rhstudy.data.answers import find_answer
from rhstudy.data.facts import Fact, Gold, Passage
from rhstudy.data.needles import chained
from rhstudy.data.recorded_rows import check_header, check_row
from rhstudy.data.relations import ALL_RELATIONS, INSIGHTS
from rhstudy.data.rewritten import REPEATS, OtherAnswers, RewriteItem, RewriteTask, check_rewrite, usable_items
from rhstudy.data.rows import BAD_JSON, read_bytes
from rhstudy.errors import InputError, message, require

KIND = "rhstudy rewritten needles"
VERSIONS = (1, 2)
"""Layouts of recordings: the last is written, all are read. In version 1 one item is passed over after each batch."""

RECORDED = Path(__file__).parent / "recorded"
"""Recordings that are part of this package, one a task: `rhstudy/data/recorded/README.md` says who wrote them."""


def rewritten_path(task: str, rewritten_file: str = "") -> Path:
    """The recording of rewritten needles that a recipe of `task` reads."""
    return (
        Path(rewritten_file)
        if rewritten_file
        else RECORDED / f"{task if task in get_args(RewriteTask) else 'mdqa'}.jsonl"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrittenNeedles:
    """The accepted texts of a recording.

    Attributes:
        path: the file.
        sha256: of the file.
        header: its first line.
        groups: group -> its rows (facts and accepted text): the hops of a chain in order, from the first after which
            none is missing; all accepted wordings of an insight.
        num_texts: texts written.
        num_accepted: texts that state their fact, repeats (`rhstudy.data.rewritten.REPEATS`) among them.
    """

    path: Path
    sha256: str
    header: Mapping[str, Any]
    groups: Mapping[str, Sequence[Mapping[str, Any]]]
    num_texts: int
    num_accepted: int

    def facts(self) -> list[Fact]:
        """Questions with their needles: single facts, or chains with the needle of each hop.

        Raises:
            InputError: the recording is one of insights.
        """
        self.require_insights(False)
        return [_fact(group, rows) for group, rows in self.groups.items()]

    def require_insights(self, wanted: bool) -> None:
        """Check that the recording holds insights, or facts where those are `wanted` not.

        Raises:
            InputError: it holds the other kind.
        """
        found = any("insight" in row["facts"] for rows in self.groups.values() for row in rows)
        kinds = {True: "insights (task summhay)", False: "facts (any other task)"}
        must, got = f"hold {kinds[wanted]}", f"<{kinds[found]}>"
        require(found is wanted, "rewritten needles", must, got, "Give a recording of the task", str(self.path))


@functools.cache
def read_rewritten(path: Path) -> RewrittenNeedles:
    """Read a recording; no model is needed.

    Raises:
        InputError: a missing or unreadable file, a line that is no row, or no group that can be used.
    """
    content = read_bytes(path, "rewritten needles")
    lines = content.splitlines()
    header = parse_line(lines[0] if lines else b"", path, 1)
    known = header.get("kind") == KIND and header.get("version") in VERSIONS
    remedy = "Make one with `rhstudy rewrite`"
    require(
        known, "rewritten needles", f"be a recording of version {VERSIONS[-1]}", header.get("kind"), remedy, str(path)
    )
    check_header(header, f"{path}, line 1")
    rows = [parse_line(line, path, number) for number, line in enumerate(lines[1:], start=2)]
    asked: set[str] = set()
    for number, row in enumerate(rows, start=2):
        check_row(row, asked, f"{path}, line {number}")
    groups = _groups(rows, verdicts := _verdicts(rows, header))
    require(bool(groups), "rewritten needles", "hold a usable group", "<none>", remedy, str(path))
    _check_facts(groups, path)
    return RewrittenNeedles(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        header=header,
        groups=groups,
        num_texts=len(rows),
        num_accepted=sum(reason in ("", *REPEATS) for reason in verdicts),
    )


def _check_facts(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """The groups of a file are all facts or all insights."""
    kinds = {"insight" in row["facts"] for rows in groups.values() for row in rows}
    must, remedy = "hold facts or insights, not both", "Make a recording for each with `rhstudy rewrite`"
    require(len(kinds) == 1, "rewritten needles", must, "<both>", remedy, str(path))


def item_of(row: Mapping[str, Any]) -> RewriteItem:
    """The item that a row of a first attempt asked for.

    Raises:
        KeyError: a value is missing, or the relation or insight is not known here.
    """
    facts = row["facts"]
    known = {kind.name: kind for kind in (*ALL_RELATIONS, *INSIGHTS)}
    kind = known[facts["insight"] if "insight" in facts else facts["relation"]]
    return RewriteItem(
        item_id=row["id"],
        group=row["group"],
        statement=row["statement"],
        required=tuple(row["required"]),
        answer=row["answer"],
        copied=row["copied"],
        evidence=kind.evidence,
        refuted=kind.refuted,
        facts=facts,
    )


def _verdicts(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> list[str]:
    """Why each text is refused: the reason that was recorded, else that of the checks as they are now."""
    items = {row["id"]: item_of(row) for row in rows if row["attempt"] == 0}
    examples = [shot[1] for voice in header.get("prompts", {}).values() for shot in voice["examples"]]
    known = OtherAnswers((), examples=examples)
    return [row["refused"] or check_rewrite(row["text"], items[row["id"]], known) for row in rows]


def _groups(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    asked = {row["id"]: row for row in rows if row["attempt"] == 0}
    texts = {row["id"]: row["text"] for row, refused in zip(rows, verdicts, strict=True) if not refused}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in usable_items(texts, [item_of(row) for row in asked.values()]):
        groups.setdefault(item.group, []).append({**asked[item.item_id], "text": texts[item.item_id]})
    return groups


def _fact(group: str, rows: Sequence[Mapping[str, Any]]) -> Fact:
    relations = {relation.name: relation for relation in ALL_RELATIONS}
    golds = []
    for row in rows:
        span = find_answer(row["text"], [row["answer"]])
        where = f"group {group}"
        if span is None:
            raise InputError(message("rewritten needle", "hold its answer", row["text"], "Record it again", where))
        golds.append(Gold(Passage(row["facts"]["subject"], row["text"]), span))
    chosen = [relations[row["facts"]["relation"]] for row in rows]
    return chained(chosen, rows[0]["facts"]["subject"], golds, group, "rewritten")


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One JSON object of a recording.

    Raises:
        InputError: it is none; names the line.
    """
    where = f"{path}, line {number}"
    try:
        values = json.loads(line.decode("utf-8"))
    except BAD_JSON as error:
        must, got = "hold one JSON object a line", repr(line[:60])
        raise InputError(message("recording", must, got, f"The parser says: {error}", where)) from error
    require(isinstance(values, dict), "recording", "hold one JSON object a line", values, "Mend it", where)
    return dict(values)
