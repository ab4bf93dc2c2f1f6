"""Training in the memory there is: passes are made smaller, then activations are recomputed, only when it runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from rhstudy.errors import StudyError, message
from rhstudy.training.batching import ENOUGH_TOKENS, num_sequence_tokens, pass_size
from rhstudy.training.config import TrainingConfig
from rhstudy.types import Example

Result = TypeVar("Result")


class Passes:
    """The forward passes of a run: how large, and whether their activations are kept.

    When a step runs out of memory its gradients are thrown away and it is done again, in turn with smaller passes (down
    to `ENOUGH_TOKENS`), with activations recomputed, and with smaller passes still. Of several processes one cannot try
    again alone: there `activation_bytes` decides at the first step.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, device: torch.device, num_processes: int
    ) -> None:
        self.model, self.device, self.num_processes = model, device, num_processes
        self.size = pass_size(config.micro_batch_size, on_gpu=device.type == "cuda")
        # Where packed sequences begin is known in the forward pass alone: the backward one cannot do it again.
        self.may_checkpoint = config.gradient_checkpointing == "auto" and not config.packing
        self.checkpointing = False
        if config.gradient_checkpointing == "on":
            self._checkpoint()

    def groups(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The step's examples in the groups that all processes take through the model together."""
        return self.size.groups(examples, self.num_processes)

    def with_retries(self, examples: Sequence[Example], work: Callable[[], Result]) -> Result:
        """`work`, done again with less memory as long as it runs out and there is something left to try.

        Raises:
            StudyError: it still runs out.
        """
        if self.num_processes > 1 and self.may_checkpoint:
            self._estimate(examples)
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                text = str(error)[:120]
                cause = error.with_traceback(None)  # its frames would hold the step's activations
            if not self._shrink(examples):
                remedy = "Lower training.micro_batch_size or num_tokens, or set training.gradient_checkpointing on"
                raise StudyError(message("memory", "hold a micro-batch", text, remedy)) from cause
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def close(self) -> None:
        """Keep activations again, as before the run."""
        if self.checkpointing:
            self.model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]

    def _shrink(self, examples: Sequence[Example]) -> bool:
        if self.num_processes > 1:
            return False
        if self.size.shrink(examples, least_tokens=ENOUGH_TOKENS):
            return True
        if self.may_checkpoint and not self.checkpointing:
            self._checkpoint()
            return True
        return self.size.shrink(examples)

    def _checkpoint(self) -> None:
        self.checkpointing = True
        self.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    def _estimate(self, examples: Sequence[Example]) -> None:
        self.may_checkpoint = False
        if self.device.type != "cuda":
            return
        # By the device's total: every process comes to the same answer, whatever its allocator holds.
        total = torch.cuda.get_device_properties(self.device).total_memory
        largest = max(_pass_tokens(group, self.num_processes) for group in self.groups(examples))
        if activation_bytes(self.model, largest) > 0.5 * total:
            self._checkpoint()


def _pass_tokens(group: Sequence[Example], num_processes: int) -> int:
    """Padded tokens of one process' pass over its share of `group`."""
    return -(-len(group) // num_processes) * max(map(num_sequence_tokens, group))


def activation_bytes(model: PreTrainedModel, num_tokens: int) -> float:
    """About what a pass keeps for its backward pass, without recomputation.

    For each layer and token (after arXiv 2205.05198, without the dropout masks and the L x L terms that SDPA never
    makes): 8 vectors of the hidden size H and 4 of the feed-forward size F in the model's number format, and two norms'
    inputs in float32: b (8 H + 4 F) + 4 (4 H).
    """
    config = model.config.get_text_config(decoder=True)
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    width = model.dtype.itemsize
    return float(num_tokens * int(config.num_hidden_layers) * (width * (8 * hidden + 4 * inner) + 16 * hidden))


@contextmanager
def out_of_memory_named(what: str) -> Iterator[None]:
    """Inside, running out of memory is a StudyError that names `what` did not fit."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        remedy = (
            "Train adapters (training.method lora), 8-bit moments (training.optimizer adamw_8bit) or a smaller model"
        )
        raise StudyError(message("memory", f"hold {what}", str(error)[:120], remedy)) from error.with_traceback(None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or cuBLAS says so; not all of them by a type of their own."""
    signs = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
