"""Watching attention heads, and editing what they put out, inside the forward passes of a plain SDPA model.

Watching: which position each head attends to most, for chosen rows, at the price of a plain forward.

The model runs on SDPA. For the few rows that predict answer tokens the observer recomputes the attention of every
head from the same queries and keys (after RoPE and after the cache), so nothing of size L x L is ever kept:
for R rows one layer costs R x H x L float32 numbers, transient.

    a[l, h, r, j] = softmax_j( q[l, h, r] . k[l, h, j] * scaling )   over the visible positions j
    j*[l, h, r]   = argmax_j a[l, h, r, j]                            ties: lowest j; compared in float32

Softmax is monotone, so j* is taken from the logits. Positions are indices into the padded sequence from its first
token on, also under chunked prefill and with sliding-window caches that have dropped old keys.

Editing: z[l, h, t] = sum_j a[l, h, t, j] v[l, h, j], what head h of layer l puts out at row t before o_proj, may be
replaced (`edit_heads`). Interventions on heads are built on that; while none is active the model is plain SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.models.anatomy import anatomy, attention_modules, require_observable
from rhstudy.shapes import Bool, Float, Int

OBSERVED_ATTENTION = "rhstudy_observed"
_ACTIVE: ContextVar[AttentionObserver | None] = ContextVar("active_observer", default=None)

HeadEdit = Callable[[int, Float[Tensor, "batch rows heads dim"]], Float[Tensor, "batch rows heads dim"]]
"""Called with a layer and the z of all its heads for the rows of this pass; returns the z to go on with."""

_EDITS: ContextVar[tuple[tuple[Mapping[nn.Module, int], HeadEdit], ...]] = ContextVar("head_edits", default=())


class AttentionObserver:
    """Collects j* of every head for chosen rows while a model runs; made by `observe`.

    The caller says before each forward pass how many tokens came before it (`seen`), so that rows keep their
    absolute positions over chunks and decoding steps.

    Attributes:
        rows: absolute positions to observe, ascending, the same for every example of the batch.
        seen: tokens already in the cache when the next forward pass begins.
    """

    def __init__(self, rows: Sequence[int], num_layers: int) -> None:
        self.rows = sorted(rows)
        self.seen = 0
        self._num_layers = num_layers
        self._argmax: dict[int, list[Tensor]] = {}

    def watch(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        """Called by the attention function of each layer; keeps j* of the observed rows of this pass."""
        first, num_new = self.seen, query.shape[2]
        local = [row - first for row in self.rows if first <= row < first + num_new]
        if not local:
            return
        num_keys = key.shape[2]
        key_offset = first + num_new - num_keys
        index = torch.tensor(local, device=query.device)
        logits = attention_logits(query.index_select(2, index), key, scaling)
        visible = visible_keys(index + first, num_keys, key_offset, mask, index)
        found = lowest_argmax(logits.masked_fill(~visible, float("-inf"))) + key_offset
        self._argmax.setdefault(int(module.layer_idx), []).append(found)  # type: ignore[arg-type]

    def argmax(self, num_rows: int | None = None) -> Int[Tensor, "layers batch heads rows"]:
        """j* of every head for the first `num_rows` observed rows (all of `rows` by default), on the CPU.

        Raises:
            StudyError: some layer or some row was never observed.
        """
        missing = sorted(set(range(self._num_layers)) - set(self._argmax))
        if missing:
            got, remedy = f"<nothing from layers {missing}>", "The model bypasses the attention registry there"
            raise StudyError(message("model", "show every layer's attention", got, remedy))
        stacked = torch.stack([torch.cat(self._argmax[layer], dim=2).cpu() for layer in range(self._num_layers)])
        wanted = len(self.rows) if num_rows is None else num_rows
        if stacked.shape[3] < wanted:
            got = f"<{stacked.shape[3]} of {wanted} rows>"
            raise StudyError(message("observer.rows", "all lie inside the passes run", got, "Set `seen` before each"))
        return stacked[..., :wanted]


def attention_logits(
    query: Float[Tensor, "batch heads rows dim"], key: Float[Tensor, "batch kv_heads keys dim"], scaling: float | None
) -> Float[Tensor, "batch heads rows keys"]:
    """q . k * scaling in float32; each key/value head serves `heads / kv_heads` consecutive query heads."""
    batch, heads, rows, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.float().reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    logits = grouped @ key.float().transpose(2, 3)
    return logits.reshape(batch, heads, rows, keys) * (dim**-0.5 if scaling is None else scaling)


def visible_keys(
    positions: Int[Tensor, " rows"], num_keys: int, key_offset: int, mask: Tensor | None, local: Int[Tensor, " rows"]
) -> Bool[Tensor, "batch_or_1 heads_or_1 rows keys"]:
    """Which keys each row may attend to: SDPA's own boolean mask, or plain causality when it passed none."""
    if mask is not None:
        chosen = mask.index_select(2, local)[..., :num_keys]
        return chosen if chosen.dtype == torch.bool else chosen >= 0
    keys = torch.arange(num_keys, device=positions.device) + key_offset
    return (keys[None, :] <= positions[:, None])[None, None]


