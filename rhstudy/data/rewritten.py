"""Rewritten needles: what is to be worded by a language model, and when a wording is accepted.

What is to be worded (`rewrite_items`) follows from a seed. A writer words it, `check_rewrite` judges, what is
refused is asked for again, and every text goes into one JSONL file with its verdict (`rhstudy.data.rewriting`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rhstudy.data.answers import find_answer, leak_text
from rhstudy.data.entities import MAX_DRAWS, Entities
from rhstudy.data.needles import HOPS
from rhstudy.data.relations import INSIGHTS, RELATIONS, Kind, Relation, chain_relations
from rhstudy.errors import StudyError, message
from rhstudy.seeding import generator

RewriteTask = Literal["mdqa", "musique", "summhay"]
MAX_CHARS = 320
MIN_WORDS = 5
MAX_SENTENCES = 3
WORDINGS_PER_INSIGHT = 3
MAX_SHARED_WORDS = 5
"""Words in a row that a wording may share with an example of the prompt."""
REPEATS = ("seen before", "copies an example")
"""Reasons to refuse a text that states its fact: it adds no wording. They do not count against a writer."""
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
        refuted: regular expression of which no wording may hold a match; empty for none.
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
    refuted: str = ""


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
        refuted=relation.refuted,
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
            refuted=kind.refuted,
            facts=facts,
        )
        for wording in range(WORDINGS_PER_INSIGHT)
    ]


class OtherAnswers:
    """The names and values of all items, to be looked for in wordings of others; and the examples of the prompts.

    Args:
        items: all of a file; their numbers need no look, since a wording may have none but its own.
        further: other names that no wording may hold, for instance those of the prompt's examples.
        examples: wordings that no wording may repeat more than `MAX_SHARED_WORDS` words in a row of.
    """

    def __init__(self, items: Sequence[RewriteItem], further: Sequence[str] = (), examples: Sequence[str] = ()) -> None:
        self._runs = {run for example in examples for run in _runs(example)}
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

    def copies(self, text: str) -> bool:
        """Whether `text` repeats an example."""
        return not self._runs.isdisjoint(_runs(text))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return (tuple(words[start : start + MAX_SHARED_WORDS + 1]) for start in range(len(words) - MAX_SHARED_WORDS))


def _forms(text: str) -> list[str]:
    return [line.strip() for line in leak_text(text).split("\n") if line.strip()]


def check_rewrite(text: str, item: RewriteItem, others: OtherAnswers) -> str:
    """Why `text` is no wording of `item`, or an empty string when it states the fact and nothing else's answer.

    Asked for: one line of at least `MIN_WORDS` words and at most `MAX_CHARS` characters, at most `MAX_SENTENCES` whole
    sentences without markup or denial; every required name spelled exactly so, the answer once and behind a space; a
    match of the relation's evidence and none of what refutes it; the numbers of the plain sentence, once each, and no
    other; no name or value of another item; other words than the plain sentence and the examples.
    """
    checks = (_shape, _names, _statement)
    refused = next(filter(None, (check(text, item) for check in checks)), "")
    foreign = "" if refused else others.found_in(text, item)
    return refused or (f"holds {foreign}" if foreign else "copies an example" if others.copies(text) else "")


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
    marked = _marked(text, item)
    if not re.search(item.evidence, marked, re.IGNORECASE):
        return "does not state the relation"
    if item.refuted and re.search(item.refuted, marked, re.IGNORECASE):
        return "states something else"
    return "denies or doubts" if _NEGATION.search(text.lower()) else ""


def _marked(text: str, item: RewriteItem) -> str:
    """`text` with its names replaced by what they are."""
    marks = ("SUBJECT", "VALUE") if item.answer else [_mark(name) for name in item.required]
    for name, mark in zip(item.required, marks, strict=True):
        text = text.replace(name, mark)
    return text


def _mark(name: str) -> str:
    return "NUMBER" if name.isdigit() else "NAME"


def usable_items(accepted: Container[str], items: Sequence[RewriteItem]) -> list[RewriteItem]:
    """The items whose wordings make needles: all accepted ones, but of a chain its last hops alone, at least two.

    Args:
        accepted: ids of items with an accepted wording.
        items: in the order of `rewrite_items`.
    """
    usable: list[RewriteItem] = []
    for _, group in itertools.groupby(items, key=lambda item: item.group):
        members = list(group)
        kept = [item for item in members if item.item_id in accepted]
        if members[0].answer and members[0].item_id != members[0].group:
            kept = _last_hops(members, kept)
        usable += kept
    return usable


def _last_hops(members: Sequence[RewriteItem], kept: Sequence[RewriteItem]) -> list[RewriteItem]:
    """Those of `kept` that lead from hop to hop to the last one; none where they are fewer than two."""
    hops = {item.facts["hop"]: item for item in kept}
    last = members[-1].facts["hop"]
    first = next((hop + 1 for hop in range(last, -1, -1) if hop not in hops), 0)
    return [hops[hop] for hop in range(first, last + 1)] if members[-1].copied and last > first else []
