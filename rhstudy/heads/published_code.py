"""Mode `published_code`: how the program of Wu et al. 2024 scores heads, each of its habits a switch of its own.

The program (nightdessert/Retrieval_Head, `retrieval_head_detection.py`) differs from the definition it was published
with (heads/score.py). Let k be the needle, j*[t] what a head attends to most at the step that produced token w_t:

    published     score = sum_t 1[ j*[t] in k and x_{j*[t]} = w_t ] / |k|             may exceed 1
    definition    score = |{ w in W : some t has w_t = w, j*[t] in k, x_{j*[t]} = w }| / |W|

With every switch of `PublishedQuirks` on its per-head scores come out (tests/golden holds its own numbers on given
prompts); with every switch off those of mode `teacher_forced` do; with `decoded_answer` alone those of mode `decode`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rhstudy.heads.score import EMPTY_W, copyable_tokens, needle_mask, needle_tokens
from rhstudy.shapes import Bool, Float, Int
from rhstudy.types import Example, Span

NOT_FOUND = "the program's search found no needle in the prompt"
OVERLAP = 0.9
ROUGE_GATE = 0.5
STOP_TOKEN = "<0x0A>"
_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuirks:
    """What the published program does otherwise than the definition; False takes the definition's way.

    Attributes:
        decoded_answer: the model's own greedy answer is watched (decode only), not the gold answer.
        published_stops: decoding ends after token ``<0x0A>`` or an id of `stop_ids`, which is still scored, or at
            `max_new_tokens`; an end-of-text token does not end it, nor does a line break inside a token.
        stop_ids: ids that end decoding; 144 is what the program names for the tokenizers it was used with.
        needle_by_set_overlap: the needle is the first window of the prompt, as long as the answer tokenised apart, that
            holds more than 0.9 of the answer's distinct ids; without such a window every head gets 0. Off: the
            annotated needle spans.
        any_needle_token: every token of the needle counts, not only those of the gold answer.
        per_step_counting: each step that copies counts, repeated tokens too. Off: each distinct token once.
        needle_length_denominator: divided by the needle's length in tokens. Off: by the distinct tokens that count.
        rouge_gate: an example is kept only when more than half of the answer's words (ROUGE-1 recall, stemmed) are
            in what the model said; others are unscored.
        model_dtype_weights: j* is taken from attention weights rounded to the model's number format, where the program
            finds near weights equal. Off: compared in float32.
    """

    decoded_answer: bool = True
    published_stops: bool = True
    stop_ids: tuple[int, ...] = (144,)
    needle_by_set_overlap: bool = True
    any_needle_token: bool = True
    per_step_counting: bool = True
    needle_length_denominator: bool = True
    rouge_gate: bool = True
    model_dtype_weights: bool = True


def find_by_set_overlap(prompt: Sequence[int], needle: Sequence[int]) -> Span | None:
    """The first window of `prompt` of the needle's length that holds more than 0.9 of its distinct ids.

    Near the end windows are shorter than the span that is returned, as in the program.

    Returns:
        The span; None when no window does.
    """
    ids, length = np.asarray(prompt), len(needle)
    ends = np.minimum(np.arange(len(ids)) + length, len(ids))
    found = np.zeros(len(ids), dtype=np.int64)
    for token in set(needle):
        seen = np.concatenate([[0], np.cumsum(ids == token)])
        found += seen[ends] > seen[:-1]
    enough = np.flatnonzero(found / max(1, len(set(needle))) > OVERLAP)
    return Span(int(enough[0]), int(enough[0]) + length) if len(enough) else None


def rouge1_recall(target: str, said: str) -> float:
    """ROUGE-1 recall with Porter stemming (Lin 2004): share of `target`'s words that are in `said`, 0-1.

    Words are runs of a-z and 0-9 in lower case; those longer than three letters are stemmed (as in the package
    rouge_score).
    """
    wanted, got = Counter(_stems(target)), Counter(_stems(said))
    return (wanted & got).total() / max(1, wanted.total())


def _stems(text: str) -> list[str]:
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in _WORD.sub(" ", text.lower()).split()]


def gate(example: Example, said: str) -> str:
    """Why the published gate drops the example; empty when it keeps it."""
    recall = rouge1_recall(example.answer.strip(), said.strip())
    return "" if recall > ROUGE_GATE else f"the answer failed the published gate: ROUGE-1 recall {recall:.2f} <= 0.5"


def score_published(
    argmax: Int[np.ndarray, "layers heads rows"],
    tokens: Sequence[int],
    example: Example,
    quirks: PublishedQuirks,
    needle_ids: Sequence[int],
) -> tuple[Float[np.ndarray, "layers heads"], str]:
    """The published equation, or the definition where a quirk is off; see the module docstring.

    Args:
        argmax: j* in prompt coordinates.
        tokens: w_t of each row.
        example: gives k, x and the gold answer.
        quirks: which habits are on.
        needle_ids: the answer tokenised apart, for `needle_by_set_overlap`.

    Returns:
        (scores, reason): NaN with a reason where nothing could count.
    """
    inside, countable = _needle(example, quirks, needle_ids)
    length = len(needle_ids) if quirks.needle_by_set_overlap else int(inside.sum())
    whole = length if quirks.needle_length_denominator else len(countable)
    if not whole:
        missed = quirks.needle_by_set_overlap and not inside.any()
        return np.full(argmax.shape[:2], np.nan), NOT_FOUND if missed else EMPTY_W
    visible = (argmax >= 0) & (argmax < example.num_prompt_tokens)
    place = np.where(visible, argmax, 0)
    prompt, spoken = np.asarray(example.prompt_ids), np.asarray(tokens, dtype=np.int64)
    counts = np.isin(spoken, sorted(countable))
    copied = visible & inside[place] & (prompt[place] == spoken) & counts
    if quirks.per_step_counting:
        return copied.sum(axis=2) / whole, ""
    distinct = [copied[:, :, spoken == token].any(axis=2) for token in sorted(countable)]
    return np.sum(distinct, axis=0, initial=0.0) / whole if distinct else np.zeros(argmax.shape[:2]), ""


def _needle(
    example: Example, quirks: PublishedQuirks, needle_ids: Sequence[int]
) -> tuple[Bool[np.ndarray, " prompt"], frozenset[int]]:
    """Where k is, and which token ids count."""
    if quirks.needle_by_set_overlap:
        span = find_by_set_overlap(example.prompt_ids, needle_ids)
        inside = np.zeros(example.num_prompt_tokens, dtype=bool)
        if span is not None:
            inside[span.start : span.end] = True
        present = frozenset(np.asarray(example.prompt_ids)[inside].tolist())
        return inside, present if quirks.any_needle_token else present & frozenset(example.answer_ids)
    return needle_mask(example), needle_tokens(example) if quirks.any_needle_token else copyable_tokens(example)


def stops(quirks: PublishedQuirks, vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Ids after which the published program stops."""
    line_break = {vocabulary[STOP_TOKEN]} if STOP_TOKEN in vocabulary else set()
    return frozenset(quirks.stop_ids) | line_break
