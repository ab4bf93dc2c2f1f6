"""Model FLOPs of a training step, and what share of the GPU's peak they reach (MFU, as in PaLM, arXiv 2204.02311, B).

For a sequence of L tokens of which T are predicted answer tokens:

    F = (4 N + 2 N_trained) L  +  12 sum_layers h d L (L + 1) / 2  +  4 V H T

N: weights of the linear layers without the LM head (2 N a token forward, 2 N for the gradient of activations);
N_trained: those with a gradient of their own (2 more); h heads of size d, causal: L (L + 1) / 2 pairs, 4 h d a pair
forward and twice that backward; V H: the LM head, which sees only answer rows and is frozen. Recomputed activations,
padding, norms and softmax count nothing. Frozen weights need no weight gradients: less than full training's 6 N.

    MFU = F / (seconds x number of GPUs x peak FLOP/s of the GPU in bfloat16)
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rhstudy.models.anatomy import anatomy

PEAK_BF16_FLOPS = {
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165.2e12,
}
"""Dense bfloat16 peak by GPU, from the vendor's data sheets; the first that is a word of the device's name counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """FLOPs of one model's training, by the equation above.

    Attributes:
        per_token: 4 N + 2 N_trained.
        per_pair: 12 x layers x heads x head size.
        per_target: 4 V H.
        reason: why they are unknown; empty when they are known.
    """

    per_token: float
    per_pair: float
    per_target: float
    reason: str = ""

    def of(self, sequences: Iterable[tuple[int, int]]) -> float:
        """FLOPs of sequences given as (tokens, predicted tokens); NaN when unknown."""
        if self.reason:
            return math.nan
        return sum(
            self.per_token * length + self.per_pair * length * (length + 1) / 2 + self.per_target * targets
            for length, targets in sequences
        )


def step_flops(model: PreTrainedModel, trained: Collection[str]) -> StepFlops:
    """The FLOPs of training the parameters named in `trained`; call it once they are in place.

    Mixtures of experts and layers with a window are not counted, and say so.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ()
    unknown = StepFlops(per_token=math.nan, per_pair=math.nan, per_target=math.nan)
    if any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules()):
        return _because(unknown, "experts are not counted")
    if any(kind != "full_attention" for kind in kinds) or (not kinds and getattr(config, "sliding_window", None)):
        return _because(unknown, "layers with a window are not counted")
    layout, head = anatomy(model), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    shapes = {
        name: _size(module) for name, module in model.named_modules() if _size(module) and module is not head
    }  # quantised weights have another shape in memory
    all_weights = sum(shapes.values())
    trained_weights = sum(size for name, size in shapes.items() if f"{name}.weight" in trained)
    return StepFlops(
        per_token=4 * all_weights + 2 * trained_weights,
        per_pair=12 * layout.num_total_heads * layout.head_dim,
        per_target=4 * _size(head) if head is not None else 0,
    )


def _because(flops: StepFlops, reason: str) -> StepFlops:
    return StepFlops(per_token=flops.per_token, per_pair=flops.per_pair, per_target=flops.per_target, reason=reason)


def _size(module: nn.Module) -> int:
    if hasattr(module, "base_layer"):
        return 0  # an adapter's wrapper speaks for the layer inside, which is counted itself
    if isinstance(module, nn.Linear):
        return int(module.in_features * module.out_features)
    if type(module).__name__ == "Conv1D":
        return int(module.nx * module.nf)  # type: ignore[operator]
    return 0


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Peak FLOP/s of `device`, or NaN and the reason."""
    if device.type != "cuda":
        return math.nan, f"no peak is known for a {device.type}"
    if dtype != torch.bfloat16:
        return math.nan, f"peaks are known for bfloat16, not for {str(dtype).removeprefix('torch.')}"
    name = torch.cuda.get_device_name(device)
    for part, peak in PEAK_BF16_FLOPS.items():
        if re.search(rf"\b{part}\b", name):
            return peak, ""
    return math.nan, f"no peak is known for {name}"
