"""The other detectors as nested loops over eager attention: the published count with its quirks, attention mass."""

from __future__ import annotations

import math
import statistics

from reference.slow_scores import eager_attention
from transformers import PreTrainedModel

from rhstudy.heads.published_code import PublishedQuirks
from rhstudy.types import Example


def slow_needle(example: Example, quirks: PublishedQuirks, answer_alone: list[int]) -> tuple[set[int], int]:
    """Positions of k and its length."""
    if not quirks.needle_by_set_overlap:
        places = {j for item in example.needles for j in range(*item.token_span)}
        return places, len(places)
    length = len(answer_alone)
    for start in range(len(example.prompt_ids)):
        window = example.prompt_ids[start : start + length]
        if len(set(window) & set(answer_alone)) / len(set(answer_alone)) > 0.9:
            return {j for j in range(start, start + length) if j < len(example.prompt_ids)}, length
    return set(), length


def slow_published(
    model: PreTrainedModel, example: Example, spoken: list[int], quirks: PublishedQuirks, answer_alone: list[int]
) -> list[list[float]]:
    """Every head's published score for the answer `spoken`, gate aside."""
    needle, length = slow_needle(example, quirks, answer_alone)
    countable = {example.prompt_ids[j] for j in needle}
    if not quirks.any_needle_token:
        countable &= set(example.answer_ids)
    whole = length if quirks.needle_length_denominator else len(countable)
    scores = []
    for layer in eager_attention(model, [*example.prompt_ids, *spoken]):
        scores.append([])
        for head in layer:
            hits = []
            for t, token in enumerate(spoken):
                row = head[len(example.prompt_ids) - 1 + t]
                best = max(range(len(row)), key=lambda j, row=row: (row[j], -j))
                if best in needle and example.prompt_ids[best] == token and token in countable:
                    hits.append(token)
            count = len(hits) if quirks.per_step_counting else len(set(hits))
            scores[-1].append(count / whole if whole else math.nan)
    return scores


def slow_mass(
    model: PreTrainedModel, asked: list[int], null: list[int], first: int, span: range, drop_outliers: bool
) -> list[list[float]]:
    """Attention of the rows from `first` on to `span`, minus that of the null prompt's rows from `first` on."""
    scores = []
    for layer, null_layer in zip(eager_attention(model, asked), eager_attention(model, null), strict=True):
        scores.append([])
        for head, null_head in zip(layer, null_layer, strict=True):
            values = []
            for j in span:
                with_question = statistics.fmean(head[row][j] for row in range(first, len(asked)))
                without = statistics.fmean(null_head[row][j] for row in range(first, len(null)))
                values.append(with_question - without)
            if drop_outliers:
                floor = statistics.fmean(values) - 2 * statistics.stdev(values)
                values = [value for value in values if value > floor]
            scores[-1].append(math.fsum(values))
    return scores
