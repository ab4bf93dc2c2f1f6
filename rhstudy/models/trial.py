"""A few tiny passes that show how a model calls attention, and whether what the observer sees is all there is.

What a class declares about itself is not enough: layers may skip the attention registry, subtract two softmaxes, pick
keys by an index that only some attention functions know, or add biases through the mask. So the model is run on a
handful of tokens with an attention function that only takes notes; the rules below speak about those notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TRIAL_ATTENTION = "rhstudy_trial"
_KNOWN_TENSORS = {"position_ids", "cache_position"}
_PROMPT, _PADS = 6, 2
_FAILURES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the attention function.

    Attributes:
        module: who called.
        num_heads: query heads it brought.
        num_kv_heads: key/value heads it brought.
        query: what it asked with, after rotary positions: (batch, heads, rows, dim).
        mask: the mask's number format; None without a mask.
        causal: whether a missing mask means causal attention.
        softcap: of the logits; None without one.
        strange: names of tensors it passed besides that could change its softmax.
    """

    module: nn.Module
    num_heads: int
    num_kv_heads: int
    query: Tensor
    mask: torch.dtype | None
    causal: bool
    softcap: float | None
    strange: tuple[str, ...]


_CALLS: ContextVar[list[Call] | None] = ContextVar("trial_calls", default=None)


def _noting_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    calls, causal = _CALLS.get(), kwargs.get("is_causal")
    if calls is not None:
        strange = (name for name, given in kwargs.items() if isinstance(given, Tensor) and name not in _KNOWN_TENSORS)
        calls.append(
            Call(
                module=module,
                num_heads=query.shape[1],
                num_kv_heads=key.shape[1],
                query=query,
                mask=None if attention_mask is None else attention_mask.dtype,
                causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
                softcap=kwargs.get("softcap"),
                strange=tuple(strange),
            )
        )
    z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=kwargs.get("scaling"))
    return z, None


AttentionInterface.register(TRIAL_ATTENTION, _noting_attention)
AttentionMaskInterface.register(TRIAL_ATTENTION, sdpa_mask)


def objection(model: PreTrainedModel, layers: Mapping[nn.Module, int], num_heads: int, num_kv_heads: int) -> str:
    """Why `model`'s attention cannot be observed exactly, as its behaviour on a few tokens shows it; empty if it can.

    Args:
        model: the decoder itself, without wrappers.
        layers: its attention modules and their layer index.
        num_heads: query heads each of them should have.
        num_kv_heads: key/value heads each of them should have.
    """
    passes: list[list[Call]] = []
    try:
        with _noting(model), torch.no_grad():
            for run in (_plain, _positioned, _padded_then_decoded):
                calls: list[Call] = []
                _CALLS.set(calls)
                run(model)
                passes.append(calls)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        return f"it cannot run a padded prompt and go on from a cache: {type(error).__name__}: {reason}"
    plain, positioned, decoded = passes
    for calls, rows in ((plain, [_PROMPT]), (positioned, [_PROMPT]), (decoded, [_PROMPT, 1])):
        if found := _called_wrongly(calls, layers, rows):
            return found
    softcap = getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    every = (_objection_to(call, layers, num_heads, num_kv_heads, softcap) for calls in passes for call in calls)
    return next(filter(None, every), "") or _moved(plain[0], positioned[0])


def _called_wrongly(calls: list[Call], layers: Mapping[nn.Module, int], rows: list[int]) -> str:
    strangers = [call.module for call in calls if call.module not in layers]
    if strangers:
        return f"attention is also computed in {type(strangers[0]).__name__}, which is none of its numbered layers"
    for module, layer in layers.items():
        where, seen = f"layer {layer} ({type(module).__name__})", [call for call in calls if call.module is module]
        if len(seen) != len(rows):
            return f"{where} computes {len(seen) / len(rows):g} registered softmaxes a pass, not 1"
        short = [(call.query.shape[2], num) for call, num in zip(seen, rows, strict=True) if call.query.shape[2] != num]
        if short:
            return f"{where} runs {short[0][0]} of the {short[0][1]} rows of a pass"
    return ""


def _objection_to(
    call: Call, layers: Mapping[nn.Module, int], num_heads: int, num_kv_heads: int, softcap: float | None
) -> str:
    where = f"layer {layers[call.module]} ({type(call.module).__name__})"
    if call.num_heads != num_heads or call.num_kv_heads != num_kv_heads:
        got = f"{call.num_heads} heads and {call.num_kv_heads} key/value heads"
        return f"{where} has {got} where the model has {num_heads} and {num_kv_heads}"
    if call.strange:
        return f"{where} passes {', '.join(call.strange)} to its attention, which plain softmax leaves out"
    if call.mask not in (None, torch.bool):
        return f"{where} adds numbers to its attention logits through the mask"
    if not call.causal:
        return f"{where} is not causal"
    if call.softcap != softcap:
        return f"{where} uses softcap {call.softcap} where the config says attn_logit_softcapping = {softcap}"
    return ""


def _moved(plain: Call, positioned: Call) -> str:
    first, second = plain.query.float(), positioned.query.float()
    if (first - second).abs().max() <= 1e-2 * first.abs().max():
        return ""
    return "its positions do not count from 0 at the first token"


@contextmanager
def _noting(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    token = _CALLS.set(None)
    model.set_attn_implementation(TRIAL_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _CALLS.reset(token)


def _ids(model: PreTrainedModel) -> Tensor:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    return (torch.arange(3, 3 + _PROMPT, device=model.device) % vocabulary)[None]


def _plain(model: PreTrainedModel) -> None:
    model(input_ids=_ids(model), use_cache=False)


def _positioned(model: PreTrainedModel) -> None:
    ids = _ids(model)
    model(input_ids=ids, position_ids=torch.arange(_PROMPT, device=ids.device)[None], use_cache=False)


def _padded_then_decoded(model: PreTrainedModel) -> None:
    ids = _ids(model).repeat(2, 1)
    pads = torch.tensor([[_PADS], [0]], device=ids.device)
    steps = torch.arange(_PROMPT + 1, device=ids.device)[None]
    mask, positions = (steps >= pads).long(), (steps - pads).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for part, seen in ((ids, slice(0, _PROMPT)), (ids[:, :1], slice(_PROMPT, _PROMPT + 1))):
        model(
            input_ids=part,
            attention_mask=mask[:, : seen.stop],
            position_ids=positions[:, seen],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
