"""The tasks by name: how rows become facts, how a prompt of the task reads, how invented facts are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from rhstudy.data.layout import CUE_DOCUMENTS, CUE_LINES, DOCUMENTS, LINES, Layout
from rhstudy.data.needles import FactMaker
from rhstudy.data.rows import Source
from rhstudy.data.tasks import cue_retrieval, mdqa
from rhstudy.data.tasks.reading import OnBadRow, TaskRows

TaskName = Literal["mdqa", "cue_retrieval"]
_BM25_NOTE = "Distractors are found by BM25 (bm25s)"


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
    """

    name: TaskName
    read_facts: Callable[[Source, str, OnBadRow], TaskRows]
    documents: Layout
    lines: Layout
    ask: Callable[[FactMaker], FactMaker]
    note: str


_TASKS: dict[TaskName, Task] = {
    "mdqa": Task(
        name="mdqa",
        read_facts=mdqa.read_facts,
        documents=DOCUMENTS,
        lines=LINES,
        ask=lambda make: make,
        note=f"{_BM25_NOTE}, not by Contriever as in the original MDQA data.",
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
