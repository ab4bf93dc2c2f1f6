"""Many continuations of each prompt over one shared cache: the conditions of an experiment at the price of few.

Each of B prompts was run once up to its last token (`rhstudy.models.generate.prefix`). C forks go on from there, each
with head edits of its own. They are the B x C rows of one batch, example by example:

    row b C + c  =  fork c of example b

A fork sees its own prompt and what it said itself. Keys lie in the room behind the prompts' keys, a row of all forks
after the other, so that the keys of a prompt are there once, whatever C is:

    keys of example b:   x_1 ... x_{P-1} | row 0 of forks 0..C-1 | row 1 of forks 0..C-1 | ...

Row 0 is the last prompt token, which predicts the first answer token. A mask hides the padding, the other forks and the
rows not yet run. Every step has the same shapes and takes its place from the device, so on one GPU it is recorded once
as a CUDA graph and replayed.

Editing forks (knockout, patching): inside `edit_forks(model, C, edit)`,

    edit(layer, z)  ->  z      with z (examples, forks, rows, heads, dim), what each head puts out before o_proj

`edit` sees every layer of every pass of these forks. It must return a tensor of the same shape without writing into its
own. It may be recorded: then it must compute from tensors on the device alone, without waiting for it and without
counting in Python, or be run with `recorded=False`. What a donor puts out at the same rows is captured by `edit_forks`
on the donor model; to run it on the recipient's tokens hand its `Forks` over as `lockstep`, in generation
(`greedy_forks`) and teacher-forced (`gold_forks`): it is run before the recipient in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rhstudy.errors import require
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import edit_heads
from rhstudy.models.cache import RoomyLayer, keeps_every_key
from rhstudy.models.generate import Prefix
from rhstudy.models.gold_pass import mean_gold_nll
from rhstudy.models.graphs import on_one_gpu, record
from rhstudy.models.transfer import moved
from rhstudy.shapes import Float, Int

FEWEST_STEPS = 6
"""Recording takes as long as about three steps; fewer are not worth it."""
_LOOK_EVERY = 4
"""Recorded steps between two looks at what was said: a look makes Python wait for the device."""
_MOST_BYTES = 2**32
"""What logits, masks and keys of the forks of one batch may take on a GPU, and a sixteenth of it elsewhere."""
_FEWEST_FORKS = 32
"""Forks whose own keys may outnumber those of a short prompt."""

ForkEdit = Callable[
    [int, Float[Tensor, "examples forks rows heads dim"]], Float[Tensor, "examples forks rows heads dim"]
]
"""Called with a layer and the z of all its heads for the rows of this pass; returns the z to go on with."""


def forkable(model: PreTrainedModel) -> bool:
    """Whether forks of `model` can share a prompt: its layers keep every key, as without a sliding window."""
    return keeps_every_key(model)


def forks_that_fit(model: PreTrainedModel, num_examples: int, num_tokens: int, num_rows: int, at_once: int = 1) -> int:
    """How many forks of each example to run as one batch: at least 1.

    Args:
        model: the decoder.
        num_examples: B.
        num_tokens: of the longest prompt.
        num_rows: rows a fork will have in all.
        at_once: rows a fork has in one pass: 1 when decoding.
    """
    layout, size = anatomy(model), model.dtype.itemsize
    vocabulary = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[no-untyped-call]
    masks = 2 * (layout.num_heads // layout.num_kv_heads) * at_once * (num_tokens + num_tokens // 4 + 64) * size
    keys = 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * num_rows * size
    each = num_examples * (masks + keys + 12 * at_once * vocabulary)
    own = max(_FEWEST_FORKS, num_tokens // num_rows)
    return max(1, min(own, _bytes_for_forks(model.device) // each))


def _bytes_for_forks(device: torch.device) -> int:
    """The same at every time of a run, so that a resumed one has the batches, and the bits, of an unbroken one."""
    if device.type != "cuda":
        return _MOST_BYTES // 16
    return min(_MOST_BYTES, torch.cuda.get_device_properties(device).total_memory // 16)


@contextmanager
def edit_forks(model: PreTrainedModel, num_forks: int, edit: ForkEdit) -> Iterator[None]:
    """Let `edit` replace z of the forks of `model` that run inside the block; see the module docstring.

    Args:
        model: any decoder `require_observable` accepts.
        num_forks: C. With 1 a batch of plain examples will do as well.
        edit: gets a layer and its z.
    """

    def apart(layer: int, z: Tensor) -> Tensor:
        return edit(layer, z.reshape(-1, num_forks, *z.shape[1:])).flatten(0, 1)

    with edit_heads(model, apart):
        yield


@dataclass(slots=True)
class _Places:
    """Where the keys of the running pass are written.

    Layers share this and not the forks: a circle of objects would keep gigabytes of keys until Python looks for it.
    """

    index: Int[Tensor, " rows"]


class _ForkLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that always shows its whole room and writes the forks' rows behind the prompts."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: RoomyLayer, places: _Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.keys, self.values, self._places = layer.key_room, layer.value_room, places

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new rows of every fork."""
        places = self._places.index.to(self.keys.device)
        self.keys.index_copy_(2, places, self._folded(key_states))
        self.values.index_copy_(2, places, self._folded(value_states))
        return self.keys, self.values

    def _folded(self, states: Tensor) -> Tensor:
        apart = states.reshape(self.keys.shape[0], -1, *states.shape[1:])  # examples, forks, kv_heads, rows, dim
        return apart.permute(0, 2, 3, 1, 4).flatten(2, 3)


