"""Greedy decoding, a row a step for a batch that ran its prompts (`rhstudy.models.generate`).

A step of a small model is over before Python has asked for the next. On one GPU the step is therefore recorded once as
a CUDA graph, over a cache of fixed size with the positions not yet written masked, and replayed: the next token, its
place and the mask live on the device, which is only asked now and then whether all answers have ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from rhstudy.models.attention import is_edited
from rhstudy.models.cache import FixedLayer, RoomyLayer
from rhstudy.models.generate import Prefill
from rhstudy.models.graphs import on_one_gpu, record
from rhstudy.models.probe import AttentionObserver
from rhstudy.models.transfer import moved

_LOOK_EVERY = 4
"""Recorded steps between two looks at what was said: a look makes Python wait for the device."""
_FEWEST = 6
"""Recording takes as long as about three steps; fewer new tokens than this are not worth it."""


def greedy(
    model: PreTrainedModel,
    start: Prefill,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    keep_stop: bool = False,
    observer: AttentionObserver | None = None,
) -> list[list[int]]:
    """Greedy continuation of every prompt; uses up the cache of `start`.

    Decoding ends for an example at the first id of `stop_ids` (returned only with `keep_stop`) and for the batch when
    all have ended.

    Returns:
        Generated ids of each example, at most `max_new_tokens`.
    """
    generated: list[list[int]] = [[] for _ in start.batch.pads]
    ended = [False] * len(generated)
    recorded = observer is None and max_new_tokens >= _FEWEST and _recordable(model, start)
    steps = _recorded(model, start, max_new_tokens) if recorded else _direct(model, start, observer)
    for step, tokens in enumerate(steps):
        for row, token in enumerate(tokens):
            stops = token in stop_ids
            if not ended[row] and (keep_stop or not stops):
                generated[row].append(token)
            ended[row] = ended[row] or stops
        if all(ended) or step + 1 == max_new_tokens:
            break
    return generated


def _direct(model: PreTrainedModel, start: Prefill, observer: AttentionObserver | None) -> Iterator[list[int]]:
    mask, seen, logits = start.batch.mask, start.batch.num_prompt, start.logits
    positions = start.batch.positions[:, -1:]
    while True:
        tokens = logits[:, -1].argmax(dim=-1)
        yield tokens.tolist()
        if observer is not None:
            observer.seen = seen
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
        positions = positions + 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=start.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits.float()
        seen += 1


def _recordable(model: PreTrainedModel, start: Prefill) -> bool:
    roomy = all(isinstance(layer, RoomyLayer) for layer in start.cache.layers)
    return roomy and on_one_gpu(model) and not is_edited()


def _recorded(model: PreTrainedModel, start: Prefill, max_new_tokens: int) -> Iterator[list[int]]:
    """As `_direct`, of `max_new_tokens` steps."""
    state = FixedStep(model, start, max_new_tokens)
    replay = record(state.step, model.device)
    if replay is None:
        state.begin()
        yield from _direct(model, start, None)
        return
    state.begin()
    for first in range(0, max_new_tokens, _LOOK_EVERY):
        stop = min(first + _LOOK_EVERY, max_new_tokens)
        for _ in range(max(first, 1), stop):
            replay()
        yield from state.said[:, first:stop].T.tolist()


class FixedStep:
    """One decoding step whose every input and output stays where it is.

    Args:
        model: the decoder.
        start: prompts run to their end; its cache is written behind them.
        max_new_tokens: tokens that will be said, the first of which `start` knows already.

    Attributes:
        said: (batch, max_new_tokens) the tokens so far.
    """

    def __init__(self, model: PreTrainedModel, start: Prefill, max_new_tokens: int) -> None:
        device, batch = start.logits.device, start.batch
        layers = [layer for layer in start.cache.layers if isinstance(layer, RoomyLayer)]
        for layer in layers:
            layer.make_room(batch.num_prompt + max_new_tokens)
        self._model, self._num_prompt, self._layers = model, batch.num_prompt, layers
        self._first = start.logits[:, -1].argmax(dim=-1)
        self._pads = moved(torch.tensor(batch.pads)[:, None], device)
        self._keys = torch.arange(layers[0].key_room.shape[2], device=device)[None]
        self.said = torch.zeros(len(batch.pads), max_new_tokens, dtype=torch.long, device=device)
        self._token, self._count = self._first.clone(), torch.ones(1, dtype=torch.long, device=device)
        self._place = torch.full((1,), batch.num_prompt, dtype=torch.long, device=device)
        self._cache = Cache(layers=list[Any](FixedLayer(layer, self._place) for layer in layers))
        self.begin()

    def begin(self) -> None:
        """Back to the first token."""
        self._token.copy_(self._first)
        self._count.fill_(1)
        self._place.fill_(self._num_prompt)
        self.said[:, 0] = self._first
        for layer in self._layers:
            layer.fill(self._num_prompt)

    def step(self) -> None:
        """Say the next token of every example."""
        seen = (self._keys >= self._pads) & (self._keys <= self._place)
        logits = self._model(
            input_ids=self._token[:, None],
            attention_mask=seen[:, None, None],
            position_ids=self._place - self._pads,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._token.copy_(logits[:, -1].float().argmax(dim=-1))
        self.said.index_copy_(1, self._count, self._token[:, None])
        self._count += 1
        self._place += 1
