"""Where a decoder keeps its attention heads, and whether they can be observed exactly.

`head` is a query head; grouped-query models share one key/value head among several query heads.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from rhstudy.errors import InputError, message, require
from rhstudy.models.trial import objection
from rhstudy.types import Head

_ARGUMENTS = ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The attention layout of one model.

    Attributes:
        num_layers: attention layers.
        num_heads: query heads in each layer.
        num_kv_heads: key/value heads in each layer (equal to `num_heads` without grouping).
        head_dim: size of one head's query.
        hidden_size: width of the residual stream.
        attention_names: qualified name of each layer's attention module, by layer.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    attention_names: tuple[str, ...]

    @property
    def num_total_heads(self) -> int:
        """N of the overlap formulas: all query heads of the model."""
        return self.num_layers * self.num_heads


def base_model(model: nn.Module) -> PreTrainedModel:
    """The decoder inside a PEFT wrapper (its adapters act inside the decoder's own layers); other models as they are.

    Raises:
        InputError: the wrapper adds virtual tokens, which the decoder alone would not see.
    """
    unwrap = getattr(model, "get_base_model", None)
    if unwrap is None:
        return cast(PreTrainedModel, model)
    virtual = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
    got, remedy = f"<{type(model).__name__} with virtual tokens>", "They shift every position; use LoRA or merge"
    require(not virtual, "model", "adapt weights, not prompts", got, remedy)
    return cast(PreTrainedModel, unwrap())


def attention_modules(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Layer index -> (qualified name, attention module), in layer order; names are those inside `base_model`."""
    found = {
        int(module.layer_idx): (name, module)
        for name, module in base_model(model).named_modules()
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")
    }
    return dict(sorted(found.items()))


def anatomy(model: nn.Module) -> Anatomy:
    """Read the attention layout of `model`.

    Raises:
        InputError: no self-attention layers with a layer index, an encoder-decoder, or heads of several sizes.
    """
    decoder = base_model(model)
    name = type(decoder).__name__
    config = _text_config(decoder)
    require(not getattr(config, "is_encoder_decoder", False), "model", "be decoder-only", name, "Use a causal LM")
    modules = attention_modules(decoder)
    require(
        bool(modules) and hasattr(config, "num_attention_heads"),
        "model",
        "have observable attention heads",
        name,
        "State-space and convolutional models have no heads that retrieve; use an attention decoder",
    )
    num_heads = int(config.num_attention_heads)
    return Anatomy(
        num_layers=len(modules),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, [module for _, module in modules.values()]),
        head_dim=_head_dim(config, name),
        hidden_size=int(config.hidden_size),
        attention_names=tuple(name for name, _ in modules.values()),
    )


def require_heads(layout: Anatomy, heads: Iterable[Head]) -> list[Head]:
    """`heads` in order, each once.

    Raises:
        InputError: a head that a model of this layout does not have.
    """
    chosen = sorted(set(heads))
    outside = [head for head in chosen if not (0 <= head[0] < layout.num_layers and 0 <= head[1] < layout.num_heads)]
    require(
        not outside,
        "heads",
        f"lie within the model's {layout.num_layers} layers x {layout.num_heads} query heads",
        outside[:3],
        "Heads are (layer, query head), both counted from 0; take them from a model of this shape",
    )
    return chosen


def _text_config(decoder: PreTrainedModel) -> PretrainedConfig:
    config: PretrainedConfig = decoder.config.get_text_config(decoder=True)
    return config


