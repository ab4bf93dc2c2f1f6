"""Invented insights and the documents that hold them, for tasks whose answer is the numbers of documents.

A document is a few statements, one of which may be the insight asked for. Every gold document words it for itself:
alike (``templated``), in one of over 40 ways (``templated_diverse``) or as a language model did (``rewritten``);
``symbolic`` documents are ``key = value`` pairs, and the key is asked for.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.data.entities import Entities, EntitySource
from rhstudy.data.facts import Fact, Gold, Passage
from rhstudy.data.needles import FactMaker, symbols
from rhstudy.data.recorded_needles import read_rewritten
from rhstudy.data.relations import FRAMES, INSIGHTS, InsightKind
from rhstudy.errors import require
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
    """A maker of insights from a recording; its documents are put together from recorded wordings.

    Args:
        path: the recording.

    Raises:
        InputError: it holds facts, or too few insights to fill the documents of one with others.
    """

    def __init__(self, path: Path) -> None:
        recording = read_rewritten(path)
        recording.require_insights(True)
        self._groups = recording.groups
        kinds = Counter(_kind(rows) for rows in self._groups.values())
        most = max(map(_num_documents, self._groups.values()))
        least, must = most * NUM_OTHERS, f"hold {most * NUM_OTHERS} insights of other kinds beside each"
        enough = all(len(self._groups) - count >= least for count in kinds.values())
        got = f"<{len(self._groups)} insights of {len(kinds)} kinds>"
        require(enough, "rewritten needles", must, got, "Record more of them with `rhstudy rewrite`", str(path))

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        """One insight at random."""
        names = list(self._groups)
        return self.stated(names[int(rng.integers(len(names)))], rng, fact_id)

    def each(self) -> list[FactMaker]:
        """A maker for every insight, in the order of the recording; its name is the fact's id."""
        return [partial(self._named, name) for name in self._groups]

    def _named(self, name: str, rng: np.random.Generator, fact_id: str) -> Fact:
        del fact_id
        return self.stated(name, rng, name)

    def stated(self, name: str, rng: np.random.Generator, fact_id: str) -> Fact:
        """The insight called `name` with as many documents as it has wordings, two at least.

        Every wording of it is hidden: no other document of a prompt may show one.
        """
        rows, asked = self._groups[name], self._groups[name][0]
        others = [group for group in self._groups.values() if _kind(group) != _kind(rows)]
        chosen = iter(rng.permutation(len(others))[: _num_documents(rows) * NUM_OTHERS].tolist())
        documents = []
        for number in range(_num_documents(rows)):
            further = [others[index] for index in itertools.islice(chosen, NUM_OTHERS)]
            sentences = [str(group[int(rng.integers(len(group)))]["text"]) for group in further]
            sentences.append(str(rows[number % len(rows)]["text"]))
            documents.append(_document(" ".join(symbols(rng, 2)), sentences, rng))
        question = citation_question(asked["facts"]["query"], str(asked["statement"]))
        hidden = (str(asked["statement"]), *(str(row["text"]) for row in rows))
        return cited(documents, question, fact_id, "rewritten", *hidden)


def _kind(rows: Sequence[Mapping[str, Any]]) -> str:
    """What an insight of a recording is about."""
    return str(rows[0]["facts"]["insight"])


def _num_documents(rows: Sequence[Mapping[str, Any]]) -> int:
    """Documents that an insight of a recording is put into."""
    return max(len(rows), NUM_GOLD[0])


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


def cited(documents: Sequence[Passage], question: str, fact_id: str, origin: Any, *asked: str) -> Fact:
    """A fact whose answer is the numbers of its documents; no other document states what is `asked` for, in any of
    these wordings."""
    return Fact(
        fact_id=fact_id,
        question=question,
        answers=(),
        passage=documents[-1],
        answer_span=Span(0, 0),
        origin=origin,
        further=tuple(Gold(document) for document in documents[:-1]),
        hidden=asked,
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
