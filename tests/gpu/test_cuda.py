"""What must hold on a GPU: the same scores as on a CPU in float32, the planted head in bfloat16, training that learns.

python -m pytest tests/gpu -m gpu
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import planted_example, planted_model
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.heads.detect import detect
from rhstudy.models.load import LoadedModel, load_model
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import finetune
from rhstudy.types import Example, HeadScores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def on(loaded: LoadedModel, device: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return dataclasses.replace(loaded, model=loaded.model.to(device=device, dtype=dtype))


def scores_of(loaded: LoadedModel, examples: list[Example], batch_size: int = 2) -> HeadScores:
    return detect(loaded.model, loaded.tokenizer, examples, batch_size=batch_size)


@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_the_planted_copying_head_is_found_in_bfloat16(mode: str) -> None:
    loaded = on(planted_model(), "cuda", torch.bfloat16)
    examples = [planted_example(index) for index in range(4)]
    mean = detect(loaded.model, loaded.tokenizer, examples, mode=mode, batch_size=2).mean()
    assert mean[0, 0] == 1
    assert mean[0, 1] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_scores_are_the_cpu_s(family: str) -> None:
    rng = np.random.default_rng(0)
    examples = [random_example(rng, index, length=60 + 7 * index) for index in range(6)]
    cpu = scores_of(tiny_model(family), examples)
    gpu = scores_of(on(tiny_model(family), "cuda"), examples)
    # A tie within float rounding may fall the other way, so a head may differ in one token of one example.
    assert np.abs(cpu.mean() - gpu.mean()).max() <= 0.25 / len(examples)
    np.testing.assert_allclose(cpu.real_nll, gpu.real_nll, atol=1e-4)


def test_scores_do_not_depend_on_the_batch_size() -> None:
    rng = np.random.default_rng(1)
    examples = [random_example(rng, index, length=60 + 7 * index) for index in range(6)]
    loaded = on(tiny_model("llama"), "cuda")
    one, many = scores_of(loaded, examples, 1), scores_of(loaded, examples, 6)
    assert np.abs(one.mean() - many.mean()).max() <= 0.25 / len(examples)
    np.testing.assert_allclose(one.real_nll, many.real_nll, atol=1e-4)


def test_auto_is_the_gpu_in_bfloat16(world: Path) -> None:
    model = load_model(ModelConfig(name=str(world / "model")), ContextConfig()).model
    assert model.device.type == "cuda"
    assert model.dtype == torch.bfloat16


def test_training_on_the_gpu_reduces_the_loss_and_keeps_the_rest_frozen(tmp_path: Path) -> None:
    loaded = on(tiny_model("llama"), "cuda", torch.bfloat16)
    rng = np.random.default_rng(2)
    examples = [random_example(rng, index) for index in range(8)]
    config = TrainingConfig(num_epochs=20, batch_size=8, micro_batch_size=4, learning_rate=1e-2)
    result = finetune(loaded, examples, config, seed=0, work_dir=tmp_path)
    assert result.losses[-1] < 0.95 * result.losses[0]
    assert result.weight_change_norm > 0
    assert all(value.device.type == "cpu" for value in result.weights.values())


def test_the_loss_on_the_gpu_is_the_cpu_s_in_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    examples = [random_example(rng, index) for index in range(4)]
    config = TrainingConfig(num_epochs=3, batch_size=4, learning_rate=1e-3)
    losses = [
        finetune(on(tiny_model("qwen2"), device), examples, config, seed=0, work_dir=tmp_path / device).losses
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
