"""Two GPUs train what one trains: in float32 nearly to the bit, in bfloat16 within its rounding.

On one GPU the sharded code runs too, in one process.

python -m pytest tests/gpu/test_gpu_processes.py -m gpu
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.examples_file import examples_suffix, read_examples
from rhstudy.errors import InputError
from rhstudy.models.load import load_model
from rhstudy.training.config import TrainingConfig, require_processes
from rhstudy.training.loop import TrainingResult, finetune
from rhstudy.training.processes import Job, finetune_in_processes
from rhstudy.training.state import STATE_FILE

pytestmark = pytest.mark.gpu
needs_one = pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no CUDA device on this machine")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 CUDA devices on this machine")


class StopError(Exception):
    pass


def train(
    model: ModelConfig,
    rows: Path,
    work: Path,
    number: int,
    num_epochs: int = 3,
    stop_at: int = -1,
    sharded: bool = False,
) -> TrainingResult:
    config = TrainingConfig(
        batch_size=3, num_epochs=num_epochs, learning_rate=3e-3, save_every_steps=1, num_processes=number
    )

    def on_step(step: int, _metrics: object) -> None:
        if step == stop_at:
            raise StopError

    if number == 1 and not sharded:
        loaded = load_model(model, ContextConfig())
        examples = read_examples(rows, loaded.tokenizer)
        return finetune(loaded, examples, config, seed=1, work_dir=work, on_step=on_step)
    job = Job(
        model=model, context=ContextConfig(), training=config, seed=1, examples_file=str(rows), work_dir=str(work)
    )
    return finetune_in_processes(job, 10, on_step=on_step)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("number", [pytest.param(1, marks=needs_one), pytest.param(2, marks=needs_two)])
def test_sharded_gpus_give_what_one_gives(
    world: Path, train_data: Path, tmp_path: Path, dtype: Literal["float32", "bfloat16"], tolerance: float, number: int
) -> None:
    model = ModelConfig(name=str(world / "model"), dtype=dtype, cache_dir=str(tmp_path / "cache"))
    rows = train_data / f"train{examples_suffix()}"  # machines with GPUs may have no pyarrow
    one = train(model, rows, tmp_path / "plain", 1)
    two = train(model, rows, tmp_path / "sharded", number, sharded=True)
    assert two.losses == pytest.approx(one.losses, abs=tolerance)
    assert two.weight_change_norm == pytest.approx(one.weight_change_norm, rel=max(1e-3, tolerance))
    assert two.num_tokens == one.num_tokens
    assert two.process_peaks["peak_gpu_bytes_per_process"] > 0
    for name, value in one.weights.items():
        assert two.weights[name].dtype == value.dtype
        torch.testing.assert_close(two.weights[name], value, atol=tolerance, rtol=0)


@needs_two
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_gpus_goes_on_where_the_first_stopped(
    world: Path, train_data: Path, tmp_path: Path, first: int, second: int
) -> None:
    model = ModelConfig(name=str(world / "model"), dtype="float32", cache_dir=str(tmp_path / "cache"))
    rows = train_data / f"train{examples_suffix()}"  # machines with GPUs may have no pyarrow
    whole = train(model, rows, tmp_path / "whole", 1, 30)
    with pytest.raises(StopError):
        train(model, rows, tmp_path / "broken", first, 30, stop_at=5)
    state = torch.load(tmp_path / "broken" / STATE_FILE, weights_only=True, map_location="cpu")
    assert 5 <= len(state["counters"]["losses"]) <= len(whole.losses)
    resumed = train(model, rows, tmp_path / "broken", second, 30)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-3)
    for name, value in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], value, atol=1e-3, rtol=0)


@needs_one
def test_more_processes_than_gpus_are_refused() -> None:
    number = torch.cuda.device_count() + 1
    with pytest.raises(InputError, match=rf"training\.num_processes must be at most the number of GPUs, {number - 1}"):
        require_processes(ModelConfig(name="tiny"), TrainingConfig(num_processes=number))
