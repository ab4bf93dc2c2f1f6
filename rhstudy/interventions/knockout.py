"""Attention knockout: chosen heads put out nothing, and what the model can no longer do was done through them.

With z[l, h, t] what head h of layer l puts out at row t, before o_proj, and S the heads knocked out:

    zero_output     z[l, h, t] = 0 for (l, h) in S, at every row t run inside the block

so that o_proj adds to the residual stream what the other heads of the layer put out, and nothing of S (a bias of o_proj
stays). Keys and values are untouched: rows run before the block keep theirs, and other query heads that share a
key/value head with S go on as before.

Published code differs: the masking program of Wu et al. 2024 (arXiv 2404.15574) sets the *query* of a head to 0. That
does not remove the head: all logits become equal, so it puts out the plain mean of the values it may see (uniform
attention). It acts at decoding steps alone, without the last prompt row that predicts the first answer token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import HeadEdit, edit_heads
from rhstudy.shapes import Float
from rhstudy.types import Head

KnockoutMode = Literal["zero_output", "mean_output", "uniform_attention", "block_needle"]
KnockoutScope = Literal["decode", "prefill_and_decode"]
"""``decode`` begins with the last prompt token, the row that predicts the first answer token."""


@contextmanager
def knock_out(
    model: PreTrainedModel, heads: Iterable[Head], mode: KnockoutMode | str = "zero_output"
) -> Iterator[None]:
    """Knock `heads` out of `model` for the forward passes inside the block; see the module docstring.

    No head at all changes nothing: the logits are those of the plain model, bit for bit.

    Args:
        model: any decoder whose heads can be observed.
        heads: (layer, query head) pairs; repeats count once.
        mode: what a knocked-out head puts out instead.

    Raises:
        InputError: an unknown mode, or a head that the model does not have.
    """
    require(mode == "zero_output", "knockout.mode", "be zero_output", mode, "Other modes are not there yet")
    chosen = sorted(set(heads))
    layout = anatomy(model)
    outside = [head for head in chosen if not (0 <= head[0] < layout.num_layers and 0 <= head[1] < layout.num_heads)]
    require(
        not outside,
        "heads",
        f"lie within the model's {layout.num_layers} layers x {layout.num_heads} query heads",
        outside[:3],
        "Heads are (layer, query head), both counted from 0; take them from a model of this shape",
    )
    with edit_heads(model, _zero_output(chosen)):
        yield


def _zero_output(heads: Iterable[Head]) -> HeadEdit:
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def edit(layer: int, z: Float[Tensor, "batch rows heads dim"]) -> Float[Tensor, "batch rows heads dim"]:
        if layer not in by_layer:
            return z
        return z.index_fill(2, torch.tensor(by_layer[layer], device=z.device), 0.0)

    return edit
