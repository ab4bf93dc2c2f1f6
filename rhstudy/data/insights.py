"""Invented insights and the documents that hold them, for tasks whose answer is the numbers of documents.

A document is a few statements, one of which may be the insight asked for. Every gold document words it for itself:
alike (``templated``), in one of over 40 ways (``templated_diverse``) or as a language model did (``rewritten``);
``symbolic`` documents are ``key = value`` pairs, and the key is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.data.entities import Entities, EntitySource
from rhstudy.data.facts import Fact, Gold, Passage
from rhstudy.data.needles import FactMaker, symbols
from rhstudy.data.recorded_needles import read_rewritten
from rhstudy.data.relations import FRAMES, INSIGHTS, InsightKind
from rhstudy.types import Span

NUM_GOLD = (2, 3, 4)
"""Documents that hold an invented insight are drawn from these counts."""
NUM_OTHERS = 3
"""Other statements in every document."""
TAILS = (
    "",
    ", a figure that surprised many",
    ", which was widely discussed",
    ", as a later check confirmed",
    ", more than anybody had expected",
    ", and the matter was settled",
    ", which made the front page",
)
WORDINGS = tuple(frame.removesuffix(".") + tail + "." for tail in TAILS for frame in FRAMES)
"""Ways to state a clause; all distinct, over 40."""


def citation_question(query: str, insight: str) -> str:
    """What is asked about an insight."""
    return f"{query} Insight: {insight}"


class InventedInsights:
    """A maker of invented insights with their documents.

    Args:
        num_wordings: ways to state an insight, the first so many.
        origin: ``templated`` or ``templated_diverse``.
        entity_source: where names come from.
    """

    def __init__(self, num_wordings: int, origin: Any = "templated", entity_source: EntitySource = "faker") -> None:
        self._num_wordings, self._origin, self._entities = num_wordings, origin, Entities(entity_source)

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One insight; its documents are the fact's gold passages."""
        self._entities.reseed(rng)
        kind = INSIGHTS[int(rng.integers(len(INSIGHTS)))]
        clause = self._clause(kind)
        documents = []
        for _ in range(NUM_GOLD[int(rng.integers(len(NUM_GOLD)))]):
            others = [other for other in INSIGHTS if other is not kind]
            chosen = [others[index] for index in rng.permutation(len(others))[:NUM_OTHERS].tolist()]
            sentences = [self._worded(clause, rng), *(self._worded(self._clause(other), rng) for other in chosen)]
            documents.append(_document(self._entities.draw("company"), sentences, rng))
        return cited(documents, citation_question(kind.query, f"{clause}."), fact_id, self._origin, clause)

    def _clause(self, kind: InsightKind) -> str:
        slots: dict[str, str] = {}
        for slot in re.findall(r"{(\w+)}", kind.statement):
            slots[slot] = self._entities.percent() if slot == "percent" else self._entities.draw(slot)
        return kind.statement.format(**slots).removesuffix(".")

    def _worded(self, clause: str, rng: np.random.Generator) -> str:
        count = min(self._num_wordings, len(WORDINGS))
        return WORDINGS[int(rng.integers(count)) if count > 1 else 0].format(clause=clause)


class RewrittenInsights:
    """A maker of insights from a recording; its documents are put together from recorded wordings."""

    def __init__(self, path: Path) -> None:
        self._groups = [list(rows) for rows in read_rewritten(path).groups.values()]

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One insight with as many documents as it has wordings, two at least."""
        order = rng.permutation(len(self._groups)).tolist()
        rows, pool = self._groups[order[0]], iter(self._groups[index] for index in order[1:])
        asked: Mapping[str, Any] = rows[0]["facts"]
        documents = []
        for number in range(max(len(rows), NUM_GOLD[0])):
            sentences = [str(rows[number % len(rows)]["text"])]
            while len(sentences) < 1 + NUM_OTHERS:
                other = next(pool)
                if other[0]["facts"]["insight"] != asked["insight"]:
                    sentences.append(str(other[int(rng.integers(len(other)))]["text"]))
            documents.append(_document(" ".join(symbols(rng, 2)), sentences, rng))
        question = citation_question(asked["query"], str(rows[0]["statement"]))
        return cited(documents, question, fact_id, "rewritten", str(rows[0]["statement"]))


def symbolic_citation(rng: np.random.Generator, fact_id: str) -> Fact:
    """Documents of ``key = value`` pairs; those that hold one key are asked for."""
    num_gold = NUM_GOLD[int(rng.integers(len(NUM_GOLD)))]
    words = symbols(rng, 1 + num_gold * (1 + 2 * NUM_OTHERS) + num_gold)
    key, rest = words[0], iter(words[1:])
    documents = []
    for _ in range(num_gold):
        pairs = [f"{key} = {next(rest)};", *(f"{next(rest)} = {next(rest)};" for _ in range(NUM_OTHERS))]
        documents.append(_document(next(rest), pairs, rng))
    return cited(documents, f"Which documents give a value for {key}?", fact_id, "symbolic", key)


def _document(title: str, sentences: Sequence[str], rng: np.random.Generator) -> Passage:
    order = rng.permutation(len(sentences)).tolist()
    return Passage(title, " ".join(sentences[index] for index in order))


def cited(documents: Sequence[Passage], question: str, fact_id: str, origin: Any, asked: str) -> Fact:
    """A fact whose answer is the numbers of its documents; no other document states what is `asked` for."""
    return Fact(
        fact_id=fact_id,
        question=question,
        answers=(),
        passage=documents[-1],
        answer_span=Span(0, 0),
        origin=origin,
        further=tuple(Gold(document) for document in documents[:-1]),
        hidden=(asked,),
        cites=True,
    )


def insight_maker(kind: str, num_templates: int, entity_source: EntitySource, recording: Path) -> FactMaker:
    """What draws insights in one wording; `recording` is read for ``rewritten`` ones alone."""
    if kind == "symbolic":
        return symbolic_citation
    if kind == "rewritten":
        return RewrittenInsights(recording)
    diverse = kind == "templated_diverse"
    count = num_templates or (len(WORDINGS) if diverse else 1)
    return InventedInsights(count, "templated_diverse" if diverse else "templated", entity_source)
