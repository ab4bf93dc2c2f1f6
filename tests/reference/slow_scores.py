"""The retrieval score written as its definition: nested loops over full eager attention. Slow, obvious, no sharing."""

from __future__ import annotations

import copy
import math

import torch
from transformers import PreTrainedModel

from rhstudy.types import Example


def eager_attention(model: PreTrainedModel, ids: list[int]) -> list[list[list[list[float]]]]:
    """Attention probabilities of one unpadded sequence by layer, head, row and key.

    Plain numbers: reading them one by one from a tensor takes thirty times as long.
    """
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        out = twin(torch.tensor([ids]), output_attentions=True)
    return [layer[0].float().tolist() for layer in out.attentions]


def slow_score(
    model: PreTrainedModel, example: Example, spoken: list[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """(score, aligned) of every head, with w_t = spoken[t]."""
    attention = eager_attention(model, [*example.prompt_ids, *spoken])
    needle = {j for item in example.needles for j in range(*item.token_span)}
    wanted = {w for w in example.answer_ids if any(example.prompt_ids[j] == w for j in needle)}
    scores, aligned_scores = [], []
    for layer in attention:
        scores.append([])
        aligned_scores.append([])
        for head in layer:
            hits, aligned_hits = set(), set()
            for t, token in enumerate(spoken):
                row = head[len(example.prompt_ids) - 1 + t]
                best = max(range(len(row)), key=lambda j, row=row: (row[j], -j))
                if token in wanted and best in needle and example.prompt_ids[best] == token:
                    hits.add(token)
                    nth = spoken[:t].count(token)
                    for item in example.needles:
                        places = [j for j in range(*item.answer_token_span) if example.prompt_ids[j] == token]
                        if best in places[nth : nth + 1]:
                            aligned_hits.add(token)
            scores[-1].append(len(hits) / len(wanted) if wanted else math.nan)
            aligned_scores[-1].append(len(aligned_hits) / len(wanted) if wanted else math.nan)
    return scores, aligned_scores
