"""Control behaviours: what a knockout does to a model's loss on plain text, where there is nothing to retrieve.

With x_1..x_n the tokens of a text, heads knocked out at every row whatever the scope, for every row predicts a token:

    text_nll = -1/(n-1) sum_{t=2..n} log p(x_t | x_<t)          nats per token; the perplexity is its exponential

The other control behaviour, short-context questions, is answered as any question is, on `rhstudy.data.control_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import knock_out
from rhstudy.models.batch import pad_batch
from rhstudy.models.generate import mean_answer_nll, run_rows
from rhstudy.models.load import LoadedModel
from rhstudy.shapes import Float

LOGIT_ROWS = 2**11
"""Rows whose logits are held at a time: 2 GB for a vocabulary of 256,000."""


@torch.inference_mode()
def text_losses(
    condition: Condition,
    loaded: LoadedModel,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    means: Float[Tensor, "layers heads dim"] | None = None,
) -> list[float | None]:
    """The loss on each text under `condition`, nats per token; None for a text of fewer than 2 tokens.

    Args:
        condition: heads to knock out; an empty set is the baseline.
        loaded: the model.
        texts: token ids.
        batch_size: texts run together at most; fewer where their logits would take too much memory.
        means: of every head, where the mode needs them.
    """
    losses: list[float | None] = [None] * len(texts)
    known = [index for index, text in enumerate(texts) if len(text) > 1]
    longest = max((len(texts[index]) for index in known), default=1)
    size = max(1, min(batch_size, LOGIT_ROWS // longest))
    for start in range(0, len(known), size):
        chosen = known[start : start + size]
        first, rest = [texts[index][:1] for index in chosen], [texts[index][1:] for index in chosen]
        with knock_out(loaded.model, condition.heads, condition.mode, means=means):
            logits = run_rows(loaded.model, pad_batch(first, rest, loaded.pad_id, loaded.model.device), first_row=0)
        found = mean_answer_nll(logits[:, :-1], rest).tolist()
        for index, loss in zip(chosen, found, strict=True):
            losses[index] = loss
    return losses
