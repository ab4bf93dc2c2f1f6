"""Scores of heads on answers that cite documents by number: `citation` and `insight`.

With D the gold documents and, for d in D, p_1..p_m the places in the prompt of its number's tokens ("[12]" before its
text), b its text, r_1..r_m the rows that predict those tokens where the answer cites d, and j*[l, h, r] the position
head (l, h) attends to most from row r:

    citation(l, h) = |{ (d, i) : j*[l, h, r_i] = p_i }| / |{ (d, i) }|            the very document's number is copied
    insight(l, h)  = |{ d cited : some i has j*[l, h, r_i] in b }| / |{ d cited }|   its text is looked at; no match

A document that a decoded answer does not cite counts as not copied and is left out of `insight`. Where the answer
spells numbers in other tokens than the prompt the example is unscored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rhstudy.shapes import Float, Int
from rhstudy.types import Example

OTHER_TOKENS = "the answer spells the documents' numbers in other tokens than the prompt"


def is_citing(example: Example) -> bool:
    """Whether the answer is numbers of documents."""
    return bool(example.metadata.get("cites"))


def cited_rows(tokens: Sequence[int], decode: Callable[[list[int]], object]) -> dict[int, range]:
    """Each number in an answer with its rows, at its first occurrence.

    Args:
        tokens: the answer's token ids.
        decode: token ids to text.
    """
    texts = [str(decode([token])).strip() for token in tokens]
    found: dict[int, range] = {}
    row = 0
    while row < len(texts):
        end = row
        while end < len(texts) and texts[end].isdecimal() and texts[end].isascii():
            end += 1
        if end > row:
            found.setdefault(int("".join(texts[row:end])), range(row, end))
        row = max(end, row + 1)
    return found


def score_citations(
    argmax: Int[np.ndarray, "layers heads rows"],
    tokens: Sequence[int],
    example: Example,
    decode: Callable[[list[int]], object],
) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"], str]:
    """The equations of the module docstring for one example.

    Args:
        argmax: j* in prompt coordinates.
        tokens: w_t of each row.
        example: its needles are the gold documents, each with the place of its number and of its text.
        decode: token ids to text.

    Returns:
        (citation, insight, reason); NaN and the reason where the example cannot be scored, NaN `insight` where no gold
        document is cited.
    """
    shape, rows = argmax.shape[:2], cited_rows(tokens, decode)
    copied, looked = np.zeros(shape), np.zeros(shape)
    num_tokens = num_cited = 0
    for needle in example.needles:
        place, body = needle.answer_token_span, needle.body_token_span or needle.token_span
        num_tokens += place.end - place.start
        at = rows.get(int(example.prompt[slice(*needle.answer_char_span)]))
        if at is None:
            continue
        spelled = tuple(tokens[row] for row in at)
        if spelled != tuple(example.prompt_ids[place.start : place.end]):
            return np.full(shape, np.nan), np.full(shape, np.nan), OTHER_TOKENS
        num_cited += 1
        copied += (argmax[:, :, list(at)] == np.arange(*place)).sum(axis=2)
        looked += ((argmax[:, :, list(at)] >= body.start) & (argmax[:, :, list(at)] < body.end)).any(axis=2)
    return copied / num_tokens, looked / num_cited if num_cited else np.full(shape, np.nan), ""
