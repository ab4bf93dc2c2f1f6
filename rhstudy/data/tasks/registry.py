"""The tasks by name: how rows become facts, how a prompt of the task reads, how invented facts are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, Passage
from rhstudy.data.layout import CITED_DOCUMENTS, CUE_DOCUMENTS, CUE_LINES, DOCUMENTS, LINES, Layout
from rhstudy.data.needles import FactMaker
from rhstudy.data.rows import Source
from rhstudy.data.tasks import cue_retrieval, documents, mdqa, musique, summhay
from rhstudy.data.tasks.reading import OnBadRow, TaskRows

TaskName = Literal["mdqa", "musique", "summhay", "own", "cue_retrieval"]
Fitted = tuple[Fact, Iterator[Passage]]
_BM25_NOTE = "Distractors are found by BM25 (bm25s)"


def _as_they_are(fact: Fact, stream: Iterator[Passage], num_tokens: int, encoder: Encoder) -> Fitted:
    del num_tokens, encoder
    return fact, stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: as in configs.
        read_facts: rows of a file -> facts.
        documents: layout of prompts whose passages are documents.
        lines: layout of prompts whose passages are ``key = value`` lines.
        ask: invented facts, asked for as the task asks.
        note: what its numbers are, for data cards.
        fit: (fact, distractors, prompt tokens, encoder) -> fact and distractors made to fit the prompt.
        held_out: the rows that held-out parts make of a fact.
    """

    name: TaskName
    read_facts: Callable[[Source, str, OnBadRow], TaskRows]
    note: str
    documents: Layout = DOCUMENTS
    lines: Layout = LINES
    ask: Callable[[FactMaker], FactMaker] = lambda make: make
    fit: Callable[[Fact, Iterator[Passage], int, Encoder], Fitted] = _as_they_are
    held_out: Callable[[Fact], list[Fact]] = lambda fact: [fact]


_TASKS: dict[TaskName, Task] = {
    "mdqa": Task(
        name="mdqa",
        read_facts=mdqa.read_facts,
        note=f"{_BM25_NOTE}, not by Contriever as in the original MDQA data.",
    ),
    "musique": Task(
        name="musique",
        read_facts=musique.read_facts,
        note=f"The row's own paragraphs come first, then padding that states no hop's answer. {_BM25_NOTE}.",
    ),
    "summhay": Task(
        name="summhay",
        read_facts=summhay.read_facts,
        documents=CITED_DOCUMENTS,
        lines=CITED_DOCUMENTS,
        note="Gold is annotated per document, not per span. Where prompts are short, documents are cut to the "
        "sentences nearest to the insight, gold or not; num_gold_excerpts counts gold documents that were.",
        fit=summhay.fitted,
        held_out=summhay.sub_haystacks,
    ),
    "own": Task(
        name="own",
        read_facts=documents.read_facts,
        note=f"The row's own documents come first. {_BM25_NOTE}.",
    ),
    "cue_retrieval": Task(
        name="cue_retrieval",
        read_facts=cue_retrieval.read_facts,
        documents=CUE_DOCUMENTS,
        lines=CUE_LINES,
        ask=cue_retrieval.cue_facts,
        note=f"Literal cue retrieval: the word behind a cue is copied; this is not question answering. {_BM25_NOTE}.",
    ),
}
TASKS: tuple[TaskName, ...] = get_args(TaskName)


def task_named(name: TaskName) -> Task:
    """The task called `name`."""
    return _TASKS[name]
