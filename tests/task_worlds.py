"""Small worlds of the tasks with several gold documents, in the layouts of the public data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SYLLABLES = ("ka", "lo", "mi", "ru", "sen", "tor", "vel", "zan", "bir", "dus")


def name_of(number: int) -> str:
    """A distinct invented name per number."""
    parts = [SYLLABLES[number // 10**place % 10] for place in range(4)]
    return "".join(parts).capitalize()


def chain(number: int) -> dict[str, str]:
    """A question over two hops: a person's town, and who founded it."""
    person, town, founder = name_of(number), name_of(number + 2000), f"{name_of(number + 4000)} Roe"
    return {
        "person": person,
        "town": town,
        "founder": founder,
        "question": f"Who founded the town that {person} was born in?",
        "person_text": f"{person} was a painter. Born in {town}, {person} moved to the coast – and never came back.",
        "town_text": f"{town} lies in a valley. It was founded by {founder} in a dry summer, says a café’s wall.",
    }


def distractors(number: int, count: int) -> list[tuple[str, str]]:
    """Titles and texts about other people and towns."""
    found = []
    for step in range(count):
        first, second = name_of(6000 + number * 31 + step), name_of(7000 + number * 17 + step)
        found.append(
            (f"{first} {second}", f"{first} was a painter who was born in {second}; who founded it is unknown.")
        )
    return found


def musique_row(number: int) -> dict[str, Any]:
    """As MuSiQue-Ans: the hops' paragraphs are the second and the fourth of eight."""
    known, others = chain(number), distractors(number, 6)
    texts = [*others]
    texts.insert(1, (known["person"], known["person_text"]))
    texts.insert(3, (known["town"], known["town_text"]))
    paragraphs = [
        {"idx": index, "title": title, "paragraph_text": text, "is_supporting": index in (1, 3)}
        for index, (title, text) in enumerate(texts)
    ]
    return {
        "id": f"2hop__{number}",
        "question": known["question"],
        "answer": known["founder"],
        "answer_aliases": [],
        "answerable": True,
        "question_decomposition": [
            {"id": 1, "question": "#0 >> place of birth", "answer": known["town"], "paragraph_support_idx": 1},
            {"id": 2, "question": "#1 >> founder", "answer": known["founder"], "paragraph_support_idx": 3},
        ],
        "paragraphs": paragraphs,
    }


def hotpot_row(number: int, columns: bool = False) -> dict[str, Any]:
    """As HotpotQA: pairs as in the released files, or columns as on the hub."""
    known = chain(number)
    context = [[title, [text]] for title, text in distractors(number, 4)]
    context.insert(0, [known["town"], [part + "." for part in known["town_text"].rstrip(".").split(". ")]])
    context.insert(2, [known["person"], [known["person_text"]]])
    facts = [[known["person"], 0], [known["town"], 1]]
    row: dict[str, Any] = {"id": f"hotpot-{number}", "question": known["question"], "answer": known["founder"]}
    if columns:
        row["supporting_facts"] = {"title": [fact[0] for fact in facts], "sent_id": [fact[1] for fact in facts]}
        row["context"] = {"title": [item[0] for item in context], "sentences": [item[1] for item in context]}
    else:
        row |= {"supporting_facts": facts, "context": context}
    return row | {"type": "bridge", "level": "hard"}


def two_wiki_row(number: int) -> dict[str, Any]:
    """As 2WikiMultihopQA: with evidences."""
    known = chain(number)
    evidences = [[known["person"], "place of birth", known["town"]], [known["town"], "founder", known["founder"]]]
    return {**hotpot_row(number), "id": f"wiki-{number}", "type": "compositional", "evidences": evidences}


def own_row(number: int) -> dict[str, Any]:
    """A user's own row."""
    known = chain(number)
    return {
        "question": known["question"],
        "answers": [known["founder"]],
        "documents": [
            {"title": known["person"], "text": known["person_text"], "gold": True, "answers": [known["town"]]},
            *({"title": title, "text": text} for title, text in distractors(number, 3)),
            {"title": known["town"], "text": known["town_text"], "gold": True},
        ],
    }


def topic(number: int, num_documents: int = 40, num_insights: int = 6, sentences: int = 6) -> dict[str, Any]:
    """As a SummHay topic: insight i is held by three documents; the last one by every other document."""
    insights = [
        {
            "insight_id": f"t{number}-i{index}",
            "insight": f"The {name_of(index + 60 * number)} bank lost {index + 11} boats.",
        }
        for index in range(num_insights)
    ]
    held: dict[int, list[int]] = {place: [] for place in range(num_documents)}
    for index in range(num_insights):
        golds = range(0, num_documents, 2) if index == num_insights - 1 else [index, index + 9, index + 20]
        for place in golds:
            held[place].append(index)
    documents = []
    for place in range(num_documents):
        filler = [
            f"On day {place * 7 + step} the {name_of(place + 90 * step + 700 * number)} fair was calm."
            for step in range(sentences)
        ]
        for index in held[place]:
            filler.insert(
                1 + index % 3,
                f"Reports say that the {name_of(index + 60 * number)} bank lost {index + 11} of its boats.",
            )
        documents.append(
            {
                "document_id": f"t{number}-d{place}",
                "text": "\n\n".join(filler),
                "insights_included": [insights[index]["insight_id"] for index in held[place]],
            }
        )
    return {
        "topic_id": f"topic-{number}",
        "topic": "Boats",
        "subtopics": [
            {"query": "What was lost?", "insights": insights[:3]},
            {"query": "Who lost?", "insights": insights[3:]},
        ],
        "documents": documents,
    }


def write_rows(path: Path, rows: Sequence[Any]) -> str:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_passages(path: Path, count: int = 150) -> str:
    """Passages for haystacks."""
    rows = [
        {
            "title": f"Fair {name_of(8000 + number)}",
            "text": f"The fair of {name_of(9000 + number)} was founded by nobody; painters came on day {number}.",
        }
        for number in range(count)
    ]
    return write_rows(path, rows)
