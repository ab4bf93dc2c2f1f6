"""SummHay Citation: which documents of a topic hold an insight (Laban et al. 2024, "Summary of a Haystack").

A row is a topic, in the layout of the public data set: ``{"topic_id", "topic", "subtopics": [{"query", "insights":
[{"insight_id", "insight"}]}], "documents": [{"document_id", "text" | "document_text", "insights_included"}]}``. Each
insight is a fact whose gold passages are all documents that hold it and whose answer is their numbers. Its sub-haystack
keeps every gold document; the others of the topic, in random order, fill it up. Gold is annotated per document.

Left out and counted: insights that no document holds, and those held by more than a quarter of the sub-haystack, where
citing everything would score well. Rows are cut into parts by topic alone. Held-out parts have several sub-haystacks an
insight, which are one cluster.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rhstudy.data.answers import gives_away, leak_forms, leak_text
from rhstudy.data.assemble import MAX_GOLD_SHARE
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, LeftOutRowError, Passage, UnbuildableRowError, one_line
from rhstudy.data.insights import citation_question, cited
from rhstudy.data.rows import Source, field_of, objects_of, texts_of
from rhstudy.data.tasks.reading import OnBadRow, TaskRows, gather_facts
from rhstudy.errors import message, require

NAME = "summhay"
NUM_SUB_HAYSTACKS = 3
"""Sub-haystacks of an insight in held-out parts."""
LEAST_DOCUMENTS = 24
"""Documents that a prompt has room for; longer ones are cut to what of them is nearest to the insight."""
LEAST_TOKENS = 32
"""Tokens that a document keeps at least."""
TOPIC_NAMES: Mapping[str, str] = {
    "6419258a9c6c91e5010d42ec": "news1",
    "641925b49c6c91e5010d43ba": "news2",
    "6419263d9c6c91e5010d4abf": "news3",
    "641926f69c6c91e5010d5479": "news4",
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_FRAME_TOKENS = 128


def read_facts(source: Source, name: str, on_bad_row: OnBadRow) -> TaskRows:
    """Turn every insight of every topic into a fact; args and errors as `rhstudy.data.tasks.mdqa.read_facts`.

    A topic in which a document cites an insight that does not exist is an error.
    """
    rows = (item for where, row in source.rows for item in _topic(row, name, where))
    return gather_facts(rows, name, on_bad_row)


def _topic(row: Mapping[str, Any], name: str, where: str) -> Iterator[tuple[str, str, Callable[[], Fact]]]:
    topic_id = field_of(row, "topic_id", name, where)
    holders: dict[str, list[int]] = {}
    documents = []
    for number, item in enumerate(objects_of(row, "documents", name, where)):
        label = f"{name}.documents[{number}]"
        key = "text" if "text" in item or "document_text" not in item else "document_text"
        documents.append(Passage(field_of(item, "document_id", label, where), field_of(item, key, label, where)))
        for insight in texts_of(item, "insights_included", label, where, least=0):
            holders.setdefault(insight, []).append(number)
    titles = [passage.title for passage in documents]
    require(len(set(titles)) == len(titles), f"{name}.documents", "have ids of their own", titles, "Mend it", where)
    known = set()
    for number, subtopic in enumerate(objects_of(row, "subtopics", name, where)):
        query = field_of(subtopic, "query", f"{name}.subtopics[{number}]", where)
        for item in objects_of(subtopic, "insights", f"{name}.subtopics[{number}]", where):
            insight_id = field_of(item, "insight_id", f"{name}.insights", where)
            insight = field_of(item, "insight", f"{name}.insights", where)
            known.add(insight_id)
            gold = frozenset(holders.get(insight_id, ()))
            labels = (TOPIC_NAMES.get(topic_id, topic_id), topic_id, f"subtopic {number + 1}")
            build = partial(_fact, labels, insight_id, citation_question(query, insight), insight, documents, gold)
            yield where, insight_id, partial(build, where)
    remedy = "Mend the file: a document holds insights that no subtopic lists"
    require(set(holders) <= known, f"{name}.documents.insights_included", "name insights of the topic",
            sorted(set(holders) - known), remedy, where)  # fmt: skip


def _fact(
    labels: tuple[str, str, str],
    insight_id: str,
    question: str,
    insight: str,
    documents: list[Passage],
    gold: frozenset[int],
    where: str,
) -> Fact:
    if not gold:
        must, remedy = "be held by a document", "Insights without gold documents are left out and counted"
        raise LeftOutRowError(message("insight", must, "<0 documents>", remedy, f"row {insight_id}, {where}"))
    if len(gold) > MAX_GOLD_SHARE * len(documents):
        must, got = "be held by at most a quarter of its topic's documents", f"<{len(gold)} of {len(documents)}>"
        remedy = "Such insights are left out and counted"
        raise LeftOutRowError(message("insight", must, got, remedy, f"row {insight_id}, {where}"))
    fact = cited([documents[number] for number in sorted(gold)], question, insight_id, "real", insight)
    return dataclasses.replace(
        fact,
        given=tuple(passage for number, passage in enumerate(documents) if number not in gold),
        group=labels[1],
        cluster=insight_id,
        labels=labels,
        where=where,
    )


def sub_haystacks(fact: Fact) -> list[Fact]:
    """The rows that held-out parts make of an insight: several sub-haystacks, one cluster."""
    return [dataclasses.replace(fact, fact_id=f"{fact.fact_id}-{draw}", draw=draw) for draw in range(NUM_SUB_HAYSTACKS)]


def fitted(fact: Fact, stream: Iterator[Passage], num_tokens: int, encoder: Encoder) -> tuple[Fact, Iterator[Passage]]:
    """`fact` and its distractors with documents cut, where it takes that for `LEAST_DOCUMENTS` to fit.

    Gold documents and distractors are cut by the same rule: what of a document shares most words with the question.

    Args:
        fact: an insight with its documents.
        stream: distractors.
        num_tokens: length of the prompt.
        encoder: counts tokens.

    Raises:
        UnbuildableRowError: fewer than `LEAST_TOKENS` tokens a document.
        LeftOutRowError: an invented insight that its documents do not state any more.
    """
    room = (num_tokens - _FRAME_TOKENS) // LEAST_DOCUMENTS
    if room < LEAST_TOKENS:
        must = f"be at least {LEAST_TOKENS * LEAST_DOCUMENTS + _FRAME_TOKENS} for {LEAST_DOCUMENTS} documents"
        raise UnbuildableRowError(message("data.num_tokens", must, num_tokens, "Raise it", fact.place))
    words = frozenset(leak_text(fact.question).split())
    golds = [gold.passage for gold in fact.golds]
    cut = [excerpt(passage, words, room, encoder) for passage in golds]
    _require_stated(fact, cut)
    changed = dataclasses.replace(
        fact,
        passage=cut[-1],
        further=tuple(dataclasses.replace(gold, passage=new) for gold, new in zip(fact.further, cut[:-1], strict=True)),
        num_excerpts=sum(one is not other for one, other in zip(golds, cut, strict=True)),
    )
    return changed, (excerpt(passage, words, room, encoder) for passage in stream)


def _require_stated(fact: Fact, documents: Sequence[Passage]) -> None:
    """Of a real insight nobody wrote down which sentence holds it; of an invented one every wording is known."""
    forms = leak_forms(fact.hop_answers)
    if fact.origin != "real" and not all(gives_away(document.text, forms) for document in documents):
        must, remedy = "leave the insight in the documents that are cut to fit", "Raise it: such insights are left out"
        raise LeftOutRowError(message("data.num_tokens", must, fact.hop_answers[0], remedy, fact.place))


def excerpt(passage: Passage, words: frozenset[str], num_tokens: int, encoder: Encoder) -> Passage:
    """The run of sentences of at most about `num_tokens` tokens that holds most of `words`; the first of equals."""
    if passage.text.isascii() and len(passage.text) < num_tokens:  # a token has a character at least
        return passage
    count = encoder.count(passage.text)
    if count <= num_tokens:
        return passage
    limit = len(passage.text) * num_tokens // count
    sentences = [part for part in _SENTENCE_END.split(one_line(passage.text)) if part]
    held = [words.intersection(leak_text(sentence).split()) for sentence in sentences]
    best, best_score = sentences[0][:limit], -1
    for start in range(len(sentences)):
        end, length = start, 0
        found: set[str] = set()
        while end < len(sentences) and length + len(sentences[end]) <= limit:
            found |= held[end]
            length += len(sentences[end]) + 1
            end += 1
        if end > start and len(found) > best_score:
            best, best_score = " ".join(sentences[start:end]), len(found)
    if best_score < 0:  # no sentence fits
        best = encoder.cut(passage.text, num_tokens) or encoder.cut(passage.text, num_tokens, at_words=False)
    return Passage(passage.title, best)
