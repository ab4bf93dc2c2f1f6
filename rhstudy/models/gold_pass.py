"""One forward pass over prompts that their gold answers follow: j* of every head, and what the answer costs the model.

Sequences begin at index 0 and are padded on the right, where causal rows never look. So no mask is passed, SDPA keeps
its fastest kernel, and an example's numbers do not depend on what it shares a pass with. Row P_b - 1 + t of example b
predicts its answer token w_t (t from 0); only these rows reach the LM head.

Up to some thousand tokens of a small model a GPU does its work faster than Python can ask for it. There `GoldPasses`
records the pass as a CUDA graph and replays it, with sequences padded to a few lengths: the same kernels in the same
order, no Python between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.graphs import CudaGraphs, on_one_gpu
from rhstudy.models.probe import ArgmaxObserver, observe
from rhstudy.models.transfer import fetched_later, moved
from rhstudy.shapes import Float, Int

GRAPH_WORK = 2**40
"""Weights times tokens of a pass up to which a GPU waits for Python (135M weights: about 8,000 tokens)."""
GRAPH_REUSE = 16
"""Recording a graph takes as long as some six passes; fewer passes of one shape than this are run directly."""
_LENGTH_STEPS, _ROW_STEP = 32, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldBatch:
    """Prompts and gold answers of B examples, on the CPU until they are run.

    Attributes:
        ids: (B, L) prompt and answer, padded on the right.
        starts: (B,) the row that predicts the first answer token, P_b - 1.
        gold: (B, T) answer tokens, padded on the right.
        counts: (B,) how many answer tokens there are.
    """

    ids: Int[Tensor, "batch tokens"]
    starts: Int[Tensor, " batch"]
    gold: Int[Tensor, "batch answer"]
    counts: Int[Tensor, " batch"]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four."""
        return self.ids, self.starts, self.gold, self.counts


def gold_batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, shape: tuple[int, int] = (0, 0)
) -> GoldBatch:
    """Lay out prompts and answers as the module says, at least `shape` (L, T) large.

    Raises:
        InputError: an empty prompt or answer, or not one answer a prompt.
    """
    require(len(prompts) == len(answers), "answers", f"be one per prompt ({len(prompts)})", len(answers), "Pass all")
    shortest = min((len(part) for part in (*prompts, *answers)), default=0)
    require(shortest > 0, "prompts and answers", "be non-empty", shortest, "Drop empty ones")
    num_tokens, num_rows = (max(pair) for pair in zip(shape, size_of(prompts, answers), strict=True))
    ids = np.full((len(prompts), num_tokens), pad_id, dtype=np.int64)
    gold = np.full((len(prompts), num_rows), pad_id, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(answer)] = answer
        gold[row, : len(answer)] = answer
    return GoldBatch(
        ids=torch.from_numpy(ids),
        starts=torch.tensor([len(prompt) - 1 for prompt in prompts]),
        gold=torch.from_numpy(gold),
        counts=torch.tensor([len(answer) for answer in answers]),
    )


def size_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(longest prompt with its answer, longest answer) in tokens."""
    num_tokens = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    return num_tokens, max(map(len, answers))


def run_gold(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch tokens"],
    starts: Int[Tensor, " batch"],
    gold: Int[Tensor, "batch answer"],
    counts: Int[Tensor, " batch"],
    observer_type: type[ArgmaxObserver] = ArgmaxObserver,
    at_once: bool = False,
) -> tuple[Int[Tensor, "layers batch heads answer"], Float[Tensor, " batch"]]:
    """One pass: j* at the rows of the answer tokens, and the mean negative log likelihood of each answer.

    Args:
        model: an observable decoder; the other arguments lie on the device of its first layer.
        ids, starts, gold, counts: see `GoldBatch`.
        observer_type: how j* is taken.
        at_once: see `AttentionObserver`; right where launches cost nothing.

    Returns:
        j* (meaningless behind an answer's end) and losses, nats per token, on one device.
    """
    observer = observer_type(range(gold.shape[1]), starts)
    observer.at_once = at_once
    with observe(model, observer), only_rows(model, observer.row_index(ids.shape[1], ids.device)):
        logits = model(input_ids=ids, use_cache=False).logits
    argmax = observer.argmax()
    losses = mean_gold_nll(logits, gold.to(logits.device), counts.to(logits.device))
    return argmax, losses.to(argmax.device)


@contextmanager
def only_rows(model: PreTrainedModel, rows: Int[Tensor, "batch rows"]) -> Iterator[None]:
    """Let only these rows of each example reach the LM head: logits are then (batch, rows, vocabulary)."""

    def pick(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = given
        index = rows.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index), *others

    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def mean_gold_nll(
    logits: Float[Tensor, "batch rows vocab"], gold: Int[Tensor, "batch answer"], counts: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Mean negative log likelihood of each gold answer, nats per token: -1/T sum_t log p(w_t | prompt, w_<t).

    Args:
        logits: row t predicts w_t, t from 0; more rows than the longest answer are ignored.
        gold: answer ids, padded on the right with any id.
        counts: T of each example.
    """
    num_rows = gold.shape[1]
    rows = logits[:, :num_rows].float().flatten(0, 1)
    losses = nn.functional.cross_entropy(rows, gold.flatten(), reduction="none").view(-1, num_rows)
    behind = torch.arange(num_rows, device=losses.device) >= counts[:, None]
    return losses.masked_fill(behind, 0.0).sum(dim=1) / counts


class GoldPasses:
    """Gold passes of one model, recorded and replayed where that pays.

    Args:
        model: an observable decoder.
        pad_id: any token id.
        observer_type: how j* is taken.
        sizes: (examples, tokens, answer tokens) of every pass to come, by which it is known what pays.
        cuda_graphs: False never records.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_id: int,
        observer_type: type[ArgmaxObserver] = ArgmaxObserver,
        sizes: Iterable[tuple[int, int, int]] = (),
        cuda_graphs: bool = True,
    ) -> None:
        self._pad_id, self._device = pad_id, model.device
        self._planned = Counter(_rounded(*size) for size in sizes)
        # No method of this object: recordings would then hold on to each other, and to their memory.
        self._run = partial(run_gold, model, observer_type=observer_type)
        recorded = partial(self._run, at_once=True)
        self._graphs = CudaGraphs(recorded, model.device) if cuda_graphs and on_one_gpu(model) else None
        self._num_weights = sum(weight.numel() for weight in model.parameters())

    def launch(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Callable[[], list[Tensor]]:
        """Start a pass; what is returned waits for it and gives `run_gold`'s two results on the CPU."""
        size = _rounded(len(prompts), *size_of(prompts, answers))
        if self._graphs is None or not self._pays(size):
            batch = gold_batch(prompts, answers, self._pad_id)
            return fetched_later(*self._run(*(moved(part, self._device) for part in batch.tensors())))
        batch = gold_batch(prompts, answers, self._pad_id, size[1:])
        return fetched_later(*self._graphs(*batch.tensors()))

    def _pays(self, size: tuple[int, int, int]) -> bool:
        return self._planned[size] >= GRAPH_REUSE and self._num_weights * size[0] * size[1] <= GRAPH_WORK


def _rounded(num_examples: int, num_tokens: int, num_rows: int) -> tuple[int, int, int]:
    """The size a recorded pass is padded to: at most a sixteenth more tokens."""
    step = max(16, 2 ** (num_tokens - 1).bit_length() // _LENGTH_STEPS)
    return num_examples, -(-num_tokens // step) * step, -(-num_rows // _ROW_STEP) * _ROW_STEP
