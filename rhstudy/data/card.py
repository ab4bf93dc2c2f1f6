"""The data card: what a data set holds, in plain numbers."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhstudy.configs import digest
from rhstudy.data.encode import ids_sha256
from rhstudy.data.leaks import answer_in_question
from rhstudy.errors import require
from rhstudy.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSummary:
    """What a card needs of one example, without its prompt.

    Attributes:
        row: what tells two rows apart.
        cluster: rows of one cluster are no independent rows.
        origin: the concept expression.
        num_hops: its needles, where an answer takes several; else 1.
        num_prompt_tokens: length of the prompt.
        num_documents: passages in the prompt.
        num_cut: how many of them were shortened.
        num_own_left_out: distractors of the row itself that could not be used.
        num_gold_excerpts: gold documents that were cut to what of them is nearest to the question.
        places: middle of each needle as a share of the haystack's documents.
        num_answer_tokens: length of the answer.
        found: for each answer token, whether its id occurs in a needle; where documents are cited, for each token of
            their numbers, whether its id occurs in the answer (brackets and commas stand in no needle).
        answer_in_question: whether the question names the answer.
        content: what is digested.
    """

    row: tuple[str, str]
    cluster: str
    origin: str
    num_hops: int
    num_prompt_tokens: int
    num_documents: int
    num_cut: int
    num_own_left_out: int
    num_gold_excerpts: int
    places: tuple[float, ...]
    num_answer_tokens: int
    found: tuple[bool, ...]
    answer_in_question: bool
    content: tuple[str, str, str]


def summary_of(example: Example) -> ExampleSummary:
    """The summary of one built example."""
    told, row = example.metadata, (str(example.metadata["fact_id"]), example.question)
    num_documents = int(told["num_documents"])
    positions = told.get("gold_positions", [told["gold_position"]])
    return ExampleSummary(
        row=row,
        cluster=str(told.get("cluster", row[0])),
        origin=str(told["origin"]),
        num_hops=len(positions),
        num_prompt_tokens=example.num_prompt_tokens,
        num_documents=num_documents,
        num_cut=int(told.get("num_cut", 0)),
        num_own_left_out=int(told.get("num_own_left_out", 0)),
        num_gold_excerpts=int(told.get("num_gold_excerpts", 0)),
        places=tuple((position + 0.5) / num_documents for position in positions),
        num_answer_tokens=len(example.answer_ids),
        found=tuple(_found(example)),
        answer_in_question=answer_in_question(example),
        content=(example.example_id, example.answer, ids_sha256(example.prompt_ids)),
    )


def answer_token_shares(rows: Sequence[ExampleSummary]) -> dict[str, float]:
    """How much of the gold answers can be copied token by token from the needle.

    Returns:
        ``answer_in_needle``: share of all answer tokens whose id occurs in the needle's tokens;
        ``first_answer_token_in_needle``: share of examples whose first answer token does;
        ``no_answer_token_in_needle``: share of examples where none does (they cannot be scored).
    """
    found = [row.found for row in rows]
    return {
        "answer_in_needle": sum(map(sum, found)) / sum(map(len, found)),
        "first_answer_token_in_needle": sum(hits[0] for hits in found) / len(found),
        "no_answer_token_in_needle": sum(not any(hits) for hits in found) / len(found),
    }


def _found(example: Example) -> list[bool]:
    if example.metadata.get("cites"):
        numbers = (needle.answer_token_span for needle in example.needles)
        return [token in example.answer_ids for span in numbers for token in example.prompt_ids[span.start : span.end]]
    spans = (needle.token_span for needle in example.needles)
    needle_ids = {token for span in spans for token in example.prompt_ids[span.start : span.end]}
    return [token in needle_ids for token in example.answer_ids]


def check_answer_share(part: str, rows: Sequence[ExampleSummary], least: float) -> None:
    """Raise when too few answer tokens occur in the needles.

    Raises:
        InputError: the share is below `least`; the usual cause is an answer boundary that the tokenizer reads
            differently from running text.
    """
    share = answer_token_shares(rows)["answer_in_needle"]
    remedy = "The prompt's end and this tokenizer do not go together; look at answer_ids beside the needle's ids"
    must = f"be at least {least}"
    require(share >= least, "answer tokens in needle", must, round(share, 4), remedy, f"part {part}")


def card_of(rows: Sequence[ExampleSummary]) -> dict[str, Any]:
    """Counts, lengths, positions and shares of one part."""
    lengths = [row.num_prompt_tokens for row in rows]
    answers = [row.num_answer_tokens for row in rows]
    tenths = Counter(min(9, int(place * 10)) for row in rows for place in row.places)
    return {
        "num_examples": len(rows),
        "num_distinct_rows": len({row.row for row in rows}),
        "num_clusters": len({row.cluster for row in rows}),
        "num_by_origin": dict(sorted(Counter(row.origin for row in rows).items())),
        "num_by_needles": {str(hops): count for hops, count in sorted(Counter(row.num_hops for row in rows).items())},
        "num_prompt_tokens": _range_of(lengths),
        "num_answer_tokens": _range_of(answers),
        "num_tokens_total": sum(lengths) + sum(answers),
        "num_documents": _range_of([row.num_documents for row in rows]),
        "num_cut_documents": _range_of([row.num_cut for row in rows]),
        "num_own_documents_left_out": sum(row.num_own_left_out for row in rows),
        "num_gold_excerpts": sum(row.num_gold_excerpts for row in rows),
        "needle_position_tenths": [tenths[tenth] for tenth in range(10)],
        "num_answer_in_question": sum(row.answer_in_question for row in rows),
        "num_leaks": 0,
        **{f"share_{name}": round(value, 6) for name, value in answer_token_shares(rows).items()},
        "content_sha256": digest([list(row.content) for row in rows]),
    }


def _range_of(values: Sequence[int]) -> dict[str, int | float]:
    return {"min": min(values), "mean": round(statistics.fmean(values), 3), "max": max(values)}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape the data; "not installed" where a recipe can do without."""
    versions: Mapping[str, str] = {name: _version(name) for name in ("Faker", "bm25s", "numpy", "tokenizers")}
    return dict(versions)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
