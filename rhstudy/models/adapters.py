"""LoRA adapters (arXiv 2106.09685) as PEFT keeps them: put into a model, written to a folder, read back.

    h = W x + (alpha / r) B A x        A: r x in, drawn at random; B: out x r, 0 at first; W frozen, possibly in 4 bits

A and B are float32 whatever the model is in. The folder is PEFT's own (``adapter_config.json`` and
``adapter_model.safetensors``), which `peft.PeftModel.from_pretrained` reads. It is read here with that very
function and never merged: W + BA rounded to the model's number format is another model, and MLflow's own reload of such
a model with a local base gives wrong weights without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.configs import digest, file_sha256
from rhstudy.errors import InputError, message, require
from rhstudy.models.anatomy import attention_modules
from rhstudy.seeding import stream_seed

LoraTargets = Literal["attention", "all"]
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NAME = "default"
_PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter that PEFT reads."""
    return (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file()


def add_adapter(
    model: PreTrainedModel, *, rank: int, alpha: int, targets: LoraTargets, seed: int
) -> dict[str, nn.Parameter]:
    """Put LoRA layers around linear layers of `model`, in place; only their parameters will be trained.

    Args:
        model: the base; its own parameters are frozen.
        rank: r.
        alpha: scale of the update, divided by the rank.
        targets: linear layers of the attention modules, or all but the LM head.
        seed: root seed A is drawn from, by name: the number of layers or processes changes no draw.

    Returns:
        The adapter's parameters by qualified name, float32, in module order.

    Raises:
        InputError: the model has no such linear layers, or PEFT is not installed.
    """
    peft = _peft("training.method", "lora")
    model.requires_grad_(False)
    config = adapter_config(_target_modules(model, targets), rank=rank, alpha=alpha)
    peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        kind = name.removesuffix(f".{_NAME}.weight").rpartition(".")[2]
        parameter.requires_grad_(kind in ("lora_A", "lora_B"))
        if parameter.requires_grad:
            parameter.data = _start(parameter, kind, stream_seed(seed, "adapter", name))
            found[name] = parameter
    return found


def _peft(key: str, value: str) -> Any:
    try:
        import peft  # only here: machines that train attention whole need not have it
    except ImportError as error:
        remedy = "Run pip install peft, or set training.method attention"
        raise InputError(message(key, "be used where PEFT is installed", value, remedy)) from error
    return peft


def _start(parameter: nn.Parameter, kind: str, seed: int) -> Tensor:
    values = torch.zeros(parameter.shape, dtype=torch.float32)
    if kind == "lora_A":
        draw = torch.Generator().manual_seed(seed)
        nn.init.kaiming_uniform_(values, a=5**0.5, generator=draw)
    return values.to(parameter.device)


def adapter_config(modules: Iterable[str], *, rank: int, alpha: int) -> Any:
    """PEFT's config of an adapter around the linear layers named in `modules`; numbers as `add_adapter`."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                      target_modules=sorted(modules))  # fmt: skip


def _target_modules(model: PreTrainedModel, targets: LoraTargets) -> list[str]:
    """Qualified names of the linear layers that `targets` means."""
    from transformers.pytorch_utils import Conv1D

    attention = tuple(f"{name}." for name, _ in attention_modules(model).values())
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    found = [name for name in linear if targets == "all" or name.startswith(attention)]
    got, remedy = f"<{type(model).__name__}>", "Choose another model or training.method attention"
    require(bool(found), "training.method", "find linear layers in the attention modules", got, remedy)
    return found


def save_adapter(folder: Path, weights: Mapping[str, Tensor], *, rank: int, alpha: int, base: str) -> None:
    """Write `weights` (names as `add_adapter` gives them) as PEFT's adapter folder.

    Args:
        folder: where to.
        weights: the adapter's parameters, on the CPU.
        rank: as in `add_adapter`.
        alpha: as in `add_adapter`.
        base: label of the base model; a path would tell where it was trained.
    """
    renamed = {_PREFIX + name.replace(f".{_NAME}.", "."): value for name, value in weights.items()}
    save_file(renamed, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = adapter_config({name.rpartition(".lora_")[0] for name in weights}, rank=rank, alpha=alpha)
    config.base_model_name_or_path = base
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set's order would change with every process
    config.save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, str]:
    """Put the adapter in `folder` on `model`; returns the model, with its layers wrapped, and a sha256 of the adapter.

    Raises:
        InputError: PEFT is not installed, cannot read it, or it does not fit the model.
    """
    peft = _peft("checkpoint", str(folder))
    try:
        wrapped = peft.PeftModel.from_pretrained(model, folder, adapter_name=_NAME)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        remedy = f"PEFT says: {str(error).strip().splitlines()[0][:200]}"
        raise InputError(message("checkpoint", "hold an adapter of this model", str(folder), remedy)) from error
    base = cast(PreTrainedModel, wrapped.get_base_model())
    held = {_PREFIX + name.replace(f".{_NAME}.", ".") for name, _ in base.named_parameters() if ".lora_" in name}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        stray = sorted(held ^ set(file.keys()))  # PEFT leaves out what it does not find, with a warning at most
    remedy = "Load the base model it was trained from"
    require(not stray, "checkpoint", "hold the very layers of its adapter", stray[:3], remedy, str(folder))
    return base, digest(file_sha256(folder / ADAPTER_WEIGHTS), file_sha256(folder / ADAPTER_CONFIG))
