"""How torch runs a training loop: with deterministic kernels, with compiled layers; put back when the loop ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from rhstudy.models.anatomy import attention_modules


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, torch uses only kernels that give equal bits at every run, where `wanted`.

    Attention's backward pass then adds in a fixed order, which is slower; a kernel that has no such form raises.
    Torch looks for cuBLAS's setting at its first matrix product; `rhstudy.models.load.load_model` made it long before.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def compiled_layers(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Inside, each decoder layer of `model` runs through torch.compile, where `wanted`; all share one compilation."""
    if not wanted:
        yield
        return
    layers = [model.get_submodule(name.rpartition(".")[0]) for name, _ in attention_modules(model).values()]
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
