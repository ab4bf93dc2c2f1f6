"""Pauses of a training loop: after chosen steps the model in memory is looked at, and goes on as if nobody had."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rhstudy.training.context import autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """When a training loop pauses, and for whom.

    Attributes:
        steps: after so many steps of the whole run; the last one is none of them.
        look: called with that number while the model is in eval mode; what it raises ends the run.
    """

    steps: Collection[int] = ()
    look: Callable[[int], None] = lambda _num_steps: None


NO_PAUSES = Pauses()


def pause_steps(fractions: Collection[float], num_steps: int) -> dict[float, int]:
    """Share of the steps -> number of steps after which it is reached; none where there is only one step."""
    if num_steps < 2:
        return {}
    return {share: min(num_steps - 1, max(1, round(share * num_steps))) for share in fractions}


@contextmanager
def lent_for_a_look(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """A model in training as detectors take it, for the length of the block; afterwards it is as it was.

    Put back are modes of modules, the attention function, compiled layers, random states and the rule of deterministic
    kernels. Master weights are float32: passes run under autocast to `dtype`, as in training. The block must run
    without gradients and change no weight.
    """
    modes = {module: module.training for module in model.modules()}
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    attention = model.config._attn_implementation
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        model.train(False)
        for module in compiled:  # eval mode and another attention would be compiled anew
            module._compiled_call_impl = None
        torch.use_deterministic_algorithms(False)
        with torch.random.fork_rng(devices), autocast(model.device, dtype):
            yield
    finally:
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        model.set_attn_implementation(attention)
        for module, call in compiled.items():
            module._compiled_call_impl = call
        for module, training in modes.items():
            module.training = training
