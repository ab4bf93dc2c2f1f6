"""How torch runs a training loop: with deterministic kernels, with compiled layers; put back when the loop ends."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.keeping import is_keeping
from rhstudy.models.anatomy import attention_modules
from rhstudy.training.config import TrainingConfig

WORTH_FLOPS = 4e15
"""Compiling a decoder layer took 12 s on an H200 and saves 40 % of the time of a small model's steps: from so many
model FLOPs on it pays in a single run. The next run of a study, or of this machine, finds it compiled."""


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


def compiles(config: TrainingConfig, model: PreTrainedModel, *, num_flops: float, num_processes: int) -> bool:
    """Whether decoder layers are compiled, by `config` and, where that says ``auto``, by what it would bring.

    Args:
        config: how `model` is trained.
        model: as it is trained.
        num_flops: model FLOPs of the whole run; NaN when unknown.
        num_processes: that train it together.
    """
    if config.compile != "auto":
        return config.compile == "on"
    able = model.device.type == "cuda" and _has_compiler() and not getattr(model, "is_quantized", False)
    plain = num_processes == 1 and not (config.packing or config.deterministic)
    return able and plain and (is_keeping() or num_flops >= WORTH_FLOPS)


def _with_gradient(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _has_compiler() -> bool:
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


@contextmanager
def compiled_layers(model: PreTrainedModel, wanted: bool, *, strict: bool = True) -> Iterator[None]:
    """Inside, each decoder layer of `model` runs through torch.compile, where `wanted`; all share one compilation.

    Lengths and numbers of examples are symbols in it, so that passes of other shapes compile nothing anew. What fails
    to compile raises where `strict`, else it runs as it is, with a warning.
    """
    if not wanted:
        yield
        return
    layers = [model.get_submodule(name.rpartition(".")[0]) for name, _ in attention_modules(model).values()]
    # Of frozen embeddings no gradient is asked for: the first layer would be compiled once more, for that alone.
    embeddings: nn.Module = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(_with_gradient)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(suppress_errors=not strict):
            yield
    finally:
        handle.remove()
        for layer in layers:
            layer._compiled_call_impl = None
