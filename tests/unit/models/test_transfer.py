"""Tensors come to the CPU from any kind of device."""

from __future__ import annotations

import torch

from rhstudy.models.transfer import fetched_later, moved


class OnSomeDevice:
    """A tensor of an accelerator that is no CUDA device, as far as `fetched_later` looks."""

    is_cuda = False

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def cpu(self) -> torch.Tensor:
        return self.tensor


@no_type_check
def test_other_accelerators_give_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(3)
    assert [part.tolist() for part in fetched_later(OnSomeDevice(values), values)()] == [[0, 1, 2], [0, 1, 2]]


def test_what_is_on_the_cpu_stays() -> None:
    values = torch.arange(3)
    assert moved(values, "cpu") is values
    assert fetched_later(values)()[0] is values
