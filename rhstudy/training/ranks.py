"""The processes that train one model together: who does which examples of a step, and tensors in pieces or whole.

A step's loss and gradient are sums over its examples b, so each process r takes every R-th example and the sums of all
R processes are added:

    sum_b g_b = sum_r sum_{b in r} g_b

Sharded parameters' gradients are summed by FSDP, those of whole ones (adapters) here. A process without examples
goes on with the step's shortest one at weight 0, because every process must take part in every exchange.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rhstudy.training.batching import num_sequence_tokens
from rhstudy.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """One of the processes.

    Attributes:
        rank: which one, from 0; only rank 0 writes files.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def shares(self, groups: Sequence[Sequence[Example]]) -> list[tuple[Sequence[Example], float]]:
        """This process' micro-batches of a step, and their weights; equally many in every process.

        Args:
            groups: the examples of the whole step, in the groups that the processes go through together.
        """
        idle = [min((example for group in groups for example in group), key=num_sequence_tokens)]
        parts = [group[self.rank :: self.size] for group in groups]
        return [(part, 1.0) if part else (idle, 0.0) for part in parts]

    def total(self, value: Tensor) -> Tensor:
        """Sum of `value` over the processes."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum, over the processes, the gradients of parameters that each process holds whole (adapters)."""
        whole_ones = [value.grad for value in parameters if not isinstance(value, DTensor) and value.grad is not None]
        if self.size == 1 or not whole_ones:
            return
        flat = torch.cat([gradient.flatten() for gradient in whole_ones])
        dist.all_reduce(flat)
        for gradient, total in zip(whole_ones, torch.split(flat, [value.numel() for value in whole_ones]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def joint_norm(self, norm: float, device: torch.device) -> float:
        """L2 norm of a vector of which this process holds a piece of norm `norm`."""
        if self.size == 1:
            return norm
        return math.sqrt(float(self.total(torch.tensor(norm**2, dtype=torch.float64, device=device))))


ALONE = Ranks()


def whole(value: Tensor) -> Tensor:
    """All of a tensor whose pieces the processes hold (they must all call this); any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """The piece of a tensor that this process holds; any other tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def cut_like(value: Tensor, model: Tensor) -> Tensor:
    """`value`, whole in every process, in the pieces in which `model` is held; as it is when `model` is whole."""
    if not isinstance(model, DTensor):
        return value
    moved = value.to(model.device)
    return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)
