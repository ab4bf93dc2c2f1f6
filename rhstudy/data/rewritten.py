"""`rewritten` needles: invented facts worded by a language model, each wording checked, all of it recorded.

What is to be worded (`rewrite_items`) follows from a seed. A writer words it, `check_rewrite` judges, what is
refused is asked for again, and every text goes into one JSONL file with its verdict. That file is the cache: the same
command goes on where it was killed and ends with the same bytes, and recipes read it without any model.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rhstudy.data.answers import find_answer, leak_text
from rhstudy.data.entities import MAX_DRAWS, Entities
from rhstudy.data.facts import Fact, Gold, Passage
from rhstudy.data.needles import HOPS, chained
from rhstudy.data.relations import ALL_RELATIONS, INSIGHTS, RELATIONS, Kind, Relation, chain_relations
from rhstudy.data.rows import read_bytes
from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.seeding import generator

RewriteTask = Literal["mdqa", "musique", "summhay"]
KIND = "rhstudy rewritten needles"
VERSION = 1
MAX_CHARS = 320
MIN_WORDS = 5
MAX_SENTENCES = 3
WORDINGS_PER_INSIGHT = 3
_NEGATION = re.compile(
    r"\b(not|never|no longer|neither|nor|without|refus\w*|den(y|ied)|false\w*|rumou?r\w*|chance|maybe|perhaps|might)\b"
    r"|n't\b"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[\"“'(]?[A-Z]|\s*$)")
_MARKUP = re.compile(r"[\n\r\t#*_`<>{}|\\\[\]=]")
_NUMBER = re.compile(r"\d+")
_PLAIN = re.compile(r"[^\W_][\w'’ -]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteItem:
    """One plain sentence to be worded anew.

    Attributes:
        item_id: unique in a file.
        group: items that are usable together only (the hops of a chain); equal to `item_id` for single facts.
        statement: the plain sentence.
        required: names and numbers that every wording must spell exactly so.
        answer: the one of `required` that is asked for; empty for insights.
        copied: whether the answer is what a model has to copy: it must then occur once, behind a space. Answers of a
            chain's first hops are not.
        evidence: regular expression of which every wording must hold a match.
        facts: what was invented, as plain values: relation, subject, value, hop, or the slots of an insight.
    """

    item_id: str
    group: str
    statement: str
    required: tuple[str, ...]
    answer: str
    copied: bool
    evidence: str
    facts: Mapping[str, Any]


def rewrite_items(task: RewriteTask, seed: int, count: int) -> list[RewriteItem]:
    """At least `count` items of a task, whole groups only; a longer list begins with a shorter one.

    Args:
        task: ``mdqa`` single facts, ``musique`` chains of 2 to 4 facts (each answer is the next subject), ``summhay``
            insights, each to be worded `WORDINGS_PER_INSIGHT` times.
        seed: of the facts.
        count: least number of items.
    """
    items: list[RewriteItem] = []
    taken: set[str] = set()
    entities, number = Entities(), 0
    makers = {"mdqa": _single, "musique": _chain, "summhay": _insight}
    while len(items) < count:
        entities.reseed(rng := generator(seed, "rewritten", task, number))
        group = makers[task](f"{task}-{number:05d}", entities, int(rng.integers(2**31)))
        names = {name.casefold() for item in group for name in _own_names(item)}
        if names.isdisjoint(taken):
            taken |= names
            items += group
        number += 1
    return items


def _own_names(item: RewriteItem) -> tuple[str, ...]:
    """Names that no two items may share: a person with two employers would make both facts wrong."""
    facts = item.facts
    if "slots" in facts:
        return tuple(value for slot, value in facts["slots"].items() if slot != "percent")
    return (facts["subject"], *([facts["value"]] if facts["value_kind"] in ("name", "company") else []))


def _item(
    item_id: str, group: str, relation: Relation, subject: str, value: str, hop: int, last: bool = True
) -> RewriteItem:
    return RewriteItem(
        item_id=item_id,
        group=group,
        statement=relation.statement.format(subject=subject, value=value),
        required=(subject, value),
        answer=value,
        copied=last,
        evidence=relation.evidence,
        facts={"relation": relation.name, "subject": subject, "value": value, "value_kind": relation.value, "hop": hop},
    )


def _draw_value(entities: Entities, relation: Relation, *others: str) -> str:
    """A value that shares no word with `others`: "Hill Street" of Ann Hill could be found in her name."""
    words = {word for text in others for word in leak_text(text).split()}
    for _ in range(MAX_DRAWS):
        value = _plain(entities, relation.value)
        if words.isdisjoint(leak_text(value).split()):
            return value
    must = f"differ from its subject within {MAX_DRAWS} draws"
    raise StudyError(message(f"invented {relation.name}", must, value, "Report this defect"))


def _plain(entities: Entities, kind: Kind) -> str:
    """A name without commas, titles and long rows of words: small models do not spell those twice alike."""
    for _ in range(MAX_DRAWS):
        name = entities.draw(kind)
        if _PLAIN.fullmatch(name) and len(name.split()) <= 2:
            return name
    raise StudyError(message(f"invented {kind}", f"be plain within {MAX_DRAWS} draws", name, "Report this defect"))


def _single(group: str, entities: Entities, choice: int) -> list[RewriteItem]:
    relation = RELATIONS[choice % len(RELATIONS)]
    subject = _plain(entities, relation.subject)
    return [_item(group, group, relation, subject, _draw_value(entities, relation, subject), 0)]


def _chain(group: str, entities: Entities, choice: int) -> list[RewriteItem]:
    num_hops, choice = HOPS[choice % len(HOPS)], choice // len(HOPS)
    names, items = [_plain(entities, "company" if choice % 2 else "name")], []
    for hop, relation in enumerate(chain_relations(choice, num_hops)):
        names.append(_draw_value(entities, relation, *names))
        last = hop == num_hops - 1
        items.append(_item(f"{group}-{hop}", group, relation, names[-2], names[-1], hop, last))
    return items


def _insight(group: str, entities: Entities, choice: int) -> list[RewriteItem]:
    kind = INSIGHTS[choice % len(INSIGHTS)]
    slots = {
        slot: entities.percent() if slot == "percent" else _plain(entities, slot)
        for slot in re.findall(r"{(\w+)}", kind.statement)
    }
    facts = {"insight": kind.name, "query": kind.query, "slots": slots}
    return [
        RewriteItem(
            item_id=f"{group}-{wording}",
            group=group,
            statement=kind.statement.format(**slots),
            required=tuple(slots.values()),
            answer="",
            copied=False,
            evidence=kind.evidence,
            facts=facts,
        )
        for wording in range(WORDINGS_PER_INSIGHT)
    ]


def _marked(text: str, names: Sequence[str], is_fact: bool) -> str:
    """`text` with its names replaced by what they are."""
    for name, mark in zip(names, ("SUBJECT", "VALUE") if is_fact else ("NAME",) * len(names), strict=True):
        text = text.replace(name, mark)
    return text


class OtherAnswers:
    """The names and values of all items, to be looked for in wordings of others.

    Args:
        items: all of a file; their numbers need no look, since a wording may have none but its own.
        further: other names that no wording may hold, for instance those of the prompt's examples.
    """

    def __init__(self, items: Sequence[RewriteItem], further: Sequence[str] = ()) -> None:
        names = itertools.chain(further, (name for item in items for name in item.required if not name.isdigit()))
        self._known = {form for name in names for form in _forms(name)}
        self._longest = max((len(form.split()) for form in self._known), default=0)

    def found_in(self, text: str, item: RewriteItem) -> str:
        """The first name or value in `text` that is none of `item`'s own; empty when there is none."""
        own = [form for name in item.required for form in _forms(name)]
        for line in leak_text(text).split("\n"):
            words = line.split()
            for start in range(len(words)):
                for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                    form = " ".join(words[start:end])
                    if form in self._known and not any(f" {form} " in f" {name} " for name in own):
                        return form
        return ""


