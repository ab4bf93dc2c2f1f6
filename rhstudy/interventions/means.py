"""What each head puts out on average: the values that `mean_output` knockout puts in place of z."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.attention import edit_heads
from rhstudy.models.batch import pad_batch
from rhstudy.models.generate import run_rows
from rhstudy.shapes import Float


@torch.inference_mode()
def head_means(
    model: PreTrainedModel, prompts: Iterable[Sequence[int]], *, chunk_tokens: int = 0
) -> Float[Tensor, "layers heads dim"]:
    """Mean of z[l, h, t], before o_proj, over all positions t of all prompts; every position counts alike.

    Sums are taken in float32 within a prompt and in float64 across prompts. Costs a prefill of each prompt.

    Args:
        model: any decoder whose heads can be observed.
        prompts: token ids, none empty: the score prompts, on which the heads were chosen.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.

    Returns:
        float32, on the CPU.

    Raises:
        InputError: no prompt, or an empty one.
    """
    sums: dict[int, Tensor] = {}
    count = 0

    def add(layer: int, z: Tensor) -> Tensor:
        total = z[0].float().sum(dim=0).double()
        sums[layer] = sums[layer] + total if layer in sums else total
        return z

    with edit_heads(model, add):
        for prompt in prompts:
            batch = pad_batch([prompt], [[]], 0, model.device)
            run_rows(model, batch, first_row=batch.num_prompt - 1, chunk_tokens=chunk_tokens)
            count += batch.num_prompt
    require(count > 0, "prompts", "hold at least one prompt", count, "Give the prompts the heads were scored on")
    return torch.stack([sums[layer].cpu() for layer in sorted(sums)]).div(count).float()
