"""Multi-hop questions: MuSiQue-Ans, 2WikiMultihopQA, HotpotQA, or a user's own rows with several gold documents.

Three layouts are read, told apart by their keys; every one comes as JSON lines or from the hub:

- MuSiQue (Trivedi et al. 2022, arXiv 2108.00573): ``question_decomposition`` names, hop by hop, the paragraph
  (``paragraph_support_idx``) and the intermediate answer; its 20 ``paragraphs`` are the row's own.
- 2WikiMultihopQA (Ho et al. 2020) and HotpotQA (Yang et al. 2018): ``supporting_facts`` name titles of ``context``, as
  pairs or as columns. The hop's answer of an earlier passage is what ``evidences`` say of its title, else the title of
  another gold passage that it names. Questions answered by yes or no have no answer to retrieve and are rejected.
- ``documents``, see `rhstudy.data.tasks.documents`.

The final answer must stand in the last hop's passage. No padding states any hop's answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rhstudy.data.answers import find_answer
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.rows import BAD_JSON, Source, field_of, id_of, objects_of, text_of, texts_of
from rhstudy.data.tasks.documents import Question, fact_of, own_question, passage_of, require_layout, row_id_of
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, gather_facts
from rhstudy.errors import message, require

NAME = "musique"
_LAYOUTS = {"question_decomposition": "musique", "supporting_facts": "supporting", "documents": "own"}


def read_facts(source: Source, name: str, on_bad_row: OnBadRow) -> TaskRows:
    """Turn every row of `source` into a fact; args and errors as `rhstudy.data.tasks.mdqa.read_facts`."""
    rows = ((where, row_id_of(row, NAME, name, where), partial(_fact, row, name, where)) for where, row in source.rows)
    return gather_facts(rows, name, on_bad_row)


def _fact(row: Mapping[str, Any], name: str, where: str) -> Fact:
    readers = {"musique": _decomposed, "supporting": _supported, "own": own_question}
    return fact_of(readers[require_layout(row, name, where, _LAYOUTS)](row, name, where))


def _decomposed(row: Mapping[str, Any], name: str, where: str) -> Question:
    """A MuSiQue row."""
    row_id, paragraphs = row_id_of(row, NAME, name, where), objects_of(row, "paragraphs", name, where)
    passages: dict[str, Passage] = {}
    for number, item in enumerate(paragraphs):
        label = f"{name}.paragraphs[{number}]"
        index = id_of(item, "idx", label, where) or str(number)
        require(index not in passages, f"{label}.idx", "be unique in its row", index, "Mend the row", where)
        passages[index] = passage_of(item, label, where, "paragraph_text")
    steps = objects_of(row, "question_decomposition", name, where)
    golds, relations, used = [], [], set()
    for number, step in enumerate(steps):
        label = f"{name}.question_decomposition[{number}]"
        index = id_of(step, "paragraph_support_idx", label, where)
        if index not in passages:
            must, remedy = "name one of the paragraphs", "Questions without an answer in the paragraphs cannot be used"
            got = step.get("paragraph_support_idx")
            raise UnbuildableRowError(
                message(f"{label}.paragraph_support_idx", must, got, remedy, f"row {row_id}, {where}")
            )
        used.add(index)
        golds.append((passages[index], [field_of(step, "answer", label, where)]))
        relations.append(field_of(step, "question", label, where).rpartition(">>")[2].strip())
    return Question(
        row_id=row_id,
        question=field_of(row, "question", name, where),
        answers=(field_of(row, "answer", name, where), *texts_of(row, "answer_aliases", name, where, least=0)),
        golds=golds,
        others=[passage for index, passage in passages.items() if index not in used],
        labels=tuple(dict.fromkeys(relations)),
        name=name,
        where=where,
    )


def _supported(row: Mapping[str, Any], name: str, where: str) -> Question:
    """A row of 2WikiMultihopQA or HotpotQA."""
    answer, row_id = field_of(row, "answer", name, where), row_id_of(row, NAME, name, where)
    passages = _context(row, name, where)
    supporting = enumerate(_tuples(row, "supporting_facts", 2, name, where))
    titles = list(
        dict.fromkeys(text_of(title, f"{name}.supporting_facts[{at}]", where) for at, (title, _) in supporting)
    )
    missing = [title for title in titles if title not in passages]
    remedy = "Mend the row, or leave such rows out and count them with data.on_bad_row = skip"
    if missing or not titles:
        must = "name titles of the row's context"
        raise UnbuildableRowError(message(f"{name}.supporting_facts", must, missing, remedy, f"row {row_id}, {where}"))
    last = next((title for title in reversed(titles) if find_answer(passages[title].text, [answer])), None)
    if last is None:
        must = "be stated by a supporting passage (answers such as yes and no are not to be retrieved)"
        raise UnbuildableRowError(message(f"{name}.answer", must, answer, remedy, f"row {row_id}, {where}"))
    order = [*(title for title in titles if title != last), last]
    said = _evidences(row, name, where)
    golds = [(passages[title], _bridges(title, order, passages[title], said)) for title in order]
    return Question(
        row_id=row_id,
        question=field_of(row, "question", name, where),
        answers=(answer,),
        golds=golds,
        others=[passage for title, passage in passages.items() if title not in titles],
        hidden=[triple[2] for triple in said],
        labels=tuple(dict.fromkeys(triple[1] for triple in said)) or (id_of(row, "type", name, where),),
        name=name,
        where=where,
    )


def _context(row: Mapping[str, Any], name: str, where: str) -> dict[str, Passage]:
    """Title -> passage; sentences are joined."""
    found: dict[str, Passage] = {}
    for number, (given, sentences) in enumerate(_tuples(row, "context", 2, name, where)):
        label = f"{name}.context[{number}]"
        parts = sentences if isinstance(sentences, list) else [sentences]
        texts = isinstance(given, str) and all(isinstance(part, str) for part in parts)
        usable = texts and bool(given.strip()) and bool("".join(parts).strip())
        require(usable, label, "be a title with sentences", [given, sentences], "Mend the row", where)
        title = text_of(given, label, where)
        found.setdefault(title, Passage(title, text_of(" ".join(part.strip() for part in parts), label, where)))
    return found


def _tuples(row: Mapping[str, Any], key: str, size: int, name: str, where: str) -> list[tuple[Any, ...]]:
    """The first `size` values of each entry under `key`: of a list of lists, of columns (as the hub has them), or of
    either as JSON text."""
    require(key in row, f"{name}.{key}", "be given", "<nothing>", f"Keys found: {', '.join(row)}", where)
    value: Any = row[key]
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value, Mapping):
            value = [list(entry) for entry in zip(*list(value.values())[:size], strict=True)]
        usable = isinstance(value, list) and all(isinstance(entry, list) and len(entry) >= size for entry in value)
        told = f"lists of at least {size} values are wanted"
    except (TypeError, *BAD_JSON) as error:
        usable, told = False, f"{type(error).__name__}: {error}"
    must = "be pairs or two columns" if size == 2 else f"be lists of {size} values or {size} columns"
    require(usable, f"{name}.{key}", must, row[key], f"Mend the row: {told}", where)
    return [tuple(entry[:size]) for entry in value]


def _evidences(row: Mapping[str, Any], name: str, where: str) -> list[tuple[str, str, str]]:
    """(subject, relation, object) of 2WikiMultihopQA; empty for others."""
    if not row.get("evidences"):
        return []
    found = []
    for number, triple in enumerate(_tuples(row, "evidences", 3, name, where)):
        subject, relation, value = (text_of(item, f"{name}.evidences[{number}]", where) for item in triple)
        found.append((subject, relation, value))
    return found


def _bridges(title: str, order: Sequence[str], passage: Passage, said: Sequence[tuple[str, str, str]]) -> list[str]:
    """What leads on from a passage: what the evidences say of its title, else other gold titles that it names."""
    objects = [triple[2] for triple in said if triple[0] == title]
    named = [other for other in order if other != title and find_answer(passage.text, [other])]
    return [text for text in (*objects, *named) if find_answer(passage.text, [text])]
