"""Key/value caches with room: a decoding step writes one row behind the tokens there instead of copying them all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rhstudy.shapes import Int

_STEP = 64
"""Rooms are multiples of this, as SDPA's masked kernels want them."""


class RoomyLayer(DynamicLayer):
    """A layer whose keys and values are the first tokens of larger tensors.

    Args:
        keys: (batch, kv_heads, room, dim).
        values: (batch, kv_heads, room, value_dim).
        num_tokens: how many are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()
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


class FixedLayer(DynamicLayer):
    """A layer that always shows its whole room, written at a place known on the device alone: for recorded passes.

    Args:
        layer: whose room is used.
        place: (1,) index of the next token.
    """

    def __init__(self, layer: RoomyLayer, place: Int[Tensor, " 1"]) -> None:
        super().__init__()
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
    batch = sum(len(lengths) for _, lengths in caches)
    layers = []
    for index, layer in enumerate(caches[0][0].layers):
        rooms = [
            part.new_zeros(batch, part.shape[1], room_for(num_tokens + room), part.shape[3])
            for part in (layer.keys, layer.values)
        ]
        row = 0
        for cache, lengths in caches:
            for place, length in enumerate(lengths):
                for whole, part in zip(rooms, (cache.layers[index].keys, cache.layers[index].values), strict=True):
                    whole[row, :, num_tokens - length : num_tokens] = part[place, :, :length]
                row += 1
            cache.layers[index] = None  # its memory is needed for the next layer
        layers.append(RoomyLayer(*rooms, num_tokens))
    return Cache(layers=layers)


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
            else:
                layer.crop(num_tokens - layer.get_seq_length())