def _forms(text: str) -> list[str]:
    return [line.strip() for line in leak_text(text).split("\n") if line.strip()]


def check_rewrite(text: str, item: RewriteItem, others: OtherAnswers) -> str:
    """Why `text` is no wording of `item`, or an empty string when it states the fact and nothing else's answer.

    Asked for: one line of at least `MIN_WORDS` words and at most `MAX_CHARS` characters, at most `MAX_SENTENCES` whole
    sentences without markup or denial; every required name spelled exactly so, the answer once and behind a space; a
    match of the relation's evidence; the numbers of the plain sentence, once each, and no other; no name or value of
    another item; other words than the plain sentence.
    """
    checks = (_shape, _names, _statement)
    refused = next(filter(None, (check(text, item) for check in checks)), "")
    foreign = "" if refused else others.found_in(text, item)
    return refused or (f"holds {foreign}" if foreign else "")


def _shape(text: str, item: RewriteItem) -> str:
    if not text or text != text.strip() or _MARKUP.search(text):
        return "not one plain line"
    ends = len(_SENTENCE_END.findall(text))
    if len(text.split()) < MIN_WORDS or len(text) > MAX_CHARS or not 1 <= ends <= MAX_SENTENCES or text[-1] not in ".!":
        return "length"
    return "only the plain sentence" if leak_text(text) == leak_text(item.statement) else ""


def _names(text: str, item: RewriteItem) -> str:
    missing = [name for name in item.required if find_answer(text, [name]) is None or name not in text]
    if missing:
        return f"misses {missing[0]}"
    if item.copied:
        if leak_text(text).split("\n")[0].count(f" {_forms(item.answer)[0]} ") != 1:
            return "states the answer more than once"
        if f" {item.answer}" not in text:
            return "no space before the answer"
    given = _NUMBER.findall(item.statement)
    return "" if sorted(_NUMBER.findall(text)) == sorted(given) else "a number of its own"


def _statement(text: str, item: RewriteItem) -> str:
    if not re.search(item.evidence, _marked(text, item.required, bool(item.answer)), re.IGNORECASE):
        return "does not state the relation"
    return "denies or doubts" if _NEGATION.search(text.lower()) else ""


