"""`rhstudy finetune` with several processes: signalled, killed, started again, and never a process left behind."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import LIMIT_S, Here, data_values, folder_store, in_own_process, interrupted, write_config

from rhstudy.tracking.recorder import RunRecord


def left_behind(folder: Path) -> list[psutil.Process]:
    """Training processes whose job lies below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(argument.startswith(str(folder)) for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def prepared(folder: Path, world: Path, here: Here) -> tuple[str, ...]:
    """Makes the data; returns the finetune command."""
    common = {"model": {"name": str(world / "model"), "device": "cpu"}, "tracking": {"recorder": "folder"}}
    data = data_values(world, recipe="real", parts=["train"])
    write_config(folder / "data.toml", {"data": data, **common})
    made = here("make-data", "data.toml")
    assert made.code == 0, made.err
    training = {"batch_size": 3, "num_epochs": 40, "save_every_steps": 1, "num_processes": 2}
    tracking = {"recorder": "folder", "work_dir": str(folder / "work")}
    write_config(folder / "tune.toml", {**common, "training": training, "tracking": tracking})
    return ("finetune", "tune.toml", "--data", made.facts["artifact_dir"])


def runs(folder: Path) -> list[RunRecord]:
    found = [run for run in folder_store(folder).find_runs() if run.tags["rhstudy.stage"] == "finetune"]
    return sorted(found, key=lambda run: run.status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process_and_one_process_can_go_on(
    world: Path, here: Here, tmp_path: Path, number: signal.Signals
) -> None:
    command = prepared(tmp_path, world, here)
    outcome = interrupted(tmp_path, number, lambda: bool(list(tmp_path.glob("work/*/training-state.pt"))), *command)
    assert outcome.code == 1
    assert left_behind(tmp_path) == []
    assert [run.status for run in runs(tmp_path)] == ["KILLED"]
    assert "Traceback" not in outcome.err

    alone = here(*command, "--training.num-processes", "1")
    assert alone.code == 0, alone.err
    store = folder_store(tmp_path)
    curve = [point for point in store.metric_history(alone.facts["run_id"]) if point.key == "loss"]
    assert [point.step for point in sorted(curve, key=lambda point: point.step)] == list(
        range(alone.facts["num_steps"])
    )
    again = here(*command)
    assert again.facts["reused"] is True, "the number of processes is no part of the digest"


def test_killed_outright_no_process_is_left(world: Path, here: Here, tmp_path: Path) -> None:
    command = prepared(tmp_path, world, here)
    interrupted(tmp_path, signal.SIGKILL, lambda: bool(list(tmp_path.glob("work/*/training-state.pt"))), *command)
    limit = time.monotonic() + LIMIT_S
    while left_behind(tmp_path) and time.monotonic() < limit:
        time.sleep(0.1)
    assert left_behind(tmp_path) == []


def test_two_processes_record_what_one_records(world: Path, here: Here, tmp_path: Path) -> None:
    command = (*prepared(tmp_path, world, here), "--training.num-epochs", "2")
    two = in_own_process(tmp_path, *command)
    assert two.code == 0, two.err
    one = here(*command, "--training.num-processes", "1", "--tracking.folder", "other")
    assert one.code == 0, one.err
    assert set(two.facts) == set(one.facts)
    for name in ("num_examples", "num_steps", "num_tokens"):
        assert two.facts[name] == one.facts[name]
    for name in ("train_loss", "weight_change_norm"):
        assert two.facts[name] == pytest.approx(one.facts[name], rel=1e-4)
    (run,) = runs(tmp_path)
    assert run.metrics["peak_rss_bytes_per_process"] > 1e6
    assert sorted(path.name for path in Path(two.facts["artifact_dir"]).glob("*.*")) == sorted(
        path.name for path in Path(one.facts["artifact_dir"]).glob("*.*")
    )
    assert list(tmp_path.glob("work/*/processes")) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--training.num-processes", "0"), "training.num_processes must be at least 1, got 0"),
        (("--model.device", "auto"), "training.num_processes must be at most the number of GPUs, 1, got 2"),
        (("--model.quantization", "4bit"), "model.quantization must be none with training.num_processes 2, got '4bit'"),
    ],
)
def test_bad_numbers_exit_with_2_before_any_process_starts(
    world: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], text: str
) -> None:
    command = prepared(tmp_path, world, here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "a GPU")
    outcome = here(*command, *flags)
    assert outcome.code == 2
    assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.glob("work/*/processes")) == []
