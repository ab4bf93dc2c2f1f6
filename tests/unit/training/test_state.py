"""The resumable state: what is put back, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rhstudy.training.state import STATE_FILE, restore_state, save_state


def trainee(value: float) -> tuple[dict[str, nn.Parameter], Any, Any]:
    parameters = {"w": nn.Parameter(torch.full((2,), value))}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    return parameters, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def test_parameters_and_counters_come_back(tmp_path: Path) -> None:
    save_state(tmp_path / STATE_FILE, *trainee(3.0), {"losses": [1.5]})
    parameters, optimizer, scheduler = trainee(0.0)
    assert restore_state(tmp_path / STATE_FILE, parameters, optimizer, scheduler) == {"losses": [1.5]}
    assert parameters["w"].tolist() == [3.0, 3.0]


def test_without_a_state_or_with_one_of_an_earlier_layout_training_starts_anew(tmp_path: Path) -> None:
    parameters, optimizer, scheduler = trainee(0.0)
    assert restore_state(tmp_path / STATE_FILE, parameters, optimizer, scheduler) == {}
    earlier = {"parameters": {"w": torch.ones(2)}, "losses": [2.0], "optimizer": {}, "scheduler": {}}
    torch.save(earlier, tmp_path / STATE_FILE)
    assert restore_state(tmp_path / STATE_FILE, parameters, optimizer, scheduler) == {}
    assert parameters["w"].tolist() == [0.0, 0.0]
