"""What is trained: the attention modules whole, as in the study, or adapters; the rest is frozen, and checked."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.errors import StudyError, message, require
from rhstudy.models.adapters import add_adapter
from rhstudy.models.anatomy import attention_modules
from rhstudy.training.config import TrainingConfig
from rhstudy.training.ranks import local


def make_trainable(model: PreTrainedModel, config: TrainingConfig, seed: int) -> dict[str, nn.Parameter]:
    """Freeze `model` but for what ``training.method`` trains, all of it float32.

    Returns:
        Trainable parameters by qualified name, in module order.

    Raises:
        InputError: as `unfreeze_attention`, `rhstudy.models.adapters.add_adapter`.
    """
    if config.method == "attention":
        return unfreeze_attention(model)
    _switch_off_dropout(model)
    return add_adapter(model, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets, seed=seed)


def settle(parameters: dict[str, nn.Parameter], dtype: torch.dtype, config: TrainingConfig) -> None:
    """Leave a trained model as its checkpoint gives it back: attention in the model's `dtype`, nothing to train."""
    for parameter in parameters.values():
        parameter.grad = None
        parameter.requires_grad_(False)
        if config.method == "attention":
            parameter.data = parameter.data.to(dtype)


def unfreeze_attention(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Freeze `model` but for its attention modules, whose parameters become float32 masters.

    bfloat16 weights would swallow steps of 1e-4 of their size; the forward pass runs under autocast instead
    (see `autocast`).

    Returns:
        Trainable parameters by qualified name, in module order.

    Raises:
        InputError: attention weights are quantised or there are none.
    """
    model.requires_grad_(False)
    _switch_off_dropout(model)
    chosen: dict[str, nn.Parameter] = {}
    for name, module in attention_modules(model).values():
        for suffix, parameter in module.named_parameters():
            remedy = "Attention modules are trained; load them unquantised"
            floating = parameter.is_floating_point()
            require(floating, "model.quantization", "leave attention alone", f"<{name}.{suffix}>", remedy)
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            chosen[f"{name}.{suffix}"] = parameter
    require(bool(chosen), "model", "have attention parameters", type(model).__name__, "Use an attention decoder")
    return chosen


def _switch_off_dropout(model: nn.Module) -> None:
    # Dropout would draw from torch's global stream: a resumed run could not end where an unbroken one ends.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to the model's own number format; nothing to do in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def frozen_fingerprint(model: nn.Module) -> str:
    """SHA-256 over shapes, sums and L2 norms (float64) of every frozen parameter: changes when one of them moves.

    Of parameters that several processes hold in pieces, each process looks at its own.
    """
    facts: list[tuple[str, list[float]]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = local(parameter.detach())
            if values.is_floating_point():
                pair = [values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, dtype=torch.float64)]
            else:
                pair = [values.sum(dtype=torch.int64)]
            facts.append((f"{name}{tuple(values.shape)}", torch.stack(pair).tolist()))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def require_frozen(model: nn.Module, before: str) -> None:
    """Check that no frozen parameter moved since `before` was taken.

    Raises:
        StudyError: one did.
    """
    if frozen_fingerprint(model) != before:
        remedy = "Something outside the optimizer changed the model; report this with the config"
        raise StudyError(message("frozen parameters", "stay as they were", "<changed values>", remedy))


def change_norm(parameters: dict[str, nn.Parameter], base: dict[str, Tensor]) -> float:
    """|| W - W_0 ||_2 over what this process holds of all trainable parameters: the weight-change rival predictor."""
    held = {name: local(parameter.detach()) for name, parameter in parameters.items()}
    squares = [(value.cpu().float() - base[name]).square().sum() for name, value in held.items()]
    return float(torch.stack(squares).sum().sqrt())
