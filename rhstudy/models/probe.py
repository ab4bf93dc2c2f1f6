"""Watching attention heads inside the forward passes of a plain SDPA model, for chosen rows, at its own price.

The model runs on SDPA. For the few rows that predict answer tokens the observer recomputes the attention of every head
from the same queries and keys (after RoPE and after the cache), so nothing of size L x L is ever kept:

    a[l, h, r, j] = softmax_j( q[l, h, r] . k[l, h, j] * scaling )   over the visible positions j
    j*[l, h, r]   = argmax_j a[l, h, r, j]                            ties: lowest j; compared in float32

Softmax, a positive scaling and a softcap are monotone, so j* is taken from q . k itself. Positions are indices into the
padded sequence from its first token on, also under chunked prefill and with sliding-window caches that dropped keys.

Cost: below some 10,000 tokens a GPU waits for the launches of its kernels, not the other way round. A layer therefore
only sets aside its answer-row queries and a reference to its keys; layers are then reduced together. Not more than a
few dozen megabytes are kept alive for that, so at long context each layer is reduced at once and its keys are freed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.errors import StudyError, message, require
from rhstudy.models.attention import (
    BLOCK_BYTES,
    attention_logits,
    capped,
    hidden_from_rows,
    hidden_keys,
    make_observable,
    watched,
)
from rhstudy.shapes import Float, Int

LAYER_BYTES = 2**22
"""A layer with more bytes of keys than this is reduced at once: the device has enough to do by then."""
KEY_BYTES = 2**24
"""Layers wait to be reduced together until their keys take more than this."""
QUERY_BYTES = 3 * 2**22
"""They keep the queries of all rows alive until these take more than this; the observed rows are then copied."""


@dataclass(slots=True)
class _Layer:
    """What one layer set aside: queries of the observed rows, keys, and what its logits take."""

    index: int
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None


@dataclass(slots=True)
class _Held:
    """Layers of one pass that can be reduced together: equal shapes, one mask, one device.

    Attributes:
        first: position of the pass's first row.
        rows: the observed rows, as indices among the pass's own rows.
        num_new: rows of the pass.
        mask: the mask all of these layers were given.
        scaling: factor of the logits.
        softcap: of the logits; None without one.
        layers: which layers.
        queries: (batch, heads, rows, dim) of each, observed rows alone.
        keys: (batch, kv_heads, keys, dim) of each.
    """

    first: int
    rows: range
    num_new: int
    mask: Tensor | None
    scaling: float
    softcap: float | None
    layers: list[int]
    queries: list[Tensor]
    keys: list[Tensor]

    @property
    def key_offset(self) -> int:
        """Position of the oldest key."""
        return self.first + self.num_new - int(self.keys[0].shape[2])


class AttentionObserver(ABC):
    """Sees the attention of every head at chosen rows while a model runs, inside `observe`.

    The caller says before each forward pass how many tokens came before it (`seen`), so that rows keep their absolute
    positions over chunks and decoding steps. Subclasses say what is kept of a row's logits. With `at_once` set, no
    layer waits to be reduced together with others.

    Args:
        rows: absolute positions to observe, contiguous, the same for every example of the batch.
        starts: (batch,) for examples whose rows differ, run in one pass: those of example b are then
            `starts[b] + rows`; rows that begin at 0. Rows past the end are given the last one's values.

    Raises:
        InputError: the rows are not contiguous, or do not begin at 0 where `starts` says where they do.
    """

    def __init__(self, rows: range, starts: Int[Tensor, " batch"] | None = None) -> None:
        sound = rows.step == 1 and (starts is None or rows.start == 0)
        require(sound, "observer.rows", "be contiguous, from 0 on beside `starts`", rows, "Observe the whole range")
        self.rows = rows
        self.at_once = False
        self._starts = starts
        self._index: Tensor | None = None
        self.num_layers = 0
        self._seen = 0
        self._waiting: list[_Layer] = []
        self._num_compact = 0
        self._key_bytes = self._query_bytes = 0
        self._pass = (0, range(0), 0)
        self._kept: dict[int, list[tuple[list[int], Tensor]]] = {}
        # What the last layers' rows might not see, with the mask it was made from (so that no other takes its id).
        self._hidden: tuple[tuple[object, ...], Tensor | None, Tensor] | None = None

    @property
    def seen(self) -> int:
        """Tokens already in the cache when the next forward pass begins."""
        return self._seen

    @seen.setter
    def seen(self, count: int) -> None:
        self._reduce_waiting()  # before the next pass writes to a cache
        self._seen = count

    def watch(
        self,
        module: nn.Module,
        query: Float[Tensor, "batch heads rows dim"],
        key: Float[Tensor, "batch kv_heads keys dim"],
        mask: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> None:
        """Sets aside the observed rows of this layer and pass; see `rhstudy.models.attention.Watch`."""
        first, num_new = self._seen, query.shape[2]
        start, stop = max(self.rows.start - first, 0), min(self.rows.stop - first, num_new)
        if self._starts is not None:
            start, stop = 0, len(self.rows)
        if start >= stop:
            return
        self._pass = (first, range(start, stop), num_new)
        if self._starts is None:
            observed = query.narrow(2, start, stop - start)
            self._query_bytes += query.nbytes
        else:
            index = self.row_index(num_new, query.device)[:, None, :, None]
            observed = query.gather(2, index.expand(-1, query.shape[1], -1, query.shape[3]))
        layer: int = module.layer_idx  # type: ignore[assignment]
        self._waiting.append(_Layer(layer, observed, key, mask, scaling, softcap))
        key_bytes = key.nbytes
        self._key_bytes += key_bytes
        if self.at_once or key_bytes > LAYER_BYTES or self._key_bytes > KEY_BYTES:
            self._reduce_waiting()
        elif self._query_bytes > QUERY_BYTES:
            self._compact()

    def row_index(self, num_new: int, device: torch.device) -> Int[Tensor, "batch rows"]:
        """Each example's observed rows, where `starts` says they differ; those past the end are the last."""
        if self._index is None or self._index.device != device:
            starts = self._starts.to(device)  # type: ignore[union-attr]
            self._index = (starts[:, None] + torch.arange(len(self.rows), device=device)).clamp(max=num_new - 1)
        return self._index

    def _compact(self) -> None:
        """Copy the observed rows out of the queries of all rows, which they keep alive."""
        fresh = self._waiting[self._num_compact :]
        alike = (fresh[0].query.shape, fresh[0].query.device)
        if all((layer.query.shape, layer.query.device) == alike for layer in fresh):
            copies = torch.stack([layer.query for layer in fresh]).unbind()
        else:
            copies = tuple(layer.query.clone() for layer in fresh)
        for layer, copy in zip(fresh, copies, strict=True):
            layer.query = copy
        self._num_compact, self._query_bytes = len(self._waiting), 0

    def _reduce_waiting(self) -> None:
        first, rows, num_new = self._pass
        groups: dict[tuple[object, ...], _Held] = {}
        for layer in self._waiting:
            mask, key = layer.mask, layer.key
            alike = (id(mask), key.shape, key.device, layer.query.shape[3], layer.scaling, layer.softcap)
            held = groups.get(alike)
            if held is None:
                held = groups[alike] = _Held(
                    first, rows, num_new, mask, layer.scaling, layer.softcap, layers=[], queries=[], keys=[]
                )
            held.layers.append(layer.index)
            held.queries.append(layer.query)
            held.keys.append(key)
        self._waiting, self._num_compact, self._key_bytes, self._query_bytes = [], 0, 0, 0
        for held in groups.values():
            self._kept.setdefault(first, []).append((held.layers, self._reduce_layers(held)))

    def _reduce_layers(self, held: _Held) -> Tensor:
        """What is kept of these layers, (layers, batch, heads, ...); rows in blocks when their logits are large."""
        alone = len(held.layers) == 1
        queries = held.queries[0][None] if alone else torch.stack(held.queries)
        keys = held.keys[0][None] if alone else torch.stack(held.keys)
        num_rows, num_keys = queries.shape[3], keys.shape[3]
        step = max(1, BLOCK_BYTES // (4 * queries[..., 0, 0].numel() * num_keys))
        blocks = []
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            rows = range(held.rows.start + start, held.rows.start + stop)
            logits = self.logits(queries[:, :, :, start:stop], keys, held)
            self._hide(logits, held, rows)
            offset = held.first - self.rows.start
            blocks.append(self.reduce(logits, held, range(rows.start + offset, rows.stop + offset)))
        return blocks[0] if len(blocks) == 1 else self.join(blocks)

    def _hide(self, logits: Float[Tensor, "layers batch heads rows keys"], held: _Held, rows: range) -> None:
        """Write -inf where a row may not look; without a mask only keys after the first row can be hidden."""
        num_keys = logits.shape[-1]
        plain = held.mask is None and self._starts is None
        first = num_keys - (held.num_new - rows.start - 1) if plain else 0
        if first == num_keys:
            return
        alike = (id(held.mask), rows, held.num_new, num_keys, logits.device)
        if self._hidden is None or self._hidden[0] != alike:
            if self._starts is None:
                hidden = hidden_keys(held.mask, rows, held.num_new, num_keys, logits.device)[..., first:]
            else:
                chosen = self.row_index(held.num_new, logits.device)[:, rows.start : rows.stop]
                hidden = hidden_from_rows(held.mask, chosen, num_keys)
            self._hidden = (alike, held.mask, hidden)
        (logits if first == 0 else logits[..., first:]).masked_fill_(self._hidden[2], float("-inf"))

    def logits(self, queries: Tensor, keys: Tensor, held: _Held) -> Float[Tensor, "layers batch heads rows keys"]:
        """The logits that `reduce` gets, before hidden keys are set to -inf: q . k in float32, unscaled."""
        return attention_logits(queries, keys)

    @abstractmethod
    def reduce(self, logits: Float[Tensor, "layers batch heads rows keys"], held: _Held, rows: range) -> Tensor:
        """What is kept of the logits of some rows.

        Args:
            logits: as `logits` gives them, -inf at hidden positions; may be overwritten.
            held: the layers, their scaling, softcap and key offset.
            rows: indices into the observer's own rows.
        """

    @abstractmethod
    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """What `reduce` kept of one layer's rows in several blocks or passes, together."""

    def collected(self) -> Tensor:
        """What was kept, (layers, batch, heads, ...), on the device of the first layer.

        Raises:
            StudyError: some layer was never observed.
        """
        self._reduce_waiting()
        shown = {layer for groups in self._kept.values() for layers, _ in groups for layer in layers}
        missing = sorted(set(range(self.num_layers)) - shown)
        if missing or not shown:
            got, remedy = f"<nothing from layers {missing}>", "The model bypasses the attention registry there"
            raise StudyError(message("model", "show every layer's attention", got, remedy))
        passes = [_in_layer_order(groups) for _, groups in sorted(self._kept.items())]
        return passes[0] if len(passes) == 1 else self.join(passes)


def _in_layer_order(groups: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    layers = [layer for part, _ in groups for layer in part]
    home = min(groups, key=lambda group: group[0][0])[1].device
    stacked = torch.cat([values.to(home) for _, values in groups]) if len(groups) > 1 else groups[0][1]
    order = sorted(range(len(layers)), key=layers.__getitem__)
    return stacked if order == list(range(len(layers))) else stacked[torch.tensor(order, device=home)]


class ArgmaxObserver(AttentionObserver):
    """Keeps j*, the position each head attends to most."""

    def reduce(self, logits: Float[Tensor, "layers batch heads rows keys"], held: _Held, rows: range) -> Tensor:
        """j* of each row."""
        found = lowest_argmax(logits)
        return found + held.key_offset if held.key_offset else found

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Rows after rows."""
        return torch.cat(list(blocks), dim=3)

    def argmax(self, num_rows: int | None = None) -> Int[Tensor, "layers batch heads rows"]:
        """j* of every head for the first `num_rows` observed rows (all of `rows` by default), on the model's device.

        Raises:
            StudyError: some layer or some row was never observed.
        """
        found = self.collected()
        wanted = len(self.rows) if num_rows is None else num_rows
        if found.shape[3] < wanted:
            got = f"<{found.shape[3]} of {wanted} rows>"
            raise StudyError(message("observer.rows", "all lie inside the passes run", got, "Set `seen` before each"))
        return found[..., :wanted]


class RoundedArgmaxObserver(ArgmaxObserver):
    """j* as eager attention in the model's own number format has it: weights that round to the same value tie.

    q . k is rounded to the model's dtype, scaled there, and the softmax is rounded again, as the published program's
    `attn_weights`. In float32 it differs from `ArgmaxObserver` only where two weights lie within rounding.
    """

    def logits(self, queries: Tensor, keys: Tensor, held: _Held) -> Float[Tensor, "layers batch heads rows keys"]:
        """q . k scaling in the model's dtype, as float32."""
        products = attention_logits(queries, keys).to(queries.dtype)
        return capped((products / (1 / held.scaling)).float(), held.softcap)

    def reduce(self, logits: Float[Tensor, "layers batch heads rows keys"], held: _Held, rows: range) -> Tensor:
        """j* among the rounded weights."""
        rounded = torch.softmax(logits, dim=-1).to(held.keys[0].dtype)
        return lowest_argmax(rounded.float()) + held.key_offset


class MassObserver(AttentionObserver):
    """Keeps the attention that chosen positions get, averaged over rows: sum_r w[b, r] a[l, b, h, r, j].

    Args:
        rows: absolute positions to observe, contiguous.
        weights: (batch, rows) weight of each observed row, 0 for rows that do not count.
        positions: (batch, columns) absolute positions j; pad with any position.
        starts: see `AttentionObserver`.
    """

    def __init__(
        self,
        rows: range,
        weights: Float[Tensor, "batch rows"],
        positions: Int[Tensor, "batch columns"],
        starts: Int[Tensor, " batch"] | None = None,
    ) -> None:
        super().__init__(rows, starts)
        self._weights, self._positions = weights, positions

    def logits(self, queries: Tensor, keys: Tensor, held: _Held) -> Float[Tensor, "layers batch heads rows keys"]:
        """q . k scaling in float32, under the softcap."""
        return capped(attention_logits(queries, keys) * held.scaling, held.softcap)

    def reduce(self, logits: Float[Tensor, "layers batch heads rows keys"], held: _Held, rows: range) -> Tensor:
        """(layers, batch, heads, columns); positions whose keys a sliding window has dropped get 0."""
        # A row of padding that sees nothing has weight 0, and must not be NaN.
        attention = torch.softmax(logits, dim=-1).nan_to_num(0.0)
        weights = self._weights[:, rows.start : rows.stop].to(logits.device)
        average = torch.einsum("br,lbhrk->lbhk", weights, attention)
        local = self._positions.to(logits.device) - held.key_offset
        there = (local >= 0) & (local < logits.shape[-1])
        index = local.clamp(0, logits.shape[-1] - 1)[None, :, None].expand(*average.shape[:3], -1)
        return average.gather(3, index) * there[None, :, None]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """Weighted rows add up."""
        return torch.stack(list(blocks)).sum(dim=0)


def lowest_argmax(logits: Float[Tensor, "*rows keys"]) -> Int[Tensor, "*rows"]:
    """Index of the largest value over the last axis; among equals the lowest (torch promises the first)."""
    return logits.argmax(dim=-1)


Observer = TypeVar("Observer", bound=AttentionObserver)


@contextmanager
def observe(model: PreTrainedModel, observer: Observer) -> Iterator[Observer]:
    """Let `observer` see the heads of `model` for the forward passes inside the block.

    Args:
        model: any decoder `require_observable` accepts.
        observer: set its `seen` before every pass after the first, read it after the last.

    Raises:
        InputError: the model's attention cannot be observed exactly.
    """
    observer.num_layers = make_observable(model).num_layers
    with watched(observer.watch):
        yield observer
