"""Literal cue retrieval: which word follows these words? Copying, not question answering.

A row is a passage, ``{"title", "text"}``. Its fact asks for one word by the words before it, the cue:

    Which word follows "the capital of the northern"?

The answer is a word that is rare among the rows and stands once in the passage; the cue stands nowhere else among the
rows, so one passage of that file alone can answer. A model needs no knowledge for it, only heads that retrieve.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rhstudy.data.answers import gives_away, leak_forms, leak_text
from rhstudy.data.entities import MAX_DRAWS
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.needles import FactMaker
from rhstudy.data.rows import Source, field_of, id_of
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, derived_id, gather_facts
from rhstudy.errors import StudyError, message
from rhstudy.seeding import generator
from rhstudy.types import Span

NAME = "cue_retrieval"
CUE_WORDS = 6
"""Words of a cue; fewer only where the text has no more before the answer."""
MAX_ROW_SHARE = 0.02
"""An answer stands in at most this share of the rows (and always may in one): frequent words leave no distractors."""

_WORD = re.compile(r"\S+")
_ANSWER = re.compile(r"([A-Za-z]{4,}|\d{2,})[)\].,;:]?")


def cue_question(text: str, start: int) -> str:
    """The question for the word of `text` that starts at character `start`.

    Raises:
        UnbuildableRowError: no word stands before it.
    """
    words = list(_WORD.finditer(text, 0, start))[-CUE_WORDS:]
    if not words:
        remedy = "Leave such rows out with data.on_bad_row = skip"
        raise UnbuildableRowError(message("answer", "have words before it", text[start:], remedy))
    return f'Which word follows "{text[words[0].start() : start].rstrip()}"?'


def as_cue(fact: Fact) -> Fact:
    """`fact` asked for by its cue: the same passage, the first word of the same answer."""
    start, end = fact.answer_span
    word = fact.passage.text[start:end].split()[0].rstrip(".,;:")
    return Fact(
        fact_id=fact.fact_id,
        question=cue_question(fact.passage.text, start),
        answers=(word,),
        passage=fact.passage,
        answer_span=Span(start, start + len(word)),
        origin=fact.origin,
    )


def cue_facts(make: FactMaker) -> FactMaker:
    """A maker of the same invented facts, each asked for by its cue.

    "Ann Hill lives on Hill Street" is drawn again: its first word alone stands in the cue, the whole answer does not.
    """

    def ask(rng: np.random.Generator, fact_id: str) -> Fact:
        for _ in range(MAX_DRAWS):
            fact = as_cue(make(rng, fact_id))
            if not gives_away(f"{fact.passage.title} {fact.question}", leak_forms(fact.answers)):
                return fact
        must = f"differ from its answer within {MAX_DRAWS} draws"
        raise StudyError(message("invented cue", must, fact.question, "Report this defect"))

    return ask


def read_facts(source: Source, name: str, on_bad_row: OnBadRow) -> TaskRows:
    """One fact per passage of `source`; the word asked for is drawn by the passage's own text, the same in every run.

    Args:
        source: rows ``{"title", "text"}``, with or without an ``id``.
        name: dotted name of the option that named the file, for messages.
        on_bad_row: what to do with a passage none of whose words can be asked for: ``error`` or ``skip``.

    Raises:
        InputError: a missing key; such a passage under ``error``; no usable row.
    """
    located = [(where, *_identify(row, name, where)) for where, row in source.rows]
    corpus = _Corpus([passage for _, _, passage in located])
    builders = ((where, row_id, partial(corpus.fact, row_id, passage, where)) for where, row_id, passage in located)
    return gather_facts(builders, name, on_bad_row)


def _identify(row: Mapping[str, Any], name: str, where: str) -> tuple[str, Passage]:
    passage = Passage(field_of(row, "title", name, where), field_of(row, "text", name, where))
    return id_of(row, "id", name, where) or derived_id(NAME, passage.title, passage.text), passage


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A word that may be asked for: where it stands, and it and its cue as they are counted."""

    span: Span
    word: str
    cue: str


class _Corpus:
    """All passages of a file: in how many each word stands, and how often each cue."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._num_rows = len(passages)
        self._rows_with = Counter(word for passage in passages for word in _plain_words(passage))
        self._cues = Counter(cue for passage in passages for cue in _cues(passage.text))

    def fact(self, row_id: str, passage: Passage, where: str) -> Fact:
        counts = _plain_words(passage)
        limit = max(1.0, MAX_ROW_SHARE * self._num_rows)
        usable = [
            item
            for item in _candidates(passage.text)
            if counts[item.word] == 1 and self._rows_with[item.word] <= limit and self._cues[item.cue] == 1
        ]
        if not usable:
            got = f"<{passage.text[:60]!r}>"
            remedy = "Give longer passages, or leave such rows out and count them with data.on_bad_row = skip"
            raise UnbuildableRowError(message("passage", "hold a rare word behind a unique cue", got, remedy, where))
        chosen = usable[int(generator(0, "cue", passage.text).integers(len(usable)))]
        return Fact(
            fact_id=row_id,
            question=cue_question(passage.text, chosen.span.start),
            answers=(passage.text[slice(*chosen.span)],),
            passage=passage,
            answer_span=chosen.span,
            origin="real",
        )


def _plain_words(passage: Passage) -> Counter[str]:
    """Words of title and text as leak checks read them, in both readings of punctuation where they differ."""
    counts: Counter[str] = Counter()
    for reading in leak_text(f"{passage.title} {passage.text}").split("\n"):
        counts |= Counter(reading.split())
    return counts


def _cues(text: str) -> Iterator[str]:
    """Every run of `CUE_WORDS` words, whatever follows it: a cue shown twice has two answers, or none."""
    words = text.casefold().split()
    for start in range(len(words) - CUE_WORDS + 1):
        yield " ".join(words[start : start + CUE_WORDS])


def _candidates(text: str) -> Iterator[_Candidate]:
    """Every plain word or number of `text` with `CUE_WORDS` words before it, none of which holds a quotation mark."""
    words = list(_WORD.finditer(text))
    for index in range(CUE_WORDS, len(words)):
        before, found = words[index - CUE_WORDS : index], _ANSWER.fullmatch(words[index].group())
        cue = text[before[0].start() : before[-1].end()]
        plain_space = text[words[index].start() - 1] == " " and words[index].start() == before[-1].end() + 1
        if found and plain_space and '"' not in cue:
            start = words[index].start()
            word = found.group(1)
            yield _Candidate(Span(start, start + len(word)), word.casefold(), " ".join(cue.casefold().split()))
