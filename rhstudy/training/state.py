"""The resumable state of a training loop on disk, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

STATE_FILE = "training-state.pt"


def save_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    counters: Mapping[str, Any],
) -> None:
    """Write parameters, optimizer, schedule and `counters` (plain values) to `path`."""
    state = {
        "parameters": {name: value.detach().cpu() for name, value in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "counters": dict(counters),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    torch.save(state, scratch)
    os.replace(scratch, path)


def restore_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, scheduler: LRScheduler
) -> dict[str, Any]:
    """Put the state at `path` back in place and return its counters.

    Without a file, or with one of an earlier layout, nothing happens and none are returned: training starts anew.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    if "counters" not in state:
        return {}
    with torch.no_grad():
        for name, value in state["parameters"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return dict(state["counters"])
