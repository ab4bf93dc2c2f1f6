"""The optimizers by name: AdamW with float32 moments, or with moments in 8 bits (bitsandbytes, arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

from rhstudy.errors import InputError, message
from rhstudy.training.config import OptimizerName


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, learning_rate: float, device: torch.device
) -> Optimizer:
    """AdamW (betas 0.9, 0.999; no weight decay) over `parameters`.

    Raises:
        InputError: 8-bit moments are asked for and bitsandbytes is not installed.
    """
    if name == "adamw":
        fused = device.type == "cuda"
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=fused)
    try:
        from bitsandbytes import optim  # only here: importing it takes seconds
    except ImportError as error:
        remedy = "Run pip install bitsandbytes, or set training.optimizer adamw"
        raise InputError(message("training.optimizer", "be installed", name, remedy)) from error
    kind = getattr(optim, {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[name])
    return cast(Optimizer, kind(parameters, lr=learning_rate, weight_decay=0.0))
