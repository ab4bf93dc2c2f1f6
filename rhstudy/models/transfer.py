"""Tensors on their way between CPU and device, without either waiting for the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on `device`, without waiting for what the device is still at."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched_later(*tensors: Tensor) -> Callable[[], list[Tensor]]:
    """Starts the way of `tensors`, all on one device, to the CPU; call what is returned to wait for them there."""
    if not tensors[0].is_cuda:
        return lambda: [tensor.cpu() for tensor in tensors]
    here = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for place, tensor in zip(here, tensors, strict=True):
        place.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(tensors[0].device))

    def fetch() -> list[Tensor]:
        arrived.synchronize()
        return here

    return fetch
