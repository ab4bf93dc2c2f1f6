"""The sweep of learning curves: every variant is one that can be trained, and its files hold what its figure shows."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.config import DataConfig
from rhstudy.training.config import TrainingConfig, require_trainable

SCRIPT = Path(__file__).parents[3] / "sweeps" / "finetuning" / "curves.py"


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning_curves", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_variant_of_every_setting_can_be_trained(curves: ModuleType) -> None:
    for setting in curves.SETTINGS.values():
        assert DataConfig(**setting.data, seed=1).num_tokens >= 256
        contexts, methods = set(), set()
        for variant in curves.variants(setting).values():
            training = TrainingConfig(batch_size=setting.batch_size, **variant.training)
            require_trainable(ModelConfig(device="cpu", quantization=variant.quantization), training)
            contexts.add(ContextConfig(**variant.context).scaling)
            methods.add((training.method, training.lora_targets, training.optimizer, variant.quantization))
        assert contexts == {"theta", "linear", "ntk", "yarn"}
        assert len(methods) == 5


def test_files_hold_every_loss_and_the_figure_is_drawn_again_from_them(curves: ModuleType, tmp_path: Path) -> None:
    losses = {"a": {0: [3.0, 2.0, 1.0], 1: [4.0, 3.0, 2.0]}, "b": {0: [5.0, 5.0, 5.0]}}
    curves.write(tmp_path / "new" / "name", losses, [{"variant": "a"}])
    with (tmp_path / "new" / "name.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [row["loss"] for row in rows if (row["variant"], row["seed"]) == ("a", "1")] == [
        "4.000000",
        "3.000000",
        "2.000000",
    ]
    first = (tmp_path / "new" / "name.png").read_bytes()
    (tmp_path / "new" / "name.png").unlink()
    curves.draw(tmp_path / "new" / "name")
    assert (tmp_path / "new" / "name.png").read_bytes() == first


def test_the_running_mean_looks_back_only(curves: ModuleType) -> None:
    assert curves.smooth([3.0, 1.0, 2.0, 6.0]) == [3.0, 2.0, 2.0, 3.0]