def _num_kv_heads(config: PretrainedConfig, modules: Sequence[nn.Module]) -> int:
    groups = getattr(modules[0], "num_key_value_groups", None)
    if groups:  # what the attention function itself goes by
        return int(config.num_attention_heads) // int(groups)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _head_dim(config: PretrainedConfig, name: str) -> int:
    try:
        found = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    except Exception as error:
        got, remedy = f"<{name} with a head size per layer>", "Choose a model whose layers are alike"
        raise InputError(message("model", "have heads of one size", got, remedy)) from error
    return int(found or config.hidden_size // config.num_attention_heads)


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model with a learned embedding for each has; None where positions are computed."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2].lower()
        if isinstance(module, nn.Embedding) and ("position" in last or last == "wpe"):
            return int(module.num_embeddings) - int(getattr(module, "offset", 0))
    return None


_OBSERVABLE: WeakKeyDictionary[nn.Module, Anatomy] = WeakKeyDictionary()


def require_observable(model: nn.Module) -> Anatomy:
    """Refuse a model whose attention weights the observer could not reproduce exactly; else its layout.

    The class is judged by what it declares, then by how it behaves on a few tokens (`rhstudy.models.trial`); the model
    is run once, and remembered.

    Raises:
        InputError: naming the model and the reason.
    """
    known = _OBSERVABLE.get(model)
    if known is not None:
        return known
    decoder = base_model(model)
    layout = anatomy(decoder)
    offloaded = [name for name, weight in decoder.named_parameters() if weight.is_meta]
    got, remedy = f"<{len(offloaded)} offloaded, {offloaded[:1]} first>", "Load it whole on GPUs or the CPU"
    require(not offloaded, "model", "have its weights on devices", got, remedy)
    _require_declared(decoder, layout)
    _require_one_rotation(decoder)
    layers = {module: layer for layer, (_, module) in attention_modules(decoder).items()}
    reason = objection(decoder, layers, layout.num_heads, layout.num_kv_heads)
    got, remedy = f"<{type(decoder).__name__}: {reason}>", "Its scores would be wrong; choose another model"
    require(not reason, "model", "show its whole attention to the registry", got, remedy)
    _OBSERVABLE[model] = layout
    return layout


def _require_declared(decoder: PreTrainedModel, layout: Anatomy) -> None:
    name, modules = type(decoder).__name__, attention_modules(decoder)
    parts = [(path, module) for _, owner in modules.values() for path, module in owner.named_modules()]
    missing = [given for given in _ARGUMENTS if given not in inspect.signature(type(decoder).forward).parameters]
    every = int(getattr(_text_config(decoder), "num_hidden_layers", layout.num_layers))
    rules = (
        (
            not any(hasattr(module, "sinks") for _, module in parts),
            "use plain softmax attention",
            "with attention sinks",
            "Learned sinks take part in the softmax; choose a model without sinks",
        ),
        (
            bool(getattr(decoder, "_supports_attention_backend", False)),
            "route attention through the transformers attention registry",
            "which declares no support for it",
            "Its heads cannot be observed; choose a model class that supports attention backends",
        ),
        (
            tuple(modules) == tuple(range(layout.num_layers)),
            "number its attention layers 0..L-1",
            f"with layers {sorted(modules)}",
            "Hybrid models whose layers are not all attention are not supported",
        ),
        (
            layout.num_layers == every,
            "have one attention module in every layer",
            f"with {layout.num_layers} for {every} layers",
            "Hybrid models, and models that run a layer several times, are not supported",
        ),
        (
            not missing,
            "take its masks, positions and cache from the caller",
            f"without {', '.join(missing)}",
            "Padded batches would be run wrongly; choose another model",
        ),
        (
            not any(path.split(".")[-1] in ("router", "experts") for path, _ in parts),
            "have heads with weights of their own",
            "with experts inside its attention",
            "What a head computes changes from token to token; choose another model",
        ),
        (
            _applies_its_window(decoder, modules[min(modules)][1]),
            "apply the sliding window it declares",
            "whose config has a sliding window that its code does not apply",
            "Its cache would drop keys that a full pass sees; take sliding_window out of config.json",
        ),
    )
    for holds, must, got, remedy in rules:
        require(holds, "model", must, f"<{name} {got}>", remedy)


def _require_one_rotation(decoder: PreTrainedModel) -> None:
    """Refuse rotary frequencies that change with the longest sequence a pass has seen."""
    rope = getattr(_text_config(decoder), "rope_parameters", None) or {}
    tables = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    varying = [str(table["rope_type"]) for table in tables if table.get("rope_type") in ("dynamic", "longrope")]
    got, remedy = f"<{type(decoder).__name__} with {varying[:1]} rope>", "Use yarn, linear or a raised theta"
    require(
        not varying, "model", "turn positions alike at every length (scores would depend on the batch)", got, remedy
    )


def _applies_its_window(decoder: PreTrainedModel, attention: nn.Module) -> bool:
    try:
        layers = DynamicCache(config=decoder.config).layers
    except ValueError:
        return True  # transformers has no cache for such layers: the trial meets the same error
    declared = any(getattr(layer, "is_sliding", False) for layer in layers)
    known = vars(sys.modules[type(attention).__module__])
    return not declared or any("mask" in name and ("sliding" in name or "chunked" in name) for name in known)
