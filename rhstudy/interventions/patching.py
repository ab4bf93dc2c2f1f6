"""Activation patching across models: what chosen heads put out in a donor replaces what they put out in a recipient.

With z[l, h, t] what head h of layer l puts out at row t, before o_proj, S the heads patched and both models run on the
same tokens:

    z_recipient[l, h, t] := z_donor[l, h, t]    for (l, h) in S and t in the rows

The rows are all of them (`all_positions`) or those that predict the answer (`answer_rows`, from the last prompt token
on): two claims, never one number. The donor's pass is never touched; the recipient's later layers, and its later rows,
see what was put in. A head's own keys and values stay the recipient's.

A donor's z is recorded once and used for many sets (`recorded_z`), or the donor runs beside the recipient, each pass
just before the recipient's on the very same tokens (`LockstepZ`), which is what generation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.anatomy import anatomy, require_heads
from rhstudy.models.attention import edit_heads
from rhstudy.shapes import Float, Int
from rhstudy.types import Head

Positions = Literal["all_positions", "answer_rows"]
"""``answer_rows`` begin with the last prompt token, the row that predicts the first answer token."""

Begin = Callable[[Mapping[str, Any]], None]
_ARGUMENTS = ("input_ids", "attention_mask", "position_ids")
"""What decoders take first, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorPass:
    """One forward pass of a donor.

    Attributes:
        ids: (batch, rows) the tokens it ran.
        rows_before: rows of the passes before it.
        z: by layer, (batch, rows, kept heads, dim) in the model's own number format.
    """

    ids: Int[Tensor, "batch rows"]
    rows_before: int
    z: dict[int, Float[Tensor, "batch rows kept dim"]] = field(default_factory=dict)


@runtime_checkable
class DonorZ(Protocol):
    """Where the z that are put in come from.

    Attributes:
        heads: the heads whose z it has, by layer, rising.
        first_answer_row: rows before this one, counted over passes, are no answer rows.
    """

    heads: Mapping[int, tuple[int, ...]]
    first_answer_row: int

    def of_pass(self, number: int, given: Mapping[str, Any]) -> DonorPass:
        """The donor's z for the recipient's pass `number`, which is about to be run on `given`."""
        ...


def by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    """Layer -> its heads, both rising, each once."""
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        found.setdefault(layer, []).append(head)
    return {layer: tuple(several) for layer, several in found.items()}


class RecordedZ:
    """The z of chosen heads in every pass of a donor, in the order of its passes.

    Args:
        heads: whose z is kept.
        first_answer_row: see `DonorZ`.
        on_host: keep z in the host's memory, where a GPU has no room for it.
    """

    def __init__(self, heads: Iterable[Head], first_answer_row: int = 0, *, on_host: bool = False) -> None:
        self.heads: Mapping[int, tuple[int, ...]] = by_layer(heads)
        self.first_answer_row, self._on_host = first_answer_row, on_host
        self.passes: list[DonorPass] = []
        self._indices = _Indices()

    def of_pass(self, number: int, given: Mapping[str, Any]) -> DonorPass:
        """The pass recorded as the `number`-th.

        Raises:
            InputError: the donor made fewer passes, or this one on other tokens.
        """
        ids, made = given["input_ids"], len(self.passes)
        remedy = "Run donor and recipient on the same prompts, in the same batches and chunks"
        require(number < made, "recipient", f"make no more passes than its donor ({made})", number + 1, remedy)
        found = self.passes[number]
        same = found.ids.shape == ids.shape and torch.equal(found.ids, ids.to(found.ids.device))
        got = f"<pass {number + 1}: {tuple(ids.shape)} tokens, donor {tuple(found.ids.shape)}>"
        require(same, "prompt ids", "be those that the donor was run on", got, remedy)
        return found

    def begin(self, given: Mapping[str, Any]) -> None:
        """The donor is about to make a pass on `given`."""
        before = self.passes[-1].rows_before + self.passes[-1].ids.shape[1] if self.passes else 0
        self.passes.append(DonorPass(ids=given["input_ids"].clone(), rows_before=before))

    def keep(self, layer: int, z: Float[Tensor, "batch rows heads dim"]) -> Float[Tensor, "batch rows heads dim"]:
        """An edit of the donor that changes nothing."""
        if layer in self.heads:
            chosen = z.index_select(2, self._indices(self.heads[layer], z.device))
            self.passes[-1].z[layer] = chosen.to("cpu") if self._on_host else chosen
        return z


class LockstepZ:
    """The z of a donor that runs each pass just before the recipient, on the recipient's tokens.

    Args:
        donor: another model object than the recipient.
        cache: its keys and values of the tokens before the first pass; written on.
        heads: whose z is put in.
    """

    def __init__(self, donor: PreTrainedModel, cache: Cache, heads: Iterable[Head]) -> None:
        self.heads: Mapping[int, tuple[int, ...]] = by_layer(heads)
        self.first_answer_row = 0
        self._donor, self._cache, self._chosen = donor, cache, [*heads]

    def of_pass(self, number: int, given: Mapping[str, Any]) -> DonorPass:
        """Run the donor on `given` with its own cache."""
        with recorded_z(self._donor, self._chosen) as found:
            self._donor(**{**given, "past_key_values": self._cache, "use_cache": True})
        return found.passes[0]


