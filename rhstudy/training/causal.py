"""Plain causal attention for training: no mask is made or looked for, and packed sequences do not see each other.

transformers looks at the positions of every forward pass to find packed sequences, for which Python waits for the GPU,
and turns them into a mask of L x L, with which SDPA leaves its fastest kernel. Here the caller says where sequences
begin, and each is a causal SDPA call of its own over the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rhstudy.errors import InputError, require
from rhstudy.models.anatomy import require_observable
from rhstudy.models.attention import OBSERVED_ATTENTION

# Not registered with AttentionMaskInterface, on purpose: for such names transformers makes no mask at all.
CAUSAL_ATTENTION, PACKED_ATTENTION = "rhstudy_causal", "rhstudy_packed"
_LENGTHS: ContextVar[tuple[int, ...]] = ContextVar("lengths of packed sequences", default=())


@contextmanager
def packed(lengths: Sequence[int]) -> Iterator[None]:
    """Inside, the one row of a batch is sequences of `lengths` tokens, one behind the other; empty: rows are whole."""
    token = _LENGTHS.set(tuple(lengths))
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def _packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    lengths = _LENGTHS.get()
    if not lengths:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    parts = zip(*(torch.split(tensor, list(lengths), 2) for tensor in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts]
    return torch.cat(outputs, 1), None


AttentionInterface.register(CAUSAL_ATTENTION, _causal)
AttentionInterface.register(PACKED_ATTENTION, _packed)


def is_plainly_causal(model: PreTrainedModel) -> bool:
    """Whether every layer of `model` is softmax attention over all earlier tokens and runs on SDPA as it is."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ()
    windows = any(kind != "full_attention" for kind in kinds) or (not kinds and getattr(config, "sliding_window", None))
    if windows or getattr(config, "attn_logit_softcapping", None) or not _on_sdpa(config):
        return False
    try:
        require_observable(model)  # nothing is added to its logits that a mask would carry
    except InputError:
        return False
    return True


def _on_sdpa(config: PretrainedConfig) -> bool:
    # A model that a detector watched before is left with the observed function: SDPA too.
    return config._attn_implementation in ("sdpa", OBSERVED_ATTENTION)


@contextmanager
def causal_attention(model: PreTrainedModel, *, packing: bool) -> Iterator[None]:
    """`model` attends by the function of this module; models with windows, caps or biases stay as they are.

    Raises:
        InputError: `packing` is asked for with such a model, whose packed sequences would see each other.
    """
    plain = is_plainly_causal(model)
    remedy = "Leave training.packing off: sequences are then padded, sorted by length"
    got = f"<{type(model).__name__} with windows, caps or biases>"
    require(plain or not packing, "training.packing", "be for models with plain causal attention", got, remedy)
    if not plain:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED_ATTENTION if packing else CAUSAL_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
