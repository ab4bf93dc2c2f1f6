"""Tensors come to the CPU from any kind of device."""

from __future__ import annotations

import torch

from rhstudy.models.transfer import fetched_later, moved


class OnSomeDevice(torch.Tensor):
    """A tensor of an accelerator that is no CUDA device: it must be asked to come to the CPU."""

    def cpu(self) -> torch.Tensor:
        return torch.Tensor(self.as_subclass(torch.Tensor) + 1)


def test_other_accelerators_are_asked_for_cpu_tensors() -> None:
    far = torch.arange(3.0).as_subclass(OnSomeDevice)
    assert [part.tolist() for part in fetched_later(far, far)()] == [[1, 2, 3], [1, 2, 3]]


def test_what_is_on_the_cpu_stays() -> None:
    values = torch.arange(3)
    assert moved(values, "cpu") is values
    assert fetched_later(values)()[0] is values
