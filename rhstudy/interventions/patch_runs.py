"""A batch of prompts in a donor and a recipient: each prompt once, and every patching condition from there.

    answer_rows      the recipient's prompts are run once without a patch; each condition begins at their last token
    all_positions    the recipient's prompts are run once for each condition, with the donor's z put in at every row

The donor's prompts are run once in either case, and its rows along the gold answer too (teacher forcing). Where the
recipient speaks for itself the donor runs beside it, on the recipient's own tokens, with the keys and values of its own
prompts before them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.interventions.patching import LockstepZ, Positions, patch_heads, recorded_z
from rhstudy.models.anatomy import anatomy
from rhstudy.models.batch import PaddedBatch, pad_batch
from rhstudy.models.cache import borrowed, examples_that_fit
from rhstudy.models.decode import greedy
from rhstudy.models.generate import Prefill, Prefix, from_last_token, gold_nll, prefix
from rhstudy.shapes import Float
from rhstudy.types import Head

_CPU_BYTES = 2**30
"""On a CPU batches are so small that their recordings take no more than this, unless one example does."""
_HOST_SHARE = 4
"""A recording that takes more than this part of a GPU's free memory is kept in the host's."""


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
    """One batch in both models; conditions are run one at a time.

    Args:
        donor: a decoder whose heads can be observed.
        recipient: another model object of the same base.
        prompts: token ids of each prompt, at least 2 tokens.
        answers: token ids of each gold answer, none empty.
        heads: every head that a condition patches.
        max_new_tokens: longest answer.
        stop_ids: tokens that end an answer.
        pad_id: any token id.
        chunk_tokens: prompts are run in chunks of this many tokens; 0 = one pass.
        positions: what conditions will ask for; the donor's z of whole prompts is only kept for ``all_positions``.

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
    ) -> None:
        remedy = "Load the model twice: the donor runs inside the recipient's passes"
        require(donor is not recipient, "donor", "be another object than the recipient", "<the same>", remedy)
        self._donor, self._recipient, self._answers = donor, recipient, answers
        self._max_new, self._stops, self._chunk = max_new_tokens, stop_ids, chunk_tokens
        self._batch = pad_batch(prompts, [[]] * len(prompts), pad_id, recipient.device)
        whole = heads if "all_positions" in positions else []
        with recorded_z(donor, whole, on_host=_on_host(donor, self._batch, whole)) as self._prompt_z:
            self._donor_start = self._run_prompts(donor)
        with recorded_z(donor, heads) as self._gold_z, from_last_token(donor, self._donor_start) as start:
            gold_nll(donor, start, answers)
        self._shared: Prefix | None = None

    def donor(self) -> Answered:
        """The donor's own answers."""
        with patch_heads(self._donor, self._gold_z, []), from_last_token(self._donor, self._donor_start) as start:
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
        with (
            patch_heads(self._recipient, self._gold_z, heads),
            from_last_token(self._recipient, start) as run,
        ):
            losses = gold_nll(self._recipient, run, self._answers)
        with (
            self._beside(heads) as lockstep,
            patch_heads(self._recipient, lockstep, heads),
            from_last_token(self._recipient, start) as run,
        ):
            return Answered(gold_nll=losses, tokens=self._greedy(self._recipient, run))

    def _prompts_with(self, heads: Collection[Head], positions: Positions) -> Prefix:
        if positions == "all_positions" and heads:
            with patch_heads(self._recipient, self._prompt_z, heads):
                return self._run_prompts(self._recipient)
        if self._shared is None:
            self._shared = self._run_prompts(self._recipient)
        return self._shared

    def _run_prompts(self, model: PreTrainedModel) -> Prefix:
        return prefix(model, self._batch, chunk_tokens=self._chunk)

    @contextmanager
    def _beside(self, heads: Collection[Head]) -> Iterator[LockstepZ]:
        with borrowed(self._donor_start.cache) as cache:
            yield LockstepZ(self._donor, cache, heads)

    def _greedy(self, model: PreTrainedModel, start: Prefill) -> list[list[int]]:
        return greedy(model, start, max_new_tokens=self._max_new, stop_ids=self._stops)


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
