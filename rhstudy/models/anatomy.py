"""Where a decoder keeps its attention heads, and whether they can be observed exactly.

`head` is a query head; grouped-query models share one key/value head among several query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from rhstudy.errors import require


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


def attention_modules(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Layer index -> (qualified name, attention module), in layer order."""
    found = {
        int(module.layer_idx): (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")
    }
    return dict(sorted(found.items()))


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Read the attention layout of `model`.

    Raises:
        InputError: the model has no self-attention layers with a layer index, or is an encoder-decoder.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    require(not getattr(config, "is_encoder_decoder", False), "model", "be decoder-only", name, "Use a causal LM")
    modules = attention_modules(model)
    require(
        bool(modules) and hasattr(config, "num_attention_heads"),
        "model",
        "have observable attention heads",
        name,
        "State-space and convolutional models have no heads that retrieve; use an attention decoder",
    )
    num_heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return Anatomy(
        num_layers=len(modules),
        num_heads=num_heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or num_heads),
        head_dim=int(head_dim),
        hidden_size=int(config.hidden_size),
        attention_names=tuple(name for name, _ in modules.values()),
    )


def require_observable(model: PreTrainedModel) -> None:
    """Refuse a model whose attention weights the observer could not reproduce exactly.

    Raises:
        InputError: naming the model and the reason (softcap, attention sinks, no attention registry, no heads).
    """
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    layout = anatomy(model)
    softcap = getattr(config, "attn_logit_softcapping", None)
    require(
        softcap is None,
        "model",
        "use plain softmax attention",
        f"<{name} with attn_logit_softcapping={softcap}>",
        "SDPA cannot apply the softcap, so its scores would be wrong; choose a model without one",
    )
    sinks = [owner for owner, module in model.named_modules() if hasattr(module, "sinks")]
    require(
        not sinks,
        "model",
        "use plain softmax attention",
        f"<{name} with attention sinks>",
        "Learned sinks take part in the softmax and SDPA ignores them; choose a model without sinks",
    )
    require(
        bool(getattr(model, "_supports_attention_backend", False)),
        "model",
        "route attention through the transformers attention registry",
        f"<{name}>",
        "Its heads cannot be observed; choose a model class that supports attention backends",
    )
    require(
        tuple(attention_modules(model)) == tuple(range(layout.num_layers)),
        "model",
        "number its attention layers 0..L-1",
        f"<{name} with layers {sorted(attention_modules(model))}>",
        "Hybrid models whose layers are not all attention are not supported",
    )
