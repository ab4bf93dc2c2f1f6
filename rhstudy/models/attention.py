"""The one attention function of every model that is observed or edited: plain SDPA, a place to look, a place to edit.

Models are routed through transformers' attention registry; no modeling file is patched. While nobody looks and nothing
is edited the model is plain SDPA, bit for bit (but for masked decoding steps on a GPU, where keys that several heads
share are not copied for each: the same sums, rounded otherwise).

Editing: z[l, h, t] = sum_j a[l, h, t, j] v[l, h, j], what head h of layer l puts out at row t before o_proj, may be
replaced (`edit_heads`), and so may the queries and the mask it comes from (`edit_attention`). Interventions on heads
are built on that.

Forks: several continuations of one prompt are rows of the batch that share the prompt's keys (`rhstudy.models.forks`).
They are told by a mask with a row for every query head of a key/value head, which other masks do not have.

SDPA knows no softcap (Gemma 2: logits c tanh(q . k scaling / c)). Models that ask for one get it from
`softcapped_attention`: the eager equation, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask

from rhstudy.errors import InputError, message, require
from rhstudy.models.anatomy import Anatomy, attention_modules, require_observable
from rhstudy.shapes import Bool, Float, Int

OBSERVED_ATTENTION = "rhstudy_observed"
BLOCK_BYTES = 2**28
"""The most that float32 logits of one block of rows take; more rows are done in several blocks."""

HeadEdit = Callable[[int, Float[Tensor, "batch rows heads dim"]], Float[Tensor, "batch rows heads dim"]]
"""Called with a layer and the z of all its heads for the rows of this pass; returns the z to go on with."""


Watch = Callable[[nn.Module, Tensor, Tensor, Tensor | None, float, float | None], None]
"""Called once a layer and pass with its module, query (batch, heads, rows, dim) and key (batch, kv_heads, keys, dim)
after RoPE and after the cache, the mask, the scaling and the softcap (None: none) of its logits."""


class AttentionInputs(NamedTuple):
    """What the attention of one layer and pass is computed from.

    Attributes:
        query: (batch, heads, rows, dim) after RoPE.
        key: (batch, kv_heads, keys, dim) after RoPE and the cache; fewer examples than queries where forks share them.
        value: (batch, kv_heads, keys, value_dim).
        mask: SDPA's boolean or additive mask; None means plain causality, the last row seeing every key.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


Attend = Callable[[AttentionInputs], Tensor]
"""From inputs to z (batch, rows, heads, value_dim)."""
AttentionEdit = Callable[[int, AttentionInputs, Attend], Tensor]
"""Called with a layer, its inputs and what computes z from inputs; returns the z to go on with, of the same shape."""

_WATCH: ContextVar[Watch | None] = ContextVar("attention_watch", default=None)
_EDITS: ContextVar[tuple[tuple[Mapping[nn.Module, int], AttentionEdit], ...]] = ContextVar("head_edits", default=())


def attention_logits(
    query: Float[Tensor, "*layers batch heads rows dim"], key: Float[Tensor, "*layers batch kv_heads keys dim"]
) -> Float[Tensor, "*layers batch heads rows keys"]:
    """q . k in float32, unscaled; each key/value head serves `heads / kv_heads` consecutive query heads.

    Half-precision products are exact in float32 and summed there, without a float32 copy of the keys on a GPU.
    """
    kv_heads, num_keys, dim = key.shape[-3:]
    rows = query.shape[-3] // kv_heads * query.shape[-2]
    grouped = query.reshape(-1, rows, dim)
    keys = key.reshape(-1, num_keys, dim).transpose(1, 2)
    if query.is_cuda and query.dtype != torch.float32:
        logits = torch.bmm(grouped, keys, out_dtype=torch.float32)
    else:
        logits = torch.bmm(grouped.float(), keys.float())
    return logits.reshape(*query.shape[:-1], num_keys)