@contextmanager
def recorded_z(
    donor: PreTrainedModel, heads: Iterable[Head], *, first_answer_row: int = 0, on_host: bool = False
) -> Iterator[RecordedZ]:
    """Record the z of `heads` in the donor's forward passes inside the block; its outputs stay as they are.

    Args:
        donor: any decoder whose heads can be observed.
        heads: (layer, query head) pairs; repeats count once.
        first_answer_row: where the answer rows begin, counted over all passes of the block; P - 1 where whole
            sequences with prompts of P tokens are run, 0 where the first pass begins with the last prompt token.
        on_host: keep z in the host's memory.

    Raises:
        InputError: a head that the model does not have.
    """
    found = RecordedZ(require_heads(anatomy(donor), heads), first_answer_row, on_host=on_host)
    with edit_heads(donor, found.keep), _before_passes(donor, found.begin):
        yield found


@contextmanager
def patch_heads(
    recipient: PreTrainedModel, donor_z: DonorZ, heads: Iterable[Head], *, positions: Positions | str = "all_positions"
) -> Iterator[None]:
    """Put the donor's z of `heads` into `recipient` for the forward passes inside the block; see the module docstring.

    No head at all changes nothing, and a donor with the recipient's weights changes nothing at equal shapes: the
    logits are those of the plain model, bit for bit. Donor and recipient must be one base model fine-tuned twice
    (`rhstudy.interventions.pairs.require_pair`).

    Args:
        recipient: any decoder whose heads can be observed.
        donor_z: from `recorded_z`, of as many passes over the same tokens, or a `LockstepZ`.
        heads: (layer, query head) pairs; repeats count once.
        positions: which rows.

    Raises:
        InputError: a head that the recipient does not have or the donor's record lacks; in the passes: other tokens
            than the donor's, more passes, or heads of another size.
    """
    known = ("all_positions", "answer_rows")
    require(positions in known, "positions", f"be one of {', '.join(known)}", positions, "They are two claims")
    chosen = require_heads(anatomy(recipient), heads)
    missing = [head for head in chosen if head[1] not in donor_z.heads.get(head[0], ())]
    require(not missing, "heads", "be among those recorded of the donor", missing[:3], "Record them too")
    if not chosen:
        with edit_heads(recipient, lambda _, z: z):
            yield
        return
    patch = _Patch(donor_z, chosen, donor_z.first_answer_row if positions == "answer_rows" else 0)
    with edit_heads(recipient, patch.edit), _before_passes(recipient, patch.begin):
        yield


@contextmanager
def _before_passes(model: PreTrainedModel, begin: Begin) -> Iterator[None]:
    """Call `begin` with what each forward pass is given. Opened last: making a model observable runs it once."""
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: begin({**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


class _Patch:
    """What is put in during the recipient's passes."""

    def __init__(self, donor_z: DonorZ, heads: Collection[Head], first_row: int) -> None:
        self._donor_z, self._heads, self._first_row = donor_z, by_layer(heads), first_row
        self._number, self._indices = 0, _Indices()
        self._kept = {
            layer: tuple(donor_z.heads[layer].index(head) for head in several) for layer, several in self._heads.items()
        }

    def begin(self, given: Mapping[str, Any]) -> None:
        self._pass = self._donor_z.of_pass(self._number, given)
        self._number += 1

    def edit(self, layer: int, z: Float[Tensor, "batch rows heads dim"]) -> Float[Tensor, "batch rows heads dim"]:
        skipped = max(0, self._first_row - self._pass.rows_before)
        if layer not in self._heads or skipped >= z.shape[1]:
            return z
        donor = self._pass.z[layer].to(z.device, z.dtype)
        sizes, remedy = ((*z.shape[:2], z.shape[3]), (*donor.shape[:2], donor.shape[3])), "Take two models of one base"
        require(sizes[0] == sizes[1], "donor z", f"have (batch, rows, dim) {sizes[0]}", sizes[1], remedy)
        theirs = donor.index_select(2, self._indices(self._kept[layer], z.device))
        if not skipped:
            return z.index_copy(2, self._indices(self._heads[layer], z.device), theirs)
        patched = z.clone()
        patched[:, skipped:].index_copy_(2, self._indices(self._heads[layer], z.device), theirs[:, skipped:])
        return patched


class _Indices:
    """Index tensors, each sent to a device once: sending one makes Python wait for a GPU."""

    def __init__(self) -> None:
        self._there: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def __call__(self, indices: tuple[int, ...], device: torch.device) -> Tensor:
        key = (indices, device)
        if key not in self._there:
            self._there[key] = torch.tensor(indices, device=device)
        return self._there[key]
