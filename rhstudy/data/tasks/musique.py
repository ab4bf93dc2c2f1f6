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
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError, one_line
from rhstudy.data.rows import Source, field_of, objects_of, texts_of
from rhstudy.data.tasks.documents import Question, fact_of, own_question, passage_of, require_layout, row_id_of
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, gather_facts
from rhstudy.errors import InputError, message, require

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
    passages = {
        item.get("idx", number): passage_of(item, f"{name}.paragraphs[{number}]", where, "paragraph_text")
        for number, item in enumerate(paragraphs)
    }
    steps = objects_of(row, "question_decomposition", name, where)
    golds, relations = [], []
    for number, step in enumerate(steps):
        label, index = f"{name}.question_decomposition[{number}]", step.get("paragraph_support_idx")
        if index not in passages:
            must, remedy = "name one of the paragraphs", "Questions without an answer in the paragraphs cannot be used"
            raise UnbuildableRowError(
                message(f"{label}.paragraph_support_idx", must, index, remedy, f"row {row_id}, {where}")
            )
        golds.append((passages[index], [field_of(step, "answer", label, where)]))
        relations.append(field_of(step, "question", label, where).rpartition(">>")[2].strip())
    used = {step["paragraph_support_idx"] for step in steps}
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
    titles = list(dict.fromkeys(one_line(str(pair[0])) for pair in _pairs(row, "supporting_facts", name, where)))
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
    said = _evidences(row)
    golds = [(passages[title], _bridges(title, order, passages[title], said)) for title in order]
    return Question(
        row_id=row_id,
        question=field_of(row, "question", name, where),
        answers=(answer,),
        golds=golds,
        others=[passage for title, passage in passages.items() if title not in titles],
        hidden=[triple[2] for triple in said],
        labels=tuple(dict.fromkeys(triple[1] for triple in said)) or (str(row.get("type", "")),),
        name=name,
        where=where,
    )


def _context(row: Mapping[str, Any], name: str, where: str) -> dict[str, Passage]:
    """Title -> passage; sentences are joined."""
    found: dict[str, Passage] = {}
    for number, (title, sentences) in enumerate(_pairs(row, "context", name, where)):
        parts = sentences if isinstance(sentences, list) else [sentences]
        text = one_line(" ".join(str(sentence).strip() for sentence in parts))
        label = f"{name}.context[{number}]"
        require(bool(text) and bool(str(title).strip()), label, "be a title with sentences", title, "Mend the row",
                where)  # fmt: skip
        found.setdefault(one_line(str(title)), Passage(one_line(str(title)), text))
    return found


def _pairs(row: Mapping[str, Any], key: str, name: str, where: str) -> list[tuple[Any, Any]]:
    """The pairs under `key`: a list of pairs, two columns (as the hub has them), or either as JSON text."""
    require(key in row, f"{name}.{key}", "be given", "<nothing>", f"Keys found: {', '.join(row)}", where)
    value: Any = row[key]
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value, Mapping):
            first, second = (value[column] for column in list(value)[:2])
            value = list(zip(first, second, strict=True))
        return [(item[0], item[1]) for item in value]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        remedy = f"Mend the row: {type(error).__name__}: {error}"
        raise InputError(message(f"{name}.{key}", "be pairs or two columns", str(value)[:80], remedy, where)) from error


def _evidences(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(subject, relation, object) of 2WikiMultihopQA; empty for others."""
    value: Any = row.get("evidences") or []
    try:
        value = json.loads(value) if isinstance(value, str) else value
        value = zip(*value.values(), strict=True) if isinstance(value, Mapping) else value
        return [(str(item[0]), str(item[1]), str(item[2])) for item in value]
    except (ValueError, TypeError, IndexError):
        return []


def _bridges(title: str, order: Sequence[str], passage: Passage, said: Sequence[tuple[str, str, str]]) -> list[str]:
    """What leads on from a passage: what the evidences say of its title, else other gold titles that it names."""
    objects = [triple[2] for triple in said if one_line(triple[0]) == title]
    named = [other for other in order if other != title and find_answer(passage.text, [other])]
    return [text for text in (*objects, *named) if find_answer(passage.text, [text])]
