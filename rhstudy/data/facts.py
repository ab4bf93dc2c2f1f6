"""The two things a prompt is made of: passages, and the fact (a passage with a question) that is the needle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rhstudy.errors import InputError
from rhstudy.types import Span

Origin = Literal["real", "templated", "symbolic"]


class UnbuildableRowError(InputError):
    """One row cannot become an example; `data.on_bad_row` decides whether that ends the build or is counted."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A titled text without line breaks.

    Attributes:
        title: the document's title; the subject of a synthetic needle.
        text: one paragraph.
    """

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A question, its gold answers, and the passage that answers it.

    Attributes:
        fact_id: unique among facts of its source; the row's id for real facts.
        question: as asked.
        answers: accepted gold answers, at least one.
        passage: the needle.
        answer_span: characters of the answer in `passage.text`.
        origin: the concept expression that made it.
    """

    fact_id: str
    question: str
    answers: tuple[str, ...]
    passage: Passage
    answer_span: Span
    origin: Origin

    @property
    def answer(self) -> str:
        """The answer as the needle spells it."""
        return self.passage.text[slice(*self.answer_span)]


def one_line(text: str) -> str:
    """`text` stripped, with line breaks turned into single spaces: blank lines separate documents in a prompt."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
