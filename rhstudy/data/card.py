"""The data card: what a data set holds, in plain numbers."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rhstudy.configs import digest
from rhstudy.data.encode import ids_sha256
from rhstudy.data.leaks import answer_in_question
from rhstudy.errors import require
from rhstudy.types import Example


def answer_token_shares(examples: Sequence[Example]) -> dict[str, float]:
    """How much of the gold answers can be copied token by token from the needle.

    Returns:
        ``answer_in_needle``: share of all answer tokens whose id occurs in the needle's tokens;
        ``first_answer_token_in_needle``: share of examples whose first answer token does;
        ``no_answer_token_in_needle``: share of examples where none does (they cannot be scored).
    """
    found = [_found(example) for example in examples]
    return {
        "answer_in_needle": sum(map(sum, found)) / sum(map(len, found)),
        "first_answer_token_in_needle": sum(hits[0] for hits in found) / len(found),
        "no_answer_token_in_needle": sum(not any(hits) for hits in found) / len(found),
    }


def _found(example: Example) -> list[bool]:
    spans = (needle.token_span for needle in example.needles)
    needle_ids = {token for span in spans for token in example.prompt_ids[span.start : span.end]}
    return [token in needle_ids for token in example.answer_ids]


def check_answer_share(part: str, examples: Sequence[Example], least: float) -> None:
    """Raise when too few answer tokens occur in the needles.

    Raises:
        InputError: the share is below `least`; the usual cause is an answer boundary that the tokenizer reads
            differently from running text.
    """
    share = answer_token_shares(examples)["answer_in_needle"]
    remedy = "The prompt's end and this tokenizer do not go together; look at answer_ids beside the needle's ids"
    must = f"be at least {least}"
    require(share >= least, "answer tokens in needle", must, round(share, 4), remedy, f"part {part}")


def part_card(examples: Sequence[Example]) -> dict[str, Any]:
    """Counts, lengths, positions and shares of one part."""
    lengths = [example.num_prompt_tokens for example in examples]
    answers = [len(example.answer_ids) for example in examples]
    places = [(ex.metadata["gold_position"] + 0.5) / ex.metadata["num_documents"] for ex in examples]
    tenths = Counter(min(9, int(place * 10)) for place in places)
    shares = answer_token_shares(examples)
    return {
        "num_examples": len(examples),
        "num_distinct_rows": len({(example.metadata["fact_id"], example.question) for example in examples}),
        "num_by_origin": dict(sorted(Counter(example.metadata["origin"] for example in examples).items())),
        "num_prompt_tokens": _range_of(lengths),
        "num_answer_tokens": _range_of(answers),
        "num_tokens_total": sum(lengths) + sum(answers),
        "num_documents": _range_of([example.metadata["num_documents"] for example in examples]),
        "needle_position_tenths": [tenths[tenth] for tenth in range(10)],
        "num_answer_in_question": sum(map(answer_in_question, examples)),
        "num_leaks": 0,
        **{f"share_{name}": round(value, 6) for name, value in shares.items()},
        "content_sha256": digest([[ex.example_id, ex.answer, ids_sha256(ex.prompt_ids)] for ex in examples]),
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
