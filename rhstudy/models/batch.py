"""Token ids of several examples in one tensor.

Prompts are padded on the left so that all end at the same index P - 1, gold answers are padded on the right. Row P - 1
predicts the first answer token and row P + t - 2 predicts w_t, for every example.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rhstudy.errors import require
from rhstudy.models.transfer import moved
from rhstudy.shapes import Int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """Token ids of B examples in the module's layout.

    Attributes:
        ids: (B, P + A) token ids; A is 0 for prompts alone.
        mask: (B, P + A), 1 for real tokens; None when nothing is padded.
        positions: (B, P + A) position ids, counted from each example's first real token.
        num_prompt: P.
        pads: left padding of each example, so that prompt position j is at index j + pads[b].
    """

    ids: Int[Tensor, "batch tokens"]
    mask: Int[Tensor, "batch tokens"] | None
    positions: Int[Tensor, "batch tokens"]
    num_prompt: int
    pads: tuple[int, ...]

    @property
    def num_answer(self) -> int:
        """A: the longest answer of the batch in tokens."""
        return int(self.ids.shape[1]) - self.num_prompt


def pad_batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> PaddedBatch:
    """Lay out prompts (left-padded) and answers (right-padded).

    Args:
        prompts: token ids of each prompt, none empty.
        answers: token ids of each answer, or empty sequences for prompts alone.
        pad_id: any token id; its positions are masked.
        device: where the tensors go.

    Raises:
        InputError: an empty prompt, or as many answers as prompts are not given.
    """
    require(len(prompts) == len(answers), "answers", f"be one per prompt ({len(prompts)})", len(answers), "Pass []")
    shortest = min(map(len, prompts), default=0)
    require(shortest > 0, "prompts", "be non-empty", [len(prompt) for prompt in prompts], "Drop empty prompts")
    num_prompt, num_answer = max(map(len, prompts)), max(map(len, answers))
    pads = tuple(num_prompt - len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), num_prompt + num_answer), pad_id, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, pads[row] : num_prompt + len(answer)] = np.fromiter(itertools.chain(prompt, answer), np.int64)
    positions = torch.arange(ids.shape[1], device=device).expand(*ids.shape)
    mask = None
    if any(pads):  # padding on the right alone needs no mask: causal rows never see it
        starts = moved(torch.tensor(pads)[:, None], device)
        ends = moved(torch.tensor([num_prompt + len(answer) for answer in answers])[:, None], device)
        mask = ((positions >= starts) & (positions < ends)).long()
        positions = (positions - starts).clamp(min=0)
    return PaddedBatch(
        ids=moved(torch.from_numpy(ids), device), mask=mask, positions=positions, num_prompt=num_prompt, pads=pads
    )
