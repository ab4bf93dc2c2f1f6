"""The training loss: cross entropy on the gold answer and its end token, nothing on the prompt.

    L = - sum_b sum_t log p(w_bt | prompt_b, w_b<t) / number of answer tokens in the batch       (nats per token)

Sequences are padded on the right, where causal rows never look, so no mask is passed and SDPA keeps its fastest kernel;
or they stand one behind the other in one row (see `causal`). Only rows that predict answer tokens reach the LM head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.transfer import moved
from rhstudy.shapes import Float, Int
from rhstudy.training.causal import packed
from rhstudy.types import Example

_GPU_MULTIPLE = 64
"""Padded lengths on a GPU: few different shapes, and rows aligned for its matrix units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBatch:
    """Sequences and where their answers are.

    Attributes:
        ids: (B, L) prompt + answer + end token, padded on the right; or (1, L), packed.
        picks: (T, 2) the (row of `ids`, position) that predicts each answer token.
        targets: (T,) the token each pick must predict.
        lengths: of the packed sequences; empty when they are padded.
        positions: (1, L) positions of packed tokens in their sequences; None when they are padded.
    """

    ids: Int[Tensor, "batch tokens"]
    picks: Int[Tensor, "targets 2"]
    targets: Int[Tensor, " targets"]
    lengths: tuple[int, ...] = ()
    positions: Int[Tensor, "1 tokens"] | None = None


def answer_batch(
    examples: Sequence[Example], end_id: int, device: torch.device | str, *, packing: bool = False
) -> AnswerBatch:
    """Lay out `examples` for the answer loss; `end_id` closes every answer and fills the padding."""
    sequences = [[*example.prompt_ids, *example.answer_ids, end_id] for example in examples]
    lengths = [len(sequence) for sequence in sequences]
    starts = [0] * len(sequences)
    if packing:
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        rows = [[token for sequence in sequences for token in sequence]]
    else:
        rows = sequences
    ids = torch.full((len(rows), _padded(max(map(len, rows)), packing, device)), end_id, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    picks, targets = [], []
    for index, (example, sequence) in enumerate(zip(examples, sequences, strict=True)):
        for place in range(example.num_prompt_tokens, len(sequence)):
            picks.append((0 if packing else index, starts[index] + place - 1))
            targets.append(sequence[place])
    positions = torch.cat([torch.arange(length) for length in lengths])[None] if packing else None
    return AnswerBatch(
        ids=moved(ids, device),
        picks=moved(torch.tensor(picks), device),
        targets=moved(torch.tensor(targets), device),
        lengths=tuple(lengths) if packing else (),
        positions=None if positions is None else moved(positions, device),
    )


def _padded(length: int, packing: bool, device: torch.device | str) -> int:
    on_gpu = torch.device(device).type == "cuda"
    return length if packing or not on_gpu else -(-length // _GPU_MULTIPLE) * _GPU_MULTIPLE


def answer_loss(model: PreTrainedModel, batch: AnswerBatch) -> Float[Tensor, ""]:
    """Summed (not averaged) cross entropy over the batch's answer tokens, in float32.

    Raises:
        InputError: the model has no LM head.
    """
    options: dict[str, Any] = {} if batch.positions is None else {"position_ids": batch.positions}
    with _only(model, batch.picks), packed(batch.lengths):
        logits = model(input_ids=batch.ids, use_cache=False, **options).logits
    return nn.functional.cross_entropy(logits[0].float(), batch.targets, reduction="sum")


@contextmanager
def _only(model: PreTrainedModel, picks: Tensor) -> Iterator[None]:
    """Inside, the LM head sees the picked rows of all sequences as one sequence (1, T, H), and no other row."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    got, remedy = f"<{type(model).__name__}>", "Load it as a causal LM"
    require(head is not None, "model", "have an LM head", got, remedy)

    def pick(_module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][picks[:, 0], picks[:, 1]][None], *given[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