def lowest_argmax(logits: Float[Tensor, "*rows keys"]) -> Int[Tensor, "*rows"]:
    """Index of the largest value over the last axis; among equals the lowest (torch.argmax promises none)."""
    top = logits.amax(dim=-1, keepdim=True)
    positions = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == top, positions, logits.shape[-1]).amin(dim=-1)


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            got, remedy = f"<{type(module).__name__} with {name}>", "Its scores would be wrong; choose another model"
            raise InputError(message("model", "use plain softmax attention", got, remedy))
    observer = _ACTIVE.get()
    if observer is not None:
        observer.watch(module, query, key, attention_mask, kwargs.get("scaling"))
    z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _edited(module, z), None


def _edited(module: nn.Module, z: Float[Tensor, "batch rows heads dim"]) -> Float[Tensor, "batch rows heads dim"]:
    for layers, edit in _EDITS.get():
        if module in layers:
            shape = z.shape
            z = edit(layers[module], z)
            require(z.shape == shape, "edited z", f"keep its shape {tuple(shape)}", tuple(z.shape), "Edit values alone")
    return z


# Without the mask function of the same name, left padding and chunked prefill would be silently wrong.
AttentionInterface.register(OBSERVED_ATTENTION, _observed_attention)
AttentionMaskInterface.register(OBSERVED_ATTENTION, sdpa_mask)


def make_observable(model: PreTrainedModel) -> None:
    """Route `model`'s attention through the observed function (plain SDPA while nobody observes).

    Raises:
        InputError: the model's attention cannot be observed exactly; see `require_observable`.
    """
    require_observable(model)
    if model.config._attn_implementation != OBSERVED_ATTENTION:
        model.set_attn_implementation(OBSERVED_ATTENTION)


@contextmanager
def observe(model: PreTrainedModel, rows: Sequence[int]) -> Iterator[AttentionObserver]:
    """Observe the heads of `model` at absolute positions `rows` for the forward passes inside the block.

    Args:
        model: any decoder `require_observable` accepts.
        rows: positions in the padded sequence whose attention is wanted.

    Yields:
        The observer: set `seen` before every pass after the first, read `argmax()` after the last.
    """
    make_observable(model)
    observer = AttentionObserver(rows, anatomy(model).num_layers)
    token = _ACTIVE.set(observer)
    try:
        yield observer
    finally:
        _ACTIVE.reset(token)


@contextmanager
def edit_heads(model: PreTrainedModel, edit: HeadEdit) -> Iterator[None]:
    """Let `edit` replace the head outputs z of every layer of `model` for the forward passes inside the block.

    Other models that run inside the block are left alone. Blocks may be nested: edits are applied in the order in
    which their blocks were entered.

    Args:
        model: any decoder `require_observable` accepts.
        edit: gets the layer and its z of shape (batch, rows, heads, head_dim), before o_proj; it must not write into
            that tensor, and what it returns must have the same shape.
    """
    make_observable(model)
    layers = {module: layer for layer, (_, module) in attention_modules(model).items()}
    token = _EDITS.set((*_EDITS.get(), (layers, edit)))
    try:
        yield
    finally:
        _EDITS.reset(token)