class Forks:
    """C forks of each prompt of a prefix, run some rows at a time.

    Only one `Forks` of a prefix may be in use: all write into the same room behind the prompts. The prefix is otherwise
    left as it was.

    Args:
        model: the decoder that made `start`; see `forkable`.
        start: the shared prompts.
        num_forks: C.
        num_rows: how many rows a fork can have, the last prompt token included.

    Attributes:
        model: the decoder.
        start: the shared prompts.
        num_forks: C.
        place: (1,) rows run so far, on the device.

    Raises:
        InputError: the model drops keys, or no fork or row is asked for.
    """

    def __init__(self, model: PreTrainedModel, start: Prefix, num_forks: int, num_rows: int) -> None:
        layers = [layer for layer in start.cache.layers if isinstance(layer, RoomyLayer)]
        whole = len(layers) == len(start.cache.layers)
        got, remedy = f"<{type(model).__name__} with a sliding window>", "Run one condition at a time"
        require(whole, "model", "keep every key of its prompts", got, remedy)
        require(num_forks >= 1, "num_forks", "be at least 1", num_forks, "A fork is one condition")
        require(num_rows >= 1, "num_rows", "be at least 1", num_rows, "The last prompt token is a row")
        batch, self._before = start.batch, start.batch.num_prompt - 1
        for layer in layers:
            layer.make_room(self._before + num_rows * num_forks)
        keys, layout = layers[0].key_room, anatomy(model)
        self.model, self.start, self.num_forks, self.num_rows = model, start, num_forks, num_rows
        device = batch.ids.device
        self._group = layout.num_heads // layout.num_kv_heads
        self._dtype, self._room = keys.dtype, int(keys.shape[2])
        self._pads = moved(torch.tensor(batch.pads)[:, None], device)
        self._forks = torch.arange(num_forks, device=device)
        self._masks: dict[int, Tensor] = {}
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self._places = _Places(self.place)
        self._cache = Cache(layers=list[Any](_ForkLayer(layer, self._places) for layer in layers))

    def begin(self) -> None:
        """Back to the last prompt token."""
        self.place.zero_()

    def last_prompt_tokens(self) -> Int[Tensor, "forked 1"]:
        """Row 0 of every fork."""
        return self.each(self.start.batch.ids[:, -1:])

    def each(self, values: Tensor) -> Tensor:
        """Values of the examples, (B, ...), for every fork, (B C, ...)."""
        return values[:, None].expand(-1, self.num_forks, *values.shape[1:]).flatten(0, 1)

    def run(self, ids: Int[Tensor, "forked rows"]) -> Float[Tensor, "forked rows vocab"]:
        """Run the next rows of every fork; float32 logits."""
        rows = torch.arange(ids.shape[1], device=ids.device) + self.place
        self._places.index = (self._before + rows[:, None] * self.num_forks + self._forks).flatten()
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self._mask(rows),
            position_ids=self.each(self._before - self._pads + rows),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self.place += ids.shape[1]
        return logits.float()

    def _mask(self, rows: Int[Tensor, " rows"]) -> Float[Tensor, "examples 1 folded keys"]:
        """Additive, with a row for each query head of a group, fork and row, in this order."""
        number, forks, own = len(rows), self.num_forks, self.num_forks * self.num_rows
        if number not in self._masks:
            keys = torch.arange(self._room, device=rows.device)
            seen = (keys >= self._pads) & (keys < self._before)
            size = (len(seen), 1, self._group * forks * number, self._room)
            hidden = torch.zeros(seen.shape, dtype=self._dtype, device=rows.device).masked_fill_(~seen, float("-inf"))
            self._masks[number] = hidden[:, None, None].expand(size).contiguous()
        mask = self._masks[number]
        # Prompts never change; which of the forks' own keys are seen does, row by row.
        before = torch.arange(self.num_rows, device=rows.device) <= rows[:, None]
        same = self._forks[:, None] == self._forks
        seen = (same[:, None, None, :] & before[None, :, :, None]).reshape(forks * number, own)
        hidden = torch.zeros(seen.shape, dtype=self._dtype, device=rows.device).masked_fill_(~seen, float("-inf"))
        apart = mask.view(len(mask), self._group, forks * number, self._room)
        apart[..., self._before : self._before + own] = hidden
        return mask