def hidden_keys(
    mask: Tensor | None, rows: range, num_new: int, num_keys: int, device: torch.device
) -> Bool[Tensor, "batch_or_1 heads_or_1 rows keys"]:
    """Which keys each of `rows` (indices among the `num_new` rows of this pass) may not attend to.

    Args:
        mask: SDPA's boolean or additive mask; None means plain causality, the last row seeing every key.
        rows: contiguous.
        num_new: rows of the pass.
        num_keys: keys of the layer, those of the cache included.
        device: where the result goes.
    """
    if mask is not None:
        chosen = mask[:, :, rows.start : rows.stop, :num_keys]
        return ~chosen if chosen.dtype == torch.bool else chosen < 0
    own = torch.arange(rows.start, rows.stop, device=device) + (num_keys - num_new)
    return (torch.arange(num_keys, device=device)[None, :] > own[:, None])[None, None]


def hidden_from_rows(
    mask: Tensor | None, rows: Int[Tensor, "batch rows"], num_keys: int
) -> Bool[Tensor, "batch heads_or_1 rows keys"]:
    """`hidden_keys` of a pass without cache, for rows that differ between examples."""
    if mask is None:
        return (torch.arange(num_keys, device=rows.device) > rows[:, :, None])[:, None]
    every = mask[..., :num_keys].expand(len(rows), -1, -1, -1)
    index = rows[:, None, :, None].expand(-1, every.shape[1], -1, num_keys)
    chosen = every.gather(2, index)
    return ~chosen if chosen.dtype == torch.bool else chosen < 0


def capped(logits: Float[Tensor, "*rows keys"], softcap: float | None) -> Float[Tensor, "*rows keys"]:
    """c tanh(logits / c); the logits themselves without a softcap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def softcapped_attention(
    query: Float[Tensor, "batch heads rows dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    mask: Tensor | None,
    scaling: float,
    softcap: float,
) -> Float[Tensor, "batch rows heads value_dim"]:
    """softmax(c tanh(q . k scaling / c)) v with logits and softmax in float32, as transformers' eager attention.

    Needs no more than `BLOCK_BYTES` for logits at any length; slower than a fused kernel.
    """
    batch, heads, num_new, _ = query.shape
    num_keys = key.shape[2]
    values = value.repeat_interleave(heads // value.shape[1], dim=1)
    step = max(1, BLOCK_BYTES // (4 * batch * heads * num_keys))
    blocks = []
    for start in range(0, num_new, step):
        rows = range(start, min(start + step, num_new))
        logits = capped(attention_logits(query[:, :, rows.start : rows.stop], key) * scaling, softcap)
        hidden = hidden_keys(mask, rows, num_new, num_keys, query.device)
        # Not -inf: a row of padding that may see nothing at all stays finite.
        weights = torch.softmax(logits.masked_fill(hidden, torch.finfo(torch.float32).min), dim=-1)
        blocks.append(weights.to(query.dtype) @ values)
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous()


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            got, remedy = f"<{type(module).__name__} with {name}>", "Its scores would be wrong; choose another model"
            raise InputError(message("model", "use plain softmax attention", got, remedy))
    softcap, given = kwargs.get("softcap"), kwargs.get("scaling")
    scaling: float = query.shape[-1] ** -0.5 if given is None else given
    watch = _WATCH.get()
    if watch is not None:
        watch(module, query, key, attention_mask, scaling, softcap)
    attend: Attend = partial(_attend, module, scaling, softcap, kwargs)
    for layers, edit in _EDITS.get():
        if module in layers:
            attend = _within(edit, layers[module], attend)
    return attend(AttentionInputs(query, key, value, attention_mask)), None


def _within(edit: AttentionEdit, layer: int, attend: Attend) -> Attend:
    return lambda inputs: edit(layer, inputs, attend)


def _attend(
    module: nn.Module, scaling: float, softcap: float | None, kwargs: Mapping[str, Any], inputs: AttentionInputs
) -> Tensor:
    query, key, value, mask = inputs
    if mask is not None and mask.shape[2] != query.shape[2]:
        return _forked(inputs, scaling, softcap)
    if softcap is not None:
        return softcapped_attention(query, key, value, mask, scaling, softcap)
    if mask is None and query.shape[2] == key.shape[2] > 1 and not module.training:
        return _causal_sdpa(module, query, key, value, scaling, kwargs.get("is_causal"))
    if query.shape[2] == 1 and query.is_cuda and mask is not None:
        return _one_row_sdpa(query, key, value, mask, scaling)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


def _forked(inputs: AttentionInputs, scaling: float, softcap: float | None) -> Tensor:
    """Heads that share keys and forks that share a prompt are rows of one head: no key is copied for any of them."""
    query, key, value, mask = inputs
    examples, kv_heads = key.shape[:2]
    _, heads, rows, dim = query.shape
    forks = query.shape[0] // examples
    apart = query.view(examples, forks, kv_heads, heads // kv_heads, rows, dim)
    folded = apart.permute(0, 2, 3, 1, 4, 5).reshape(examples, kv_heads, -1, dim)
    if softcap is None:
        z = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        z = softcapped_attention(folded, key, value, mask, scaling, softcap).transpose(1, 2)
    parts = z.reshape(examples, kv_heads, heads // kv_heads, forks, rows, -1)
    return parts.permute(0, 3, 4, 1, 2, 5).reshape(examples * forks, rows, heads, -1)


def _causal_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool | None
) -> Tensor:
    """What `sdpa_attention_forward` comes to in one unmasked pass, without the time its case distinctions take."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and not use_gqa_in_sdpa(None, key, value):
        groups = query.shape[1] // key.shape[1]
        key, value, grouped = repeat_kv(key, groups), repeat_kv(value, groups), False
    if causal is None:
        causal = bool(getattr(module, "is_causal", True))
    z = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return z.transpose(1, 2).contiguous()


