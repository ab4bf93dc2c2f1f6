"""FLOPs of a training step against a count by hand, and MFU that is undefined with its reason where it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_models import random_example, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rhstudy.seeding import generator
from rhstudy.training import flops
from rhstudy.training.config import TrainingConfig
from rhstudy.training.context import make_trainable
from rhstudy.training.flops import peak_flops, step_flops
from rhstudy.training.loop import finetune
from rhstudy.training.loss import answer_batch, answer_loss
from rhstudy.training.meter import StepMeter

# The tiny llama: 3 layers, width 32, feed-forward 64, 4 heads and 2 kv heads of size 8, 50 tokens.
ATTENTION = 3 * (32 * 32 + 2 * 32 * 16 + 32 * 32)
FEED_FORWARD = 3 * 3 * 32 * 64
ADAPTERS = 3 * 4 * (4 * 32 + 4 * 32) - 3 * 2 * 4 * 16  # rank 4 beside q, k, v, o; k and v put out 16


def trainable(**settings: object) -> tuple[object, set[str]]:
    model = tiny_model("llama").model
    return model, set(make_trainable(model, TrainingConfig(**settings), 0))


@pytest.mark.parametrize(
    ("settings", "weights", "trained"),
    [
        ({}, ATTENTION + FEED_FORWARD, ATTENTION),
        ({"method": "lora", "lora_rank": 4}, ATTENTION + FEED_FORWARD + ADAPTERS, ADAPTERS),
    ],
    ids=["attention", "lora"],
)
def test_flops_are_those_of_the_equation(settings: dict, weights: int, trained: int) -> None:
    found = step_flops(*trainable(**settings))
    per_token, pairs, head = 4 * weights + 2 * trained, 12 * 3 * 4 * 8, 4 * 50 * 32
    assert (found.per_token, found.per_pair, found.per_target) == (per_token, pairs, head)
    expected = per_token * 150 + pairs * (100 * 101 + 50 * 51) / 2 + head * 7
    assert found.of([(100, 3), (50, 4)]) == expected


def test_flops_are_those_that_torch_counts() -> None:
    model, trained = trainable()
    example = random_example(generator(0, "flops"), 0, length=90, answer=4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        answer_loss(model, answer_batch([example], 2, "cpu")).backward()
    found = step_flops(model, trained)
    # Torch's plain attention also multiplies what the causal mask throws away, and nothing asks the first layer's
    # queries, keys and values for the gradient of their inputs: the embeddings are frozen.
    thrown_away = found.per_pair * 95 * 94 / 2
    first_inputs = 2 * (32 * 32 + 2 * 32 * 16) * 95
    assert counter.get_total_flops() == found.of([(95, 5)]) + thrown_away - first_inputs


def test_a_quantised_layer_counts_by_its_features() -> None:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(128, 64)
    assert flops._size(layer) == 128 * 64


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mixtral", "experts are not counted"), ("mistral", "layers with a window are not counted"), ("gemma3", "window")],
)
def test_what_is_not_counted_says_so(family: str, reason: str) -> None:
    found = step_flops(tiny_model(family).model, set())
    assert reason in found.reason
    assert math.isnan(found.of([(10, 1)]))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", math.nan),
        ("Some GPU", math.nan),
    ],
)
def test_peaks_by_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    found, reason = peak_flops(torch.device("cuda"), torch.bfloat16)
    assert found == peak or (math.isnan(peak) and math.isnan(found) and reason == f"no peak is known for {name}")
    assert "float32" in peak_flops(torch.device("cuda"), torch.float32)[1]


def test_a_run_says_why_its_mfu_is_undefined(tmp_path: Path) -> None:
    rows = [random_example(generator(3, "mfu", i), i) for i in range(4)]
    points: list[dict[str, float]] = []
    result = finetune(
        tiny_model("llama"), rows, TrainingConfig(), seed=0, work_dir=tmp_path, on_step=lambda _s, m: points.append(m)
    )
    assert math.isnan(result.mfu)
    assert result.mfu_reason == "no peak is known for a cpu"
    assert result.peak_gpu_bytes is None
    assert "mfu" not in points[0]
    assert points[-1]["tokens_per_s"] == pytest.approx(result.num_tokens / result.seconds)


def test_mfu_is_flops_over_time_and_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhstudy.training.loop.peak_flops", lambda _device, _dtype: (1e9, ""))
    rows = [random_example(generator(3, "mfu", i), i, length=60, answer=4) for i in range(4)]
    result = finetune(tiny_model("llama"), rows, TrainingConfig(), seed=0, work_dir=tmp_path)
    expected = step_flops(*trainable()).of([(65, 5)] * 4)
    assert result.mfu == pytest.approx(expected / (result.seconds * 1e9))
    assert result.mfu_reason == ""


def test_numbers_come_in_order_and_time_adds_up() -> None:
    meter = StepMeter(torch.device("cpu"))
    for step in range(3):
        values = torch.tensor([float(step), 1.0])
        meter.push(values, num_tokens=step, num_flops=0.0, learning_rate=0.1)
    found = list(meter.finished())
    assert [numbers.values for numbers in found] == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]
    assert [numbers.num_tokens for numbers in found] == [0, 1, 2]
    assert all(numbers.seconds >= 0 for numbers in found)
    assert list(meter.finished(wait=True)) == []