def gold_forks(
    forks: Forks, answers: Sequence[Sequence[int]], lockstep: Sequence[Forks] = ()
) -> Float[Tensor, "forks examples"]:
    """Mean negative log likelihood of each gold answer under each fork, nats per token, in one pass.

    Args:
        forks: with room for the longest answer.
        answers: gold answer ids of each example, none empty.
        lockstep: forks of other models on the same prompts, run before on the same rows.
    """
    device, longest = forks.place.device, max(map(len, answers))
    gold = moved(torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers]), device)
    counts = moved(torch.tensor([len(answer) for answer in answers]), device)
    ids = torch.cat([forks.last_prompt_tokens(), forks.each(gold[:, :-1])], dim=1)
    for other in (*lockstep, forks):
        other.begin()
        logits = other.run(ids)
    losses = mean_gold_nll(logits, forks.each(gold).to(logits.device), forks.each(counts).to(logits.device))
    return losses.view(len(answers), -1).T


def greedy_forks(
    forks: Forks,
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    lockstep: Sequence[Forks] = (),
    recorded: bool = True,
) -> list[list[list[int]]]:
    """Greedy continuation of every prompt under every fork.

    Decoding ends for a fork of an example at the first id of `stop_ids`, which is not returned, and for all when all
    have ended.

    Args:
        forks: with room for `max_new_tokens` rows.
        max_new_tokens: longest answer.
        stop_ids: ids that end an answer.
        lockstep: forks of other models on the same prompts, run before on the same tokens.
        recorded: whether steps may be recorded as a CUDA graph; see the module docstring.

    Returns:
        Generated ids of each fork and example, at most `max_new_tokens`.

    Raises:
        InputError: there is not room enough.
    """
    room = min(other.num_rows for other in (*lockstep, forks))
    require(room >= max_new_tokens, "num_rows", f"be at least {max_new_tokens}", room, "Make forks with more rows")
    decoding = _Decoding(forks, max_new_tokens, lockstep)
    pays = recorded and max_new_tokens >= FEWEST_STEPS and on_one_gpu(forks.model)
    decoding.begin()  # for the steps that recording runs there must be room
    replay = record(decoding.step, forks.place.device) if pays else None
    decoding.begin()
    every = 1 if replay is None else _LOOK_EVERY
    rows = [_Answer() for _ in range(len(decoding.said))]
    for first in range(0, max_new_tokens, every):
        stop = min(first + every, max_new_tokens)
        for _ in range(first, stop):
            (replay or decoding.step)()
        for row, tokens in zip(rows, decoding.said[:, first:stop].tolist(), strict=True):
            row.extend(tokens, stop_ids)
        if all(row.ended for row in rows):
            break
    return [[row.tokens for row in rows[fork :: forks.num_forks]] for fork in range(forks.num_forks)]


class _Answer:
    """What one fork of one example said."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def extend(self, tokens: Sequence[int], stop_ids: frozenset[int]) -> None:
        for token in tokens:
            self.ended = self.ended or token in stop_ids
            if not self.ended:
                self.tokens.append(token)


class _Decoding:
    """One step of all forks, whose every input and output stays where it is."""

    def __init__(self, forks: Forks, max_new_tokens: int, lockstep: Sequence[Forks]) -> None:
        self._all, self._first = (*lockstep, forks), forks.last_prompt_tokens()
        self._token = self._first.clone()
        self.said = self._first.new_zeros(len(self._first), max_new_tokens)

    def begin(self) -> None:
        """Back to the last prompt token."""
        self._token.copy_(self._first)
        for other in self._all:
            other.begin()

    def step(self) -> None:
        """Say the next token of every fork."""
        place = self._all[-1].place.clone()
        for other in self._all:
            logits = other.run(self._token)
        self._token.copy_(logits[:, -1:].argmax(dim=-1))
        self.said.index_copy_(1, place, self._token)
