"""Context extension: a model's rotary positions changed through transformers' own rope parameters, nothing patched.

With theta the base, d the rotated dimensions of a head, f_i = theta^(-2i/d) the frequency of pair i, and s the factor:

    theta    f_i with another theta                                    (the study's own way)
    linear   f_i / s                                                   position interpolation, arXiv 2306.15595
    ntk      f_i with theta' = theta s^(d/(d-2))                       static "NTK-aware" base change
    yarn     low f_i / s, high f_i kept, a ramp between; attention scaled by 0.1 ln s + 1        arXiv 2309.00071

`ntk` stretches the lowest frequency by s and leaves the highest alone. transformers' own ``dynamic`` NTK does that anew
for every length, so the same tokens would turn otherwise in a longer batch or while decoding: scores and answers would
depend on what else is run, and the detector refuses it. It is not offered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rhstudy.configs import ContextConfig
from rhstudy.errors import require


def apply_context(model_config: Any, context: ContextConfig, name: str) -> None:
    """Change `model_config`'s rope parameters in place; as shipped, they are left alone.

    Args:
        model_config: transformers config of the model, before it is built.
        context: what to change.
        name: of the model, for messages.

    Raises:
        InputError: the model has no rotary positions, has them per kind of layer, or ships scaled ones that `context`
            would have to scale again.
    """
    if context.is_native:
        return
    config = model_config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None)
    key = "context.rope_theta" if context.scaling == "theta" else "context.scaling"
    table = rope if isinstance(rope, dict) else {}
    layered = any(isinstance(value, dict) for value in table.values())
    remedy = "Leave [context] out, or choose a model with one set of rotary positions"
    require(not layered, key, "fit a model with one set of rotary positions", f"<{name}: {sorted(table)}>", remedy)
    remedy = "Set context.rope_theta = 0 and context.scaling = theta, or choose a model with rotary positions"
    require("rope_theta" in table, key, "fit a model with rotary positions", f"<{name} without rope_theta>", remedy)
    if context.scaling != "theta":
        shipped = table.get("rope_type", "default")
        remedy = "It is scaled already; use context.scaling theta, which keeps that"
        require(shipped == "default", key, "scale plain rotary positions", f"<{name} with {shipped} rope>", remedy)
    theta = float(context.rope_theta or table["rope_theta"])
    native = int(config.max_position_embeddings)
    if context.scaling == "ntk":
        dims = _rotated_dims(config, table)
        remedy = "Use linear, yarn or a raised theta"
        require(dims > 2, key, "be ntk where heads rotate more than two dimensions", f"<{name}: {dims}>", remedy)
        theta *= context.factor ** (dims / (dims - 2))
    elif context.scaling in ("linear", "yarn"):
        table |= {"rope_type": context.scaling, "factor": float(context.factor)}
    if context.scaling == "yarn":
        if getattr(config, "head_dim", 0) is None:  # transformers' YaRN takes what stands there
            config.head_dim = config.hidden_size // config.num_attention_heads
        table["original_max_position_embeddings"] = native
    if context.scaling != "theta":
        config.max_position_embeddings = round(native * context.factor)
    table["rope_theta"] = theta


def _rotated_dims(config: Any, table: dict[str, Any]) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * table.get("partial_rotary_factor", 1.0))


def require_rotation(model: nn.Module, context: ContextConfig, name: str) -> None:
    """Check on the built model that its rotary positions are those that `context` asks for.

    A model class may keep rope parameters and not look at them, or know only some kinds.

    Raises:
        InputError: it does not turn as asked.
    """
    if context.is_native:
        return
    wanted = "default" if context.scaling in ("theta", "ntk") else context.scaling
    rotary = [module for module in model.modules() if hasattr(module, "rope_type")]
    kinds = sorted({str(module.rope_type) for module in rotary})
    found = bool(rotary) and (context.scaling == "theta" or kinds == [wanted])
    remedy = "Choose another context.scaling or another model"
    require(found, "context.scaling", f"be rope of type {wanted} in the model", f"<{name} with {kinds}>", remedy)
    if context.scaling != "theta" or kinds == ["default"]:
        tables = [table for module in rotary if isinstance(table := getattr(module, "inv_freq", None), torch.Tensor)]
        turns = all(_turns_as_asked(table.float().cpu(), model, context) for table in tables if table.numel() > 1)
        of_theta = ("context.rope_theta", "be the model's base frequency once loaded")
        of_scaling = ("context.scaling", "set the model's frequencies once loaded")
        key, must = of_theta if context.scaling == "theta" else of_scaling
        got = f"<{name}, whose frequencies do not follow it>"
        require(turns, key, must, got, "Choose another model")


def _turns_as_asked(found: torch.Tensor, model: nn.Module, context: ContextConfig) -> bool:
    """Whether the frequencies of a built model are those of the equations above."""
    config: Any = getattr(model, "config").get_text_config(decoder=True)  # noqa: B009 a module knows no config
    if context.scaling == "yarn":
        expected, _ = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    else:
        pairs = torch.arange(found.numel(), dtype=torch.float32) / found.numel()
        expected = float(context.rope_theta or config.rope_parameters["rope_theta"]) ** -pairs
        expected = expected / context.factor if context.scaling == "linear" else expected
    return found.shape == expected.shape and torch.allclose(found, expected.float(), rtol=1e-3, atol=0)
