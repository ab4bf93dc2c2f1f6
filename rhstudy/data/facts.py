"""The two things a prompt is made of: passages, and the fact (a passage with a question) that is the needle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rhstudy.errors import InputError
from rhstudy.types import Span

Origin = Literal["real", "rewritten", "templated_diverse", "templated", "symbolic"]


class UnbuildableRowError(InputError):
    """One row cannot become an example; `data.on_bad_row` decides whether that ends the build or is counted."""


class LeftOutRowError(UnbuildableRowError):
    """A sound row that the task's own rules leave out; always counted, whatever `data.on_bad_row` says."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A titled text without line breaks.

    Attributes:
        title: the document's title; the subject of a synthetic needle.
        text: one paragraph.
    """

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Gold:
    """One passage that a question cannot be answered without.

    Attributes:
        passage: the needle.
        answer_span: characters of its hop's answer in `passage.text`; None where the passage has none of its own.
    """

    passage: Passage
    answer_span: Span | None = None

    @property
    def answer(self) -> str:
        """The hop's answer as the passage spells it, empty without one."""
        return self.passage.text[slice(*self.answer_span)] if self.answer_span else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A question, its gold answers, and the passage (or several) that answers it.

    Attributes:
        fact_id: unique among facts of its source; the row's id for real facts.
        question: as asked.
        answers: accepted gold answers, at least one.
        passage: the needle.
        answer_span: characters of the answer in `passage.text`.
        origin: the concept expression that made it.
        further: the other gold passages: earlier hops in the order of the question, or the other cited documents.
        given: distractors that belong to the row itself (MuSiQue's other paragraphs); used before any others.
        hidden: answers of hops, beside those in `further`, that no padding may state.
        cites: the answer is the numbers of the gold documents, known once they are placed; `answer_span` is empty.
        group: rows of one group stay in one part of the data (a topic); empty = rows that share a gold passage do.
        cluster: rows of one cluster are no independent rows (sub-haystacks of one insight); empty = the row itself.
        labels: what a named subset of the rows is cut by, for instance relations.
        num_left_out: distractors of the row itself that give something away and were left out.
        num_excerpts: gold documents that were cut to what of them is nearest to the question.
        draw: how often this row was used before in the same data set; from the second time on its padding is another.
        where: file and line of the row, for messages.
    """

    fact_id: str
    question: str
    answers: tuple[str, ...]
    passage: Passage
    answer_span: Span
    origin: Origin
    further: tuple[Gold, ...] = ()
    given: tuple[Passage, ...] = ()
    hidden: tuple[str, ...] = ()
    cites: bool = False
    group: str = ""
    cluster: str = ""
    labels: tuple[str, ...] = ()
    num_left_out: int = 0
    num_excerpts: int = 0
    draw: int = 0
    where: str = field(default="", compare=False)

    @property
    def golds(self) -> tuple[Gold, ...]:
        """Every gold passage; the one with the answer is the last."""
        return (*self.further, Gold(self.passage, None if self.cites else self.answer_span))

    @property
    def hop_answers(self) -> tuple[str, ...]:
        """Every answer but the final one."""
        spelled = (gold.answer for gold in self.further)
        return tuple(dict.fromkeys(text for text in (*spelled, *self.hidden) if text))

    @property
    def place(self) -> str:
        """The row's id and where it stands, for messages."""
        return f"row {self.fact_id}, {self.where}" if self.where else f"row {self.fact_id}"

    @property
    def answer(self) -> str:
        """The answer as the needle spells it."""
        return self.passage.text[slice(*self.answer_span)]


def one_line(text: str) -> str:
    """`text` stripped, with line breaks turned into single spaces: blank lines separate documents in a prompt."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
