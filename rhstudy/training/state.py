"""The resumable state of a training loop on disk, written whole or not at all.

Tensors that several processes hold in pieces are put together, so the file is the same however many processes train:
what one process began, two can go on with, and the other way round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rhstudy.training.ranks import ALONE, Ranks, cut_like, whole

STATE_FILE = "training-state.pt"
_LEAST_S, _SHARE, _TOGETHER = 10.0, 20.0, 20


class SaveTimes:
    """When the state is due to be written.

    Args:
        every_steps: after so many steps; 0 = when 20 times as long has passed as writing it took, and 10 s at least.
        num_processes: that write it together: clocks differ, so with 0 they do after every 20th step.
    """

    def __init__(self, every_steps: int, num_processes: int) -> None:
        self._every = every_steps or (_TOGETHER if num_processes > 1 else 0)
        self._least_s = _LEAST_S
        self._last_s = time.monotonic()

    def due(self, num_steps: int) -> bool:
        """Whether to write after `num_steps` steps."""
        if self._every:
            return num_steps % self._every == 0
        return time.monotonic() - self._last_s >= self._least_s

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around the writing."""
        began = time.monotonic()
        yield
        self._last_s = time.monotonic()
        self._least_s = max(_LEAST_S, _SHARE * (self._last_s - began))


def save_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    counters: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> None:
    """Write parameters, optimizer, schedule and `counters` (plain values) to `path`; every process must call this."""
    kept = {name: _kept(value.detach(), ranks) for name, value in parameters.items()}
    moments = optimizer.state_dict()
    moments["state"] = {
        index: {key: _kept(value, ranks) if isinstance(value, DTensor) else value for key, value in state.items()}
        for index, state in moments["state"].items()
    }
    if ranks.rank:
        return
    state = {"parameters": kept, "optimizer": moments, "scheduler": scheduler.state_dict(), "counters": dict(counters)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    torch.save(state, scratch)
    os.replace(scratch, path)


def _kept(value: Tensor, ranks: Ranks) -> Tensor:
    # One tensor at a time is whole on the GPU, and all of them only in the memory of the process that writes.
    full = whole(value)
    return torch.empty(0) if ranks.rank else full.cpu()


def restore_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, scheduler: LRScheduler
) -> dict[str, Any]:
    """Put the state at `path` back in place and return its counters.

    Without a file, or with one of an earlier layout, nothing happens and none are returned: training starts anew.
    """
    # Several processes read the file at once: mapped, its pages are in memory once.
    mapped = any(isinstance(value, DTensor) for value in parameters.values())
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped) if path.is_file() else {}
    state: dict[str, Any] = found
    if "counters" not in state:
        return {}
    with torch.no_grad():
        for name, value in state["parameters"].items():
            parameters[name].copy_(cut_like(value, parameters[name]))
    pieces = dict(enumerate(parameters.values()))
    for index, moments in state["optimizer"]["state"].items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == pieces[index].shape and value.dim():
                moments[key] = cut_like(value, pieces[index])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return dict(state["counters"])
