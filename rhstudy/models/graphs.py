"""Passes recorded as CUDA graphs: the same kernels in the same order, replayed without Python between them."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_WARM_UPS = 2
"""Passes before the recording: libraries choose kernels and make their workspaces then."""


def on_one_gpu(model: PreTrainedModel) -> bool:
    """Whether all of `model` lies on one CUDA device and stays there."""
    places = {weight.device for weight in model.parameters()}
    return len(places) == 1 and next(iter(places)).type == "cuda"


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """Records `run` once for each set of input shapes and replays it.

    A pass that cannot be recorded (it waits for the device, or chooses its kernels by what it computed) is run directly
    from then on, with the same results.

    Args:
        run: from tensors on `device` to tensors; must keep no state on the Python side.
        device: a CUDA device.
        most: recordings kept; the least recently used is dropped.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], device: torch.device, most: int = 4) -> None:
        self._run, self._device, self._most = run, device, most
        self._recorded: OrderedDict[tuple[object, ...], _Recorded] = OrderedDict()
        self._refused = False

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The outputs for these inputs (tensors on the CPU or the device).

        They are overwritten by the next call: read them, in the order of the stream, before it.
        """
        placed = [part if part.is_cuda else part.pin_memory() for part in given]
        if self._refused:
            return self._run(*(part.to(self._device, non_blocking=True) for part in placed))
        key = tuple((part.shape, part.dtype) for part in given)
        if key in self._recorded:
            self._recorded.move_to_end(key)
        else:
            inputs = tuple(part.to(self._device, non_blocking=True) for part in placed)
            found = self._record(inputs)
            if found is None:
                return self._run(*inputs)
            self._recorded[key] = found
            while len(self._recorded) > self._most:
                self._recorded.popitem(last=False)
        recorded = self._recorded[key]
        for place, part in zip(recorded.inputs, placed, strict=True):
            place.copy_(part, non_blocking=True)
        recorded.graph.replay()
        return recorded.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded | None:
        outputs: list[tuple[Tensor, ...]] = []
        # Recordings never run at once, so they share their memory.
        pool = next(iter(self._recorded.values())).graph.pool() if self._recorded else None
        graph = _recording(lambda: outputs.append(self._run(*inputs)), self._device, pool)
        self._refused = graph is None
        return None if graph is None else _Recorded(graph, inputs, outputs[-1])


def record(run: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """Record `run`, which reads and writes tensors that stay where they are; None where it cannot be recorded.

    It is also run directly before, which changes what it writes.
    """
    graph = _recording(run, device, None)
    return None if graph is None else graph.replay


def _recording(run: Callable[[], None], device: torch.device, pool: Any) -> torch.cuda.CUDAGraph | None:
    """What `torch.cuda.graph` does, without collecting garbage first, which would take longer than the recording."""
    stream, graph = _side_stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
        stream.synchronize()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            try:
                run()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            logger.info("this pass cannot be recorded and runs directly: %s", str(error).partition("\n")[0])
            return None
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings, which so share the memory of their warm-ups."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
