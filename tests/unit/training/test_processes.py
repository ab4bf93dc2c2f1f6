"""Several training processes do what one does, go on where another number of them stopped, and end as they should."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.examples_file import read_examples
from rhstudy.data.parquet_file import read_rows
from rhstudy.errors import InputError, StudyError
from rhstudy.models.load import load_model
from rhstudy.training.config import TrainingConfig, require_processes
from rhstudy.training.loop import TrainingResult, finetune
from rhstudy.training.processes import Job, finetune_in_processes, require_one_start
from rhstudy.training.state import STATE_FILE

NUM_EXAMPLES = 10
# Batches of 3, 3, 3 and 1: the last one leaves a process without an example.
SETTINGS = TrainingConfig(batch_size=3, num_epochs=2, learning_rate=3e-3, save_every_steps=1)
LONG = {"num_epochs": 500}
OnStep = Callable[[int], None]


class StopError(Exception):
    pass


def children() -> list[psutil.Process]:
    """The launcher and the training processes of this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("rhstudy.training" in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_rank(rank: int) -> None:
    for process in children():
        if process.environ().get("RANK") == str(rank):
            process.send_signal(signal.SIGKILL)


@pytest.fixture(autouse=True)
def nothing_survives() -> Iterator[None]:
    yield
    assert children() == []


class Trainer:
    """Trains the tiny world's model in any number of processes."""

    def __init__(self, model: Path, rows: Path, cache: Path) -> None:
        self.model = ModelConfig(name=str(model), device="cpu", dtype="float32", cache_dir=str(cache))
        self.rows = rows

    def __call__(
        self, work: Path, number: int, *, then: OnStep = lambda _step: None, dtype: Any = "float32", **changes: Any
    ) -> tuple[TrainingResult, dict[int, Mapping[str, float]]]:
        config = dataclasses.replace(SETTINGS, num_processes=number, **changes)
        points: dict[int, Mapping[str, float]] = {}

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            points[step] = metrics
            then(step)

        model = dataclasses.replace(self.model, dtype=dtype)
        if number == 1:
            loaded = load_model(model, ContextConfig())
            examples = read_examples(self.rows, loaded.tokenizer)
            return finetune(loaded, examples, config, seed=1, work_dir=work, on_step=on_step), points
        job = Job(
            model=model, context=ContextConfig(), training=config, seed=1,
            examples_file=str(self.rows), work_dir=str(work),
        )  # fmt: skip
        return finetune_in_processes(job, NUM_EXAMPLES, on_step=on_step), points


@pytest.fixture
def train(world: Path, train_data: Path, tmp_path: Path) -> Trainer:
    return Trainer(world / "model", train_data / "train.parquet", tmp_path / "cache")


def assert_close(found: TrainingResult, expected: TrainingResult, atol: float = 1e-5) -> None:
    assert set(found.weights) == set(expected.weights)
    for name, value in expected.weights.items():
        assert found.weights[name].dtype == value.dtype
        torch.testing.assert_close(
            found.weights[name], value, atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert found.losses == pytest.approx(expected.losses, abs=atol)
    assert found.train_loss == pytest.approx(expected.train_loss, abs=atol)
    assert found.weight_change_norm == pytest.approx(expected.weight_change_norm, rel=max(1e-4, atol))
    assert found.num_tokens == expected.num_tokens


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (2, {}),
        (2, {"micro_batch_size": 2, "batch_size": 8}),
        (3, {"gradient_checkpointing": "on", "max_grad_norm": 0.5}),
        (2, {"method": "lora", "lora_rank": 4, "learning_rate": 3e-2}),
        (2, {"method": "lora", "lora_targets": "all", "gradient_checkpointing": "on"}),
    ],
)
def test_the_result_is_that_of_one_process(
    train: Trainer, tmp_path: Path, number: int, changes: dict[str, Any]
) -> None:
    alone, steps_alone = train(tmp_path / "one", 1, **changes)
    shared, steps = train(tmp_path / "many", number, **changes)
    assert_close(shared, alone)
    assert list(steps) == list(steps_alone)
    for step, metrics in steps_alone.items():
        assert steps[step].keys() == metrics.keys()
        for name in ("loss", "learning_rate", "grad_norm"):
            assert steps[step][name] == pytest.approx(metrics[name], rel=1e-4)
    assert shared.process_peaks["peak_rss_bytes_per_process"] > 1e6


