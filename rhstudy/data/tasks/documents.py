"""A user's own task: a question, its answers, and documents, some of which are marked as gold.

One JSON object a line:

    {"question": "Who founded the town that Ann Hill was born in?",
     "answers": ["Ruth Vale"],
     "documents": [{"title": "Ann Hill", "text": "Ann Hill was born in Velm.", "gold": true, "answers": ["Velm"]},
                   {"title": "Velm", "text": "Velm was founded by Ruth Vale.", "gold": true},
                   {"title": "Zan", "text": "Zan lies by the sea."}],
     "id": "1", "group": "towns"}

Gold documents are the needles, in the order in which they lead on (``gold`` or ``is_supporting`` marks them); the
answer is the first of ``answers`` that stands in the last of them. ``answers`` of an earlier one are its hop's.
Where none is marked, the first document that holds an answer is the gold one. The other documents are distractors of
the row's own, used before any others; those that give the answer away are left out and counted. ``id`` (else made from
the row's texts) and ``group`` (rows of one group stay in one part of the data) may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rhstudy.data.answers import find_answer, gives_away, leak_forms, leak_text
from rhstudy.data.facts import Fact, Gold, Passage, UnbuildableRowError
from rhstudy.data.layout import document_text
from rhstudy.data.rows import Source, field_of, id_of, objects_of, texts_of
from rhstudy.data.runs import ngrams
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, derived_id, gather_facts
from rhstudy.errors import InputError, message, require

NAME = "own"
_REMEDY = "Mend the row, or leave such rows out and count them with data.on_bad_row = skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row of any layout, its gold passages told apart from the others.

    Attributes:
        row_id: unique in the file.
        question: as asked.
        answers: accepted answers, in order of preference.
        golds: (passage, spellings of its hop's answer), in the order of the hops; the answer stands in the last.
        others: the row's own distractors.
        hidden: further texts that no padding may state.
        labels: what a named subset of the rows is cut by.
        group: see `Fact`.
        name: dotted name of the option that named the file, for messages.
        where: file and line.
    """

    row_id: str
    question: str
    answers: tuple[str, ...]
    golds: Sequence[tuple[Passage, Sequence[str]]]
    others: Sequence[Passage]
    hidden: Sequence[str] = ()
    labels: tuple[str, ...] = ()
    group: str = ""
    name: str
    where: str

    def unusable(self, must: str, got: Any) -> UnbuildableRowError:
        """The error for a row that cannot become an example."""
        return UnbuildableRowError(message(self.name, must, got, _REMEDY, f"row {self.row_id}, {self.where}"))


def read_facts(source: Source, name: str, on_bad_row: OnBadRow) -> TaskRows:
    """Turn every row of `source` into a fact; args and errors as `rhstudy.data.tasks.mdqa.read_facts`."""
    rows = ((where, row_id_of(row, NAME, name, where), partial(_fact, row, name, where)) for where, row in source.rows)
    return gather_facts(rows, name, on_bad_row)


def _fact(row: Mapping[str, Any], name: str, where: str) -> Fact:
    return fact_of(own_question(row, name, where))


def row_id_of(row: Mapping[str, Any], prefix: str, name: str, where: str) -> str:
    """The row's ``id`` or ``_id``, else one made from its question."""
    given = id_of(row, "id" if "id" in row else "_id", name, where)
    return given or derived_id(prefix, field_of(row, "question", name, where))


