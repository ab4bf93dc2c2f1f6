"""MDQA: questions with one gold passage each (NQ-Open as in Liu et al. 2023, "Lost in the Middle", arXiv 2307.03172).

Two layouts are read, told apart by their keys:

- ours: ``{"id", "question", "answers": [...], "title", "gold_text"}``;
- lost-in-the-middle (``nq-open-oracle.jsonl.gz``): ``{"question", "answers", "ctxs": [{"title", "text",
  "isgold" | "hasanswer"}, ...]}``; the gold passage is the first ``isgold`` one, else the first ``hasanswer`` one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from rhstudy.data.answers import find_answer, leak_forms
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.rows import Source, field_of, id_of, texts_of
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, derived_id, gather_facts
from rhstudy.errors import InputError, message, require

NAME = "mdqa"


def read_facts(source: Source, name: str, on_bad_row: OnBadRow) -> TaskRows:
    """Turn every row of `source` into a fact.

    Args:
        source: rows of one file.
        name: dotted name of the option that named the file, for messages.
        on_bad_row: ``error`` raises at the first row without a usable answer or with an id seen before; ``skip``
            leaves such rows out and tells why. A missing key is an error in both.

    Raises:
        InputError: a missing key; a bad row under ``error``; no usable row.
    """
    return gather_facts(_builders(source, name), name, on_bad_row)


def _builders(source: Source, name: str) -> Iterator[tuple[str, str, Callable[[], Fact]]]:
    for where, row in source.rows:
        row_id, title, text = _identify(row, name, where)
        yield where, row_id, partial(_fact, row, row_id, Passage(title, text), name, where)


def _identify(row: Mapping[str, Any], name: str, where: str) -> tuple[str, str, str]:
    """(row id, title, gold text) of either layout."""
    question = field_of(row, "question", name, where)
    if "gold_text" in row or "ctxs" not in row:
        title, text = field_of(row, "title", name, where), field_of(row, "gold_text", name, where)
    else:
        gold = _gold_context(row["ctxs"], name, where)
        title, text = field_of(gold, "title", f"{name}.ctxs", where), field_of(gold, "text", f"{name}.ctxs", where)
    return id_of(row, "id", name, where) or derived_id(NAME, question, title, text), title, text


def _gold_context(contexts: Any, name: str, where: str) -> Mapping[str, Any]:
    usable = isinstance(contexts, list) and all(isinstance(item, dict) for item in contexts)
    require(usable, f"{name}.ctxs", "be a list of passages", contexts, "Mend the row", where)
    for key in ("isgold", "hasanswer"):
        for item in contexts:
            if item.get(key):
                return dict(item)
    got = f"<{len(contexts)} passages, none marked>"
    raise InputError(message(f"{name}.ctxs", "mark a passage as isgold or hasanswer", got, "Mend the row", where))


def _fact(row: Mapping[str, Any], row_id: str, passage: Passage, name: str, where: str) -> Fact:
    answers: Any = row.get("answers")
    usable = isinstance(answers, list) and len(answers) > 0 and all(isinstance(item, str) for item in answers)
    require(usable, f"{name}.answers", "be a list of texts", answers, "Mend the row", where)
    answers = [item for item in texts_of(row, "answers", name, where, least=0) if leak_forms([item])]
    span = find_answer(passage.text, answers)
    if span is None:
        remedy = "Mend the row, or leave such rows out and count them with data.on_bad_row = skip"
        must = "hold one of the row's answers at word boundaries"
        raise UnbuildableRowError(message(f"{name}.gold_text", must, answers, remedy, f"row {row_id}, {where}"))
    return Fact(
        fact_id=row_id,
        question=field_of(row, "question", name, where),
        answers=tuple(answers),
        passage=passage,
        answer_span=span,
        origin="real",
        where=where,
    )


def first_word_in(fact: Fact, words: tuple[str, ...]) -> bool:
    """Whether the question starts with one of `words`, case ignored; every question does when `words` is empty."""
    start = fact.question.split()[0].casefold()
    return not words or start in {word.casefold() for word in words}
