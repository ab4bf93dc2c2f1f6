"""A batch of prompts in a donor and a recipient: each prompt once, and every patching condition from there.

    answer_rows      the recipient's prompts are run once without a patch; the conditions are forks of it, as many at
                     once as fit (`rhstudy.models.forks`), each with a fork of the donor beside it
    all_positions    the recipient's prompts are run once for each condition, with the donor's z put in at every row

The donor's prompts are run once in either case. At the rows after them it runs just before the recipient: along the
gold answer (teacher forcing), and where the recipient speaks for itself on the recipient's own tokens. A model that
drops keys (a sliding window) answers under one condition at a time, with the same results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.interventions.answering import in_parts
from rhstudy.interventions.patch_plan import PatchCondition
from rhstudy.interventions.patching import LockstepZ, Positions, patch_heads, recorded_z
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import PaddedBatch, pad_batch
from rhstudy.models.cache import borrowed, examples_that_fit
from rhstudy.models.decode import greedy
from rhstudy.models.forks import Forks, edit_forks, forkable, forks_that_fit, gold_forks, greedy_forks
from rhstudy.models.generate import Prefill, Prefix, from_last_token, gold_nll, prefix
from rhstudy.shapes import Float
from rhstudy.types import Head

_CPU_BYTES = 2**30
"""On a CPU batches are so small that their recordings take no more than this, unless one example does."""
_HOST_SHARE = 4
"""A recording that takes more than this part of a GPU's free memory is kept in the host's."""

Heads = tuple[Head, ...]
_Key = tuple[Positions, Heads, bool]
"""Rows, heads put in, and whether it is the donor's own answer: conditions that agree in these are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a model makes of a batch under one condition.

    Attributes:
        gold_nll: mean negative log likelihood of each gold answer, nats per token (teacher-forced).
        tokens: each example's greedy answer.
    """

    gold_nll: Float[Tensor, " batch"]
    tokens: list[list[int]]


class PatchRuns:
    """One batch in both models.

    Args:
        donor: a decoder whose heads can be observed.
        recipient: another model object of the same base.
        prompts: token ids of each prompt, at least 2 tokens.
        answers: token ids of each gold answer, none empty.
        heads: every head that a condition patches at all positions.
        max_new_tokens: longest answer.
        stop_ids: tokens that end an answer.
        pad_id: any token id.
        chunk_tokens: prompts are run in chunks of this many tokens; 0 = one pass.
        positions: what conditions will ask for; the donor's z of whole prompts is only kept for ``all_positions``.
        forked: run conditions as forks where the model allows it.

    Raises:
        InputError: donor and recipient are one object, or the batch is empty.
    """

    def __init__(
        self,
        donor: PreTrainedModel,
        recipient: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        heads: Collection[Head],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        pad_id: int = 0,
        chunk_tokens: int = 0,
        positions: Collection[Positions] = ("all_positions", "answer_rows"),
        forked: bool = True,
    ) -> None:
        remedy = "Load the model twice: the donor runs inside the recipient's passes"
        require(donor is not recipient, "donor", "be another object than the recipient", "<the same>", remedy)
        make_observable(recipient)
        self._donor, self._recipient, self._answers = donor, recipient, answers
        self._max_new, self._stops, self._chunk = max_new_tokens, stop_ids, chunk_tokens
        self._num_rows = max(max_new_tokens, *map(len, answers))
        self._forked = forked and forkable(recipient)
        self._batch = pad_batch(prompts, [[]] * len(prompts), pad_id, recipient.device)
        whole = heads if "all_positions" in positions else []
        with recorded_z(donor, whole, on_host=_on_host(donor, self._batch, whole)) as self._prompt_z:
            self._donor_start = self._run_prompts(donor)
        self._shared: Prefix | None = None

    def answers(
        self, conditions: Sequence[PatchCondition], done: Collection[str] = ()
    ) -> Iterator[tuple[PatchCondition, Answered]]:
        """Answer under every condition; conditions with equal heads at equal rows are run once.

        Args:
            conditions: of one plan. Which are run together depends on all of them, so a resumed run has the bits of an
                unbroken one.
            done: ids of conditions that need not be run; those run with others that do come again.

        Yields:
            Conditions as they are answered, in another order than given.
        """
        alike: dict[_Key, list[PatchCondition]] = {}
        for condition in conditions:
            key = condition.positions or "answer_rows", condition.heads, condition.kind == "donor"
            alike.setdefault(key, []).append(condition)
        for block in self._blocks(list(alike)):
            if any(condition.condition_id not in done for key in block for condition in alike[key]):
                for key, answered in zip(block, self._block(block), strict=True):
                    yield from ((condition, answered) for condition in alike[key])

    def _blocks(self, keys: Sequence[_Key]) -> list[Sequence[_Key]]:
        """Keys that are run at once."""
        shared = [key for key in keys if key[0] == "answer_rows" and not key[2]]
        alone = [key for key in keys if key not in shared]
        return [*(in_parts(shared, self._fit(1)) if shared else []), *([key] for key in alone)]

    def _block(self, block: Sequence[_Key]) -> list[Answered]:
        positions, heads, is_donor = block[0]
        if is_donor:
            return [self.donor()]
        if positions == "all_positions":
            return [self.patched(heads, positions)]
        return self.together([key[1] for key in block])

    def donor(self) -> Answered:
        """The donor's own answers."""
        with patch_heads(self._donor, self._prompt_z, []), from_last_token(self._donor, self._donor_start) as start:
            losses = gold_nll(self._donor, start, self._answers)
            return Answered(gold_nll=losses, tokens=self._greedy(self._donor, start))

    def recipient(self) -> Answered:
        """The recipient's own answers: a patch of no head."""
        return self.patched([], "answer_rows")

    def patched(self, heads: Collection[Head], positions: Positions) -> Answered:
        """The recipient's answers with the donor's z of `heads` put in.

        Raises:
            InputError: as `patch_heads`.
        """
        start = self._prompts_with(heads, positions)
        return self._forks_of(start, [heads])[0] if self._forked else self._alone(start, heads)

    def together(self, sets: Sequence[Collection[Head]]) -> list[Answered]:
        """`patched` of every set at the answer rows, in one batch where the model allows it."""
        start = self._prompts_with([], "answer_rows")
        return self._forks_of(start, sets) if self._forked else [self._alone(start, heads) for heads in sets]

    def _prompts_with(self, heads: Collection[Head], positions: Positions) -> Prefix:
        if positions == "all_positions" and heads:
            with patch_heads(self._recipient, self._prompt_z, heads):
                return self._run_prompts(self._recipient)
        if self._shared is None:
            self._shared = self._run_prompts(self._recipient)
        return self._shared

    def _run_prompts(self, model: PreTrainedModel) -> Prefix:
        return prefix(model, self._batch, chunk_tokens=self._chunk)

    def _fit(self, at_once: int) -> int:
        """How many conditions to run at once: two models do."""
        if not self._forked:
            return 1
        num_examples, num_tokens = len(self._batch.pads), self._batch.num_prompt
        return max(1, forks_that_fit(self._recipient, num_examples, num_tokens, self._num_rows, at_once) // 2)

    def _forks_of(self, start: Prefix, sets: Sequence[Collection[Head]]) -> list[Answered]:
        losses: list[Tensor] = []
        for part in in_parts(sets, self._fit(max(map(len, self._answers)))):
            with _exchanged(self._donor, self._recipient, part):
                forks, beside = self._pair(start, len(part))
                losses += gold_forks(forks, self._answers, lockstep=[beside])
        with _exchanged(self._donor, self._recipient, sets):
            forks, beside = self._pair(start, len(sets))
            said = greedy_forks(forks, max_new_tokens=self._max_new, stop_ids=self._stops, lockstep=[beside])
        return [Answered(gold_nll=loss, tokens=tokens) for loss, tokens in zip(losses, said, strict=True)]

    def _pair(self, start: Prefix, num_forks: int) -> tuple[Forks, Forks]:
        ours, theirs = (self._recipient, start), (self._donor, self._donor_start)
        forks, beside = (Forks(model, prompts, num_forks, self._num_rows) for model, prompts in (ours, theirs))
        return forks, beside

    def _alone(self, start: Prefix, heads: Collection[Head]) -> Answered:
        with self._beside(heads), from_last_token(self._recipient, start) as run:
            losses = gold_nll(self._recipient, run, self._answers)
        with self._beside(heads), from_last_token(self._recipient, start) as run:
            return Answered(gold_nll=losses, tokens=self._greedy(self._recipient, run))

    @contextmanager
    def _beside(self, heads: Collection[Head]) -> Iterator[None]:
        """The donor in lockstep with the recipient, from its own prompts on."""
        with borrowed(self._donor_start.cache) as cache:
            lockstep = LockstepZ(self._donor, cache, heads)
            with patch_heads(self._recipient, lockstep, heads):
                yield

    def _greedy(self, model: PreTrainedModel, start: Prefill) -> list[list[int]]:
        return greedy(model, start, max_new_tokens=self._max_new, stop_ids=self._stops)


@contextmanager
def _exchanged(donor: PreTrainedModel, recipient: PreTrainedModel, sets: Sequence[Collection[Head]]) -> Iterator[None]:
    """Fork c of the recipient gets z of the c-th set from fork c of the donor, which has just run the same rows."""
    layout = anatomy(recipient)
    put_in = torch.zeros(layout.num_layers, len(sets), 1, layout.num_heads, 1, dtype=torch.bool)
    for fork, heads in enumerate(sets):
        for layer, head in heads:
            put_in[layer, fork, :, head] = True
    patched = {layer for heads in sets for layer, _ in heads}
    chosen = put_in.to(recipient.device)
    theirs: dict[int, Tensor] = {}

    def keep(layer: int, z: Float[Tensor, "examples forks rows heads dim"]) -> Tensor:
        if layer in patched:
            theirs[layer] = z
        return z

    def exchange(layer: int, z: Float[Tensor, "examples forks rows heads dim"]) -> Tensor:
        if layer not in patched:
            return z
        return torch.where(chosen[layer].to(z.device), theirs[layer].to(z.device, z.dtype), z)

    with edit_forks(donor, len(sets), keep), edit_forks(recipient, len(sets), exchange):
        yield


def z_bytes(model: PreTrainedModel, num_heads: int, num_tokens: int) -> int:
    """Memory of the z of `num_heads` heads at `num_tokens` positions, in the model's number format."""
    return num_heads * num_tokens * anatomy(model).head_dim * model.dtype.itemsize


def batch_that_fits(model: PreTrainedModel, num_tokens: int, num_heads: int) -> int:
    """How many examples of this length to patch at once: two models' caches, and the donor's z of whole prompts.

    Args:
        model: either model.
        num_tokens: of the longest prompt with its answer.
        num_heads: of how many heads the z of whole prompts is kept; 0 = of none.
    """
    size = max(1, examples_that_fit(model, num_tokens) // 2)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        room = free // _HOST_SHARE
    else:
        room = _CPU_BYTES
    return max(1, min(size, room // max(1, z_bytes(model, num_heads, num_tokens))))


def _on_host(model: PreTrainedModel, batch: PaddedBatch, heads: Collection[Head]) -> bool:
    if model.device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(model.device)
    return z_bytes(model, len(heads), int(batch.ids.numel())) > free // _HOST_SHARE