def test_bfloat16_agrees_within_its_rounding(train: Trainer, tmp_path: Path) -> None:
    alone, _ = train(tmp_path / "one", 1, dtype="bfloat16")
    shared, _ = train(tmp_path / "many", 2, dtype="bfloat16")
    assert_close(shared, alone, atol=2e-2)


def test_what_one_process_began_two_go_on_with_and_one_ends(train: Trainer, tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", 1, num_epochs=40)
    work = tmp_path / "broken"

    def stop_at(last: int) -> OnStep:
        def stop(step: int) -> None:
            if step >= last:
                raise StopError

        return stop

    def num_steps_done() -> int:
        return len(torch.load(work / STATE_FILE, weights_only=True)["counters"]["losses"])

    with pytest.raises(StopError):
        train(work, 1, then=stop_at(3), num_epochs=40)
    assert num_steps_done() == 3
    with pytest.raises(StopError):
        train(work, 2, then=stop_at(6), num_epochs=40)
    assert 6 <= num_steps_done() < len(whole.losses)
    resumed, points = train(work, 1, num_epochs=40)
    assert min(points) >= 6
    assert_close(resumed, whole)


def test_a_killed_process_is_named_and_the_others_end(train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"training process 1 must end by itself, got <SIGKILL>\..*memory ran out"):
        train(tmp_path, 2, then=lambda _step: kill_rank(1), **LONG)


def test_a_killed_launcher_leaves_no_process(train: Trainer, tmp_path: Path) -> None:
    orphans: list[psutil.Process] = []

    def kill(_step: int) -> None:
        launchers = [process for process in children() if "rhstudy.training.agent" in process.cmdline()]
        orphans.extend(process for process in children() if process not in launchers)
        for process in launchers:
            process.kill()

    with pytest.raises(StudyError, match=r"training processes must end with exit code 0, got -9"):
        train(tmp_path, 2, then=kill, **LONG)
    assert len(orphans) >= 2
    assert psutil.wait_procs(orphans, timeout=300)[1] == []


def test_a_loss_that_is_not_finite_is_told_as_by_one_process(train: Trainer, world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(world / "model", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    train.model = dataclasses.replace(train.model, name=str(broken))
    with pytest.raises(StudyError, match=r"^training loss must be finite, got nan \(step 0\)") as caught:
        train(tmp_path / "work", 2)
    assert type(caught.value) is StudyError


def test_bad_input_found_by_a_process_is_bad_input(train: Trainer, tmp_path: Path) -> None:
    _, row = next(read_rows(train.rows))
    train.rows = tmp_path / "train.jsonl"
    train.rows.write_text(json.dumps({**row, "prompt_ids_sha256": "0" * 64}) + "\n")
    with pytest.raises(InputError, match=r"prompt_ids_sha256 must be 000000000000"):
        train(tmp_path / "work", 2)


def test_an_unexpected_error_comes_with_its_traceback(train: Trainer, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"no state")
    with pytest.raises(
        StudyError, match=r"training process \d must succeed, got <\w+Error: .*processes\.log"
    ) as caught:
        train(tmp_path, 2)
    assert "restore_state" in caught.value.__notes__[0]
    assert len(str(caught.value).splitlines()) < 6


def model_with(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "tiny", **changes})


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (model_with(), r"training\.num_processes must be at most the number of GPUs, 2, got 3\."),
        (model_with(device="cuda:1"), r"model\.device must name no single GPU with training\.num_processes 3"),
        (
            model_with(quantization="4bit"),
            r"model\.quantization must be none with training\.num_processes 3",
        ),
    ],
)
def test_settings_that_do_not_fit_the_machine(model: ModelConfig, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=text):
        require_processes(model, TrainingConfig(num_processes=3))
    require_processes(model, TrainingConfig(num_processes=1))
    require_processes(model_with(), TrainingConfig(num_processes=2))
    require_processes(model_with(device="cpu"), TrainingConfig(num_processes=3))


def test_no_process_at_all() -> None:
    with pytest.raises(InputError, match=r"training\.num_processes must be at least 1, got 0"):
        TrainingConfig(num_processes=0)


def test_started_by_torchrun_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_one_start()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_one_start()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"without torchrun, got <4 times>\. Start it once and set training\.num_proc"):
        require_one_start()
