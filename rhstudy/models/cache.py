"""Key/value caches with room: a decoding step writes one row behind the tokens there instead of copying them all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rhstudy.models.anatomy import anatomy
from rhstudy.shapes import Int

_STEP = 64
"""Rooms are multiples of this, as SDPA's masked kernels want them."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer whose keys and values are the first tokens of larger tensors.

    Args:
        keys: (batch, kv_heads, room, dim).
        values: (batch, kv_heads, room, value_dim).
        num_tokens: how many are filled.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.key_room, self.value_room = keys, values
        self.fill(num_tokens)

    def fill(self, num_tokens: int) -> None:
        """Count the first `num_tokens` as filled, whatever is behind them."""
        self.keys, self.values = self.key_room[:, :, :num_tokens], self.value_room[:, :, :num_tokens]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens behind those there; makes more room when it runs out."""
        before, count = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if count > self.key_room.shape[2]:
            self.make_room(count + count // 4)
        self.key_room[:, :, before:count] = key_states
        self.value_room[:, :, before:count] = value_states
        self.fill(count)
        return self.keys, self.values

    def make_room(self, num_tokens: int) -> None:
        """Let at least `num_tokens` fit."""
        if num_tokens <= self.key_room.shape[2]:
            return
        filled = self.keys.shape[2]
        self.key_room, self.value_room = (_enlarged(room, num_tokens) for room in (self.key_room, self.value_room))
        self.fill(filled)


def _enlarged(room: Tensor, num_tokens: int) -> Tensor:
    larger = room.new_zeros(*room.shape[:2], room_for(num_tokens), room.shape[3])
    larger[:, :, : room.shape[2]] = room
    return larger


def room_for(num_tokens: int) -> int:
    """The room made for `num_tokens`."""
    return -(-num_tokens // _STEP) * _STEP


class FixedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that always shows its whole room, written at a place known on the device alone: for recorded passes.

    Args:
        layer: whose room is used.
        place: (1,) index of the next token.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: RoomyLayer, place: Int[Tensor, " 1"]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.keys, self.values, self._place = layer.key_room, layer.value_room, place

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token."""
        self.keys.index_copy_(2, self._place, key_states)
        self.values.index_copy_(2, self._place, value_states)
        return self.keys, self.values


def keeps_every_key(model: PreTrainedModel) -> bool:
    """Whether all layers of `model` keep all keys and values, as layers without a sliding window do."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def joined(caches: Sequence[tuple[Cache, Sequence[int]]], num_tokens: int, room: int) -> Cache:
    """One cache of all examples, moved to the right so that all end at index `num_tokens` - 1.

    Args:
        caches: filled caches whose examples begin at index 0, and how many tokens each of their examples has.
        num_tokens: of the longest example.
        room: for how many tokens more room is made.
    """
    lengths = [length for _, several in caches for length in several]
    # Taken out of their caches, so that the memory of each layer is free for the next.
    stacks = [[(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)] for cache, _ in caches]
    for cache, _ in caches:
        cache.layers.clear()
    layers: list[Any] = []
    while stacks[0]:
        parts = [stack.pop(0) for stack in stacks]
        keys, values = (_moved_right([part[kind] for part in parts], lengths, num_tokens, room) for kind in (0, 1))
        layers.append(RoomyLayer(keys, values, num_tokens))
    return Cache(layers=layers)


def _moved_right(parts: Sequence[Tensor], lengths: Sequence[int], num_tokens: int, room: int) -> Tensor:
    _, heads, _, dim = parts[0].shape
    whole = parts[0].new_zeros(len(lengths), heads, room_for(num_tokens + room), dim)
    examples = [example for part in parts for example in part]
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        whole[row, :, num_tokens - length : num_tokens] = example[:, :length]
    return whole


def examples_that_fit(model: PreTrainedModel, num_tokens: int) -> int:
    """How many examples of this length to decode at once: as many as a third of the free memory has room for.

    At most 32 on an accelerator and 8 elsewhere; more would not make a step of a small model cheaper.
    """
    if model.device.type != "cuda":
        return 8
    layout = anatomy(model)
    # Keys, values, and as much again for a layer's masks, copies and logits.
    each = 3 * layout.num_layers * layout.num_kv_heads * layout.head_dim * num_tokens * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, min(32, int(free + unused) // 3 // each))


@contextmanager
def borrowed(cache: Cache) -> Iterator[Cache]:
    """A cache with the content of `cache` to write on; `cache` itself is afterwards as it was.

    It is cropped back. A sliding-window cache has dropped old keys that no crop brings back: there a copy is lent.
    """
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        yield copy.deepcopy(cache)
        return
    num_tokens = cache.get_seq_length()
    try:
        yield cache
    finally:
        for layer in cache.layers:
            if isinstance(layer, RoomyLayer):
                layer.fill(num_tokens)
            elif isinstance(layer, DynamicLayer):
                layer.crop(num_tokens - layer.get_seq_length())