def own_question(row: Mapping[str, Any], name: str, where: str) -> Question:
    """A row in the format of the module docstring.

    Raises:
        InputError: a field is missing or of another kind.
        UnbuildableRowError: no gold document is marked and none holds an answer.
    """
    answers = texts_of(row, "answers", name, where)
    documents = objects_of(row, "documents", name, where)
    passages = [passage_of(item, f"{name}.documents[{number}]", where) for number, item in enumerate(documents)]
    marked = [number for number, item in enumerate(documents) if item.get("gold") or item.get("is_supporting")]
    row_id = row_id_of(row, NAME, name, where)
    if not marked:
        marked = [number for number, passage in enumerate(passages) if find_answer(passage.text, answers)][:1]
    if not marked:
        must, got = "mark a document as gold, or have one that holds an answer", f"<{len(documents)} documents>"
        raise UnbuildableRowError(message(f"{name}.documents", must, got, _REMEDY, f"row {row_id}, {where}"))
    golds = [
        (passages[number], texts_of(documents[number], "answers", f"{name}.documents[{number}]", where, least=0))
        for number in marked
    ]
    return Question(
        row_id=row_id,
        question=field_of(row, "question", name, where),
        answers=answers,
        golds=golds,
        others=[passage for number, passage in enumerate(passages) if number not in marked],
        group=id_of(row, "group", name, where),
        name=name,
        where=where,
    )


def passage_of(item: Mapping[str, Any], name: str, where: str, text: str = "text") -> Passage:
    """A titled text; errors as `field_of`."""
    return Passage(field_of(item, "title", name, where), field_of(item, text, name, where))


def fact_of(asked: Question) -> Fact:
    """The fact of a row: its needles with the answers in them, its own distractors free of the answer.

    Raises:
        UnbuildableRowError: the answer is not in the last gold passage, at word boundaries.
    """
    answers = tuple(answer.strip() for answer in asked.answers if leak_forms([answer]))
    hops = _merged(asked.golds)
    last = hops[-1][0]
    span = find_answer(last.text, answers)
    if span is None:
        raise asked.unusable("hold one of the row's answers in its last gold passage", list(asked.answers))
    spans = [find_answer(passage.text, spellings) for passage, spellings in hops[:-1]]
    secrets = [text for (_, spellings) in hops for text in spellings[:1]] + list(asked.hidden)
    free = _free(asked.others, [passage for passage, _ in hops], answers)
    return Fact(
        fact_id=asked.row_id,
        question=asked.question,
        answers=answers,
        passage=last,
        answer_span=span,
        origin="real",
        further=tuple(Gold(passage, at) for (passage, _), at in zip(hops[:-1], spans, strict=True)),
        given=tuple(free),
        hidden=tuple(_secret(secrets, asked.question, answers)),
        labels=asked.labels,
        group=asked.group,
        num_left_out=len(asked.others) - len(free),
        where=asked.where,
    )


def _merged(golds: Sequence[tuple[Passage, Sequence[str]]]) -> list[tuple[Passage, list[str]]]:
    """Each passage once, at its last hop, with the spellings of all of its hops."""
    found: dict[Passage, list[str]] = {}
    for passage, spellings in golds:
        found[passage] = [*found.pop(passage, []), *spellings]
    return list(found.items())


def _free(others: Sequence[Passage], golds: Sequence[Passage], answers: Sequence[str]) -> list[Passage]:
    """Distractors that state no answer, have no gold title and repeat no gold passage."""
    forms, titles = leak_forms(answers), {leak_text(gold.title) for gold in golds}
    runs = set().union(*(ngrams(gold.text) for gold in golds))
    return [
        passage
        for passage in dict.fromkeys(others)
        if leak_text(passage.title) not in titles
        and not gives_away(document_text(passage), forms)
        and runs.isdisjoint(ngrams(passage.text))
    ]


def _secret(texts: Sequence[str], question: str, answers: Sequence[str]) -> list[str]:
    """Texts that neither the question nor the answer names."""
    known = f"{question} \n {' '.join(answers)}"
    return [text for text in dict.fromkeys(texts) if leak_forms([text]) and not gives_away(known, leak_forms([text]))]


def require_layout(row: Mapping[str, Any], name: str, where: str, known: Mapping[str, str]) -> str:
    """The layout of a row: the first of `known` (key -> layout) whose key the row has.

    Raises:
        InputError: none.
    """
    for key, layout in known.items():
        if key in row:
            return layout
    require(bool(known), name, "be read by some layout", known, "Report this defect")
    keys = " or ".join(known)
    raise InputError(message(name, f"have {keys}", f"<keys {', '.join(row) or 'none'}>", "Mend the row", where))
