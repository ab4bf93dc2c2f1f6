"""The training loss: cross entropy on the gold answer and its end token, nothing on the prompt.

    L = - sum_b sum_t log p(w_bt | prompt_b, w_b<t) / number of answer tokens in the batch       (nats per token)

Sequences are padded on the right, where causal rows never look, so no mask is passed and SDPA keeps its fastest kernel;
only the rows that predict answer tokens reach the LM head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.shapes import Float, Int
from rhstudy.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBatch:
    """Right-padded sequences and where their answers are.

    Attributes:
        ids: (B, L) prompt + answer + end token, padded on the right.
        rows: sorted union of all rows that predict an answer token of some example.
        picks: (T, 2) pairs (example, index into `rows`), one per answer token.
        targets: (T,) the token each pick must predict.
        num_tokens: real tokens in the batch, padding excluded.
    """

    ids: Int[Tensor, "batch tokens"]
    rows: Int[Tensor, " rows"]
    picks: Int[Tensor, "targets 2"]
    targets: Int[Tensor, " targets"]
    num_tokens: int


def answer_batch(examples: Sequence[Example], end_id: int, device: torch.device | str) -> AnswerBatch:
    """Lay out `examples` for the answer loss; `end_id` closes every answer and fills the padding."""
    sequences = [[*example.prompt_ids, *example.answer_ids, end_id] for example in examples]
    ids = torch.full((len(sequences), max(map(len, sequences))), end_id, dtype=torch.long)
    wanted: list[tuple[int, int, int]] = []
    for index, (example, sequence) in enumerate(zip(examples, sequences, strict=True)):
        ids[index, : len(sequence)] = torch.tensor(sequence)
        first = example.num_prompt_tokens
        wanted += [(index, place - 1, sequence[place]) for place in range(first, len(sequence))]
    rows = sorted({row for _, row, _ in wanted})
    index_of = {row: index for index, row in enumerate(rows)}
    return AnswerBatch(
        ids=ids.to(device),
        rows=torch.tensor(rows, device=device),
        picks=torch.tensor([(example, index_of[row]) for example, row, _ in wanted], device=device),
        targets=torch.tensor([token for _, _, token in wanted], device=device),
        num_tokens=sum(map(len, sequences)),
    )


def answer_loss(model: PreTrainedModel, batch: AnswerBatch) -> Float[Tensor, ""]:
    """Summed (not averaged) cross entropy over the batch's answer tokens, in float32."""
    logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=batch.rows).logits
    chosen = logits[batch.picks[:, 0], batch.picks[:, 1]].float()
    return torch.nn.functional.cross_entropy(chosen, batch.targets, reduction="sum")