def usable_groups(verdicts: Mapping[str, bool], items: Sequence[RewriteItem]) -> Iterator[str]:
    """Groups of which every item has an accepted wording (insights: at least one of its wordings)."""
    groups: dict[str, list[RewriteItem]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for group, members in groups.items():
        accepted = [verdicts.get(item.item_id, False) for item in members]
        if any(accepted) if not members[0].answer else all(accepted):
            yield group


_KIN = r"\b(sons?|daughters?|siblings?|brothers?|sisters?|parents?|mother|father"
CONTRADICTIONS: Mapping[str, str] = {
    "spouse": _KIN + r"|divorced)\b",
    "teacher": r"VALUE\b.{0,60}\b(studied|studying|trained) under (SUBJECT|her|his)|taught VALUE|studied (at|in) VALUE's",
    "founder": r"VALUE's (father|mother|wife|husband|brother|sister)",
    "delays": r"\bearly\b",
    "tickets": r"\bprices?\b",
    "rents": r"\b(fell|fall|dropp\w*|decreas\w*|own\w*)\b",
}
"""Relation or insight -> what no wording of it may match, names replaced as for its evidence.

Looked for when a recording is read, not when it is written: a pattern added later leaves recordings valid.
"""

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
        groups: group -> its rows (facts and accepted text), hops in order; whole groups only.
        num_texts: texts written.
        num_accepted: texts accepted, and not `contradicted`.
    """

    path: Path
    sha256: str
    header: Mapping[str, Any]
    groups: Mapping[str, Sequence[Mapping[str, Any]]]
    num_texts: int
    num_accepted: int

    def facts(self) -> list[Fact]:
        """Questions with their needles: single facts, or chains with the needle of each hop (not for insights)."""
        return [_fact(group, rows) for group, rows in self.groups.items()]


@functools.cache
def read_rewritten(path: Path) -> RewrittenNeedles:
    """Read a recording; no model is needed.

    Raises:
        InputError: a missing or unreadable file, a line that is no row, a text that its own plain sentence contradicts
            (the recording was changed by hand), or no whole group.
    """
    content = read_bytes(path, "rewritten needles")
    lines = content.splitlines()
    header = parse_line(lines[0] if lines else b"", path, 1)
    known = header.get("kind") == KIND and header.get("version") == VERSION
    remedy = "Make one with `rhstudy rewrite`"
    require(known, "rewritten needles", f"be a recording of version {VERSION}", header.get("kind"), remedy, str(path))
    rows = [parse_line(line, path, number) for number, line in enumerate(lines[1:], start=2)]
    try:
        groups = _groups(rows)
    except (KeyError, TypeError) as error:
        must, got = "hold id, attempt, text, refused and facts", f"<{type(error).__name__}: {error}>"
        raise InputError(message("rewritten needles", must, got, remedy, str(path))) from error
    require(bool(groups), "rewritten needles", "hold a whole group", "<none>", remedy, str(path))
    return RewrittenNeedles(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        header=header,
        groups=groups,
        num_texts=len(rows),
        num_accepted=_num_accepted(rows),
    )


def _num_accepted(rows: Sequence[Mapping[str, Any]]) -> int:
    asked = {row["id"]: row for row in rows if row["attempt"] == 0}
    return sum(not row["refused"] and not contradicted(row["text"], asked[row["id"]]) for row in rows)


def contradicted(text: str, asked: Mapping[str, Any]) -> bool:
    """Whether an accepted text says something else after all (`CONTRADICTIONS`).

    Args:
        text: the wording.
        asked: its row, or that of its first attempt, with ``required``, ``answer`` and ``facts``.
    """
    facts = asked["facts"]
    pattern = CONTRADICTIONS.get(str(facts.get("relation", facts.get("insight"))))
    marked = _marked(text, asked["required"], bool(asked["answer"]))
    return pattern is not None and re.search(pattern, marked, re.IGNORECASE) is not None


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    asked = {row["id"]: row for row in rows if row["attempt"] == 0}
    texts = {
        row["id"]: row["text"] for row in rows if not row["refused"] and not contradicted(row["text"], asked[row["id"]])
    }
    members: dict[str, list[Mapping[str, Any]]] = {}
    for item_id, row in asked.items():
        members.setdefault(row["group"], []).append({**row, "text": texts.get(item_id, "")})
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for group, found in members.items():
        hops = [row["facts"].get("hop") for row in found]
        whole = all(row["text"] for row in found) and (hops[-1] is None or bool(found[-1]["copied"]))
        kept = [row for row in found if row["text"]] if hops[0] is None else found if whole else []
        if kept:
            groups[group] = kept
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
    except ValueError as error:
        must, got = "hold one JSON object a line", repr(line[:60])
        raise InputError(message("recording", must, got, f"The parser says: {error}", where)) from error
    require(isinstance(values, dict), "recording", "hold one JSON object a line", values, "Mend it", where)
    return dict(values)
