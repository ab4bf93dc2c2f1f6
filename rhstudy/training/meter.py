"""What a training step cost, read without making the GPU wait: numbers arrive some steps later, in order.

Reading a loss at once would stop Python until the GPU has done everything it was given, and the GPU then idles until it
gets more. So losses travel to the host behind the step's own work, and time is taken by events on the GPU.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PENDING = 4
"""Steps that may be under way before the oldest is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """What became known of a step.

    Attributes:
        values: the numbers handed over with it.
        num_tokens: tokens it trained on, padding excluded.
        num_flops: model FLOPs of these tokens.
        learning_rate: its rate.
        seconds: from the end of the step before to its end.
    """

    values: tuple[float, ...]
    num_tokens: int
    num_flops: float
    learning_rate: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Pending:
    values: Tensor
    num_tokens: int
    num_flops: float
    learning_rate: float
    end: torch.cuda.Event | float


class StepMeter:
    """Collects steps of one device; on a CPU each is known at once."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.pending: deque[_Pending] = deque()
        self.start()

    def start(self) -> None:
        """Time runs from here: call it before the first step and after work between steps."""
        self.last = self._now()

    def _now(self) -> torch.cuda.Event | float:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def push(self, values: Tensor, *, num_tokens: int, num_flops: float, learning_rate: float) -> None:
        """A step was handed to the device; `values` are its numbers, on the device."""
        if self.on_gpu:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
        self.pending.append(
            _Pending(
                values=values,
                num_tokens=num_tokens,
                num_flops=num_flops,
                learning_rate=learning_rate,
                end=self._now(),
            )
        )

    def finished(self, *, wait: bool = False) -> Iterator[StepNumbers]:
        """Steps whose numbers are there, in order; with `wait` all of them."""
        while self.pending:
            first = self.pending[0]
            if isinstance(first.end, torch.cuda.Event):
                if wait or len(self.pending) > MAX_PENDING:
                    first.end.synchronize()
                elif not first.end.query():  # type: ignore[no-untyped-call]
                    return
            self.pending.popleft()
            seconds = _seconds(self.last, first.end)
            self.last = first.end
            yield StepNumbers(
                values=tuple(first.values.tolist()),
                num_tokens=first.num_tokens,
                num_flops=first.num_flops,
                learning_rate=first.learning_rate,
                seconds=seconds,
            )


def _seconds(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(begin.elapsed_time(end)) / 1000
    return float(end) - float(begin)  # type: ignore[arg-type]
