"""The retrieval score: what share of the answer's needle tokens a head copied.

Definition (after Wu et al. 2024, arXiv 2404.15574, section 2; deviations from their program below). With answer tokens
w_1..w_T, prompt tokens x_j, needle span k and j*[l, h, t] the position head (l, h) attends to most from the row that
predicts w_t:

    W           = distinct token ids of the gold answer (template and end tokens excluded) that occur in k
    score(l, h) = |{ w in W : some t has w_t = w, j* in k, x_{j*} = w }| / |W|              in [0, 1]

An example with empty W is unscored: it is reported and never averaged in as zero. `aligned` asks in addition that j* is
the position of w_t inside the annotated answer span.

Here stands the equation alone, on j* that were observed; `heads/detect.py` runs the model. Modes: `teacher_forced`
feeds the gold answer (one pass); `decode` feeds the model's own greedy answer. Two more detectors have their own
equations: `published_code` (heads/published_code.py, Wu et al.'s program, which counts otherwise) and
`attention_mass` (heads/attention_mass.py, which asks for attention instead of copying).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rhstudy.shapes import Bool, Float, Int
from rhstudy.types import Example

Mode = Literal["teacher_forced", "decode", "published_code", "attention_mass"]
EMPTY_W = "no token of the gold answer occurs in a needle"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleScore:
    """Scores of every head on one example.

    Attributes:
        example_id: which example.
        score: (layers, heads) retrieval scores, or what the mode measures instead; NaN when unscored.
        aligned: (layers, heads) aligned scores; NaN when unscored.
        real_nll: mean gold-answer negative log likelihood, nats per token.
        unscored: the reason, else empty.
        further: what else was measured in the same pass, (layers, heads) each; see `HeadScores`.
    """

    example_id: str
    score: Float[np.ndarray, "layers heads"]
    aligned: Float[np.ndarray, "layers heads"]
    real_nll: float
    unscored: str
    further: Mapping[str, Float[np.ndarray, "layers heads"]] = field(default_factory=dict)


def needle_mask(example: Example) -> Bool[np.ndarray, " prompt"]:
    """True at the prompt positions of k, the union of the example's needle spans."""
    mask = np.zeros(example.num_prompt_tokens, dtype=bool)
    for needle in example.needles:
        mask[needle.token_span.start : needle.token_span.end] = True
    return mask


def copyable_tokens(example: Example) -> frozenset[int]:
    """W: distinct ids of the gold answer that occur in k."""
    return frozenset(example.answer_ids) & needle_tokens(example)


def needle_tokens(example: Example) -> frozenset[int]:
    """Distinct token ids of k."""
    return frozenset(token for item in example.needles for token in example.prompt_ids[slice(*item.token_span)])


def aligned_positions(example: Example, tokens: Sequence[int], mode: Mode) -> Bool[np.ndarray, "rows prompt"]:
    """Where inside the annotated answer span each of `tokens` stands.

    Teacher-forced, the n-th occurrence of an id in the answer belongs to its n-th occurrence in the span; decoded
    answers have no such order, so any occurrence in the span counts.
    """
    allowed = np.zeros((len(tokens), example.num_prompt_tokens), dtype=bool)
    for needle in example.needles:
        span = range(*needle.answer_token_span)
        used: dict[int, int] = {}
        for row, token in enumerate(tokens):
            places = [j for j in span if example.prompt_ids[j] == token]
            nth = used.get(token, 0)
            used[token] = nth + 1
            if mode == "teacher_forced":
                places = places[nth : nth + 1]
            allowed[row, places] = True
    return allowed


def score_rows(
    argmax: Int[np.ndarray, "layers heads rows"], tokens: Sequence[int], example: Example, mode: Mode
) -> tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]:
    """The equation of the module docstring for one example.

    Args:
        argmax: j* in prompt coordinates (positions >= the prompt length are answer tokens, never in k).
        tokens: w_t of each row.
        example: gives k, x and the gold answer.
        mode: whether the gold answer was fed (`teacher_forced`) or decoded; only `aligned` depends on it.

    Returns:
        (score, aligned), each (layers, heads); NaN when W is empty.
    """
    shape = argmax.shape[:2]
    wanted = {token: column for column, token in enumerate(sorted(copyable_tokens(example)))}
    if not wanted:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    needle = np.full(example.num_prompt_tokens + 2, -1)  # x_j where j in k, and nothing at either end
    for item in example.needles:
        needle[item.token_span.start + 1 : item.token_span.end + 1] = example.prompt_ids[slice(*item.token_span)]
    spoken = np.asarray(tokens, dtype=np.int64)
    layers, heads, rows = np.nonzero(needle.take(argmax + 1, mode="clip") == spoken)
    column = np.asarray([wanted.get(token, -1) for token in tokens], dtype=np.int64)[rows]
    counts = column >= 0
    at_answer = aligned_positions(example, tokens, mode)[rows, argmax[layers, heads, rows]]
    score, aligned = (
        _share(shape, len(wanted), layers, heads, column, chosen) for chosen in (counts, counts & at_answer)
    )
    return score, aligned


def _share(
    shape: tuple[int, ...],
    num_wanted: int,
    layers: Int[np.ndarray, " hits"],
    heads: Int[np.ndarray, " hits"],
    tokens: Int[np.ndarray, " hits"],
    counts: Bool[np.ndarray, " hits"],
) -> Float[np.ndarray, "layers heads"]:
    """The share of distinct wanted tokens that each head hit."""
    hit = np.zeros((*shape, num_wanted), dtype=bool)
    hit[layers[counts], heads[counts], tokens[counts]] = True
    return np.asarray(hit.mean(axis=2))