def _one_row_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """One masked row a head: the heads that share keys are rows of one head, so that no key is copied for them."""
    batch, heads, _, dim = query.shape
    if mask.shape[1] > 1:
        mask = mask.reshape(batch, key.shape[1], -1, mask.shape[-1])
    grouped = query.reshape(batch, key.shape[1], -1, dim)
    z = nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return z.reshape(batch, heads, 1, -1).transpose(1, 2)


def is_edited() -> bool:
    """Whether a block of `edit_attention` or `edit_heads` is open."""
    return bool(_EDITS.get())


# Without the mask function of the same name, left padding and chunked prefill would be silently wrong.
AttentionInterface.register(OBSERVED_ATTENTION, _observed_attention)
AttentionMaskInterface.register(OBSERVED_ATTENTION, sdpa_mask)


def make_observable(model: PreTrainedModel) -> Anatomy:
    """Route `model`'s attention through the observed function (plain SDPA while nobody looks); returns its layout.

    Raises:
        InputError: the model's attention cannot be observed exactly; see `require_observable`.
    """
    layout = require_observable(model)
    if model.config._attn_implementation != OBSERVED_ATTENTION:
        model.set_attn_implementation(OBSERVED_ATTENTION)
    return layout


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Call `watch` in every layer of the forward passes of observable models inside the block."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


@contextmanager
def edit_attention(model: PreTrainedModel, edit: AttentionEdit) -> Iterator[None]:
    """Let `edit` compute the head outputs z of every layer of `model` for the forward passes inside the block.

    Other models that run inside the block are left alone. Blocks may be nested: what `edit` is given to compute z with
    includes the edits of the blocks entered before.

    Args:
        model: any decoder `require_observable` accepts.
        edit: see `AttentionEdit`; it must not write into the tensors it is given.
    """
    make_observable(model)
    layers = {module: layer for layer, (_, module) in attention_modules(model).items()}
    token = _EDITS.set((*_EDITS.get(), (layers, edit)))
    try:
        yield
    finally:
        _EDITS.reset(token)


@contextmanager
def edit_heads(model: PreTrainedModel, edit: HeadEdit) -> Iterator[None]:
    """Let `edit` replace the head outputs z of every layer of `model` for the forward passes inside the block.

    Nested blocks are applied in the order in which they were entered; see `edit_attention`.

    Args:
        model: any decoder `require_observable` accepts.
        edit: gets the layer and its z of shape (batch, rows, heads, head_dim), before o_proj; it must not write into
            that tensor, and what it returns must have the same shape.
    """

    def edited(layer: int, inputs: AttentionInputs, attend: Attend) -> Tensor:
        before = attend(inputs)
        z = edit(layer, before)
        shapes = tuple(before.shape), tuple(z.shape)
        require(shapes[0] == shapes[1], "edited z", f"keep its shape {shapes[0]}", shapes[1], "Edit values alone")
        return z

    with edit_attention(model, edited):
        yield
