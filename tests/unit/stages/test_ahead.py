"""Data sets built by another process ahead of their turn: the same run, files and digests; nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhstudy.configs import ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.errors import InputError
from rhstudy.stages import make_data
from rhstudy.stages.ahead import building_ahead
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.stage_run import stage_digest


def asked(world: Path, folder: Path, **changes: object) -> MakeDataConfig:
    files = {f"{name}_file": str(world / "data" / f"{name}.jsonl") for name in ("train", "eval", "passages")}
    values = {"num_tokens": 256, "num_examples": 4, "parts": ("train",), "recipe": "real", **files, **changes}
    model = ModelConfig(name=str(world / "model"), device="cpu", cache_dir=str(folder / "cache"))
    tracking = TrackingConfig(recorder="folder", folder=str(folder / "runs"), work_dir=str(folder / "work"))
    return MakeDataConfig(data=DataConfig(**values), model=model, tracking=tracking)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "work").iterdir() if path.name != "locks")


def test_what_was_built_ahead_is_the_stage_s_own_result(world: Path, tmp_path: Path) -> None:
    configs = {name: asked(world, tmp_path / name) for name in ("here", "ahead")}
    results = {}
    for name, config in configs.items():
        recorder = FolderRecorder(tmp_path / name / "runs")
        with building_ahead(recorder, name == "ahead") as ahead:
            if ahead:
                ahead.begin(config)
                ahead.settle(config)
                (prepared,) = leftovers(tmp_path / name)
                assert prepared == stage_digest(make_data.stage_spec(config))
            results[name] = make_data.run(config, recorder, run_name="one")
            if ahead:
                ahead.begin(config)  # finished: nothing to do
        run = recorder.get_run(results[name].run_id)
        assert ("rhstudy.built_ahead_s" in run.tags) == (name == "ahead")
        assert leftovers(tmp_path / name) == []
    here, ahead_of_time = results["here"], results["ahead"]
    assert here.artifacts.content_digest == ahead_of_time.artifacts.content_digest
    assert here.summary == ahead_of_time.summary
    inputs = [FolderRecorder(tmp_path / name / "runs").get_run(results[name].run_id).inputs for name in configs]
    assert inputs[0] == inputs[1]
    assert len(inputs[0]) > 0


def test_an_error_is_left_to_the_stage(world: Path, tmp_path: Path) -> None:
    config, recorder = asked(world, tmp_path, parts=("eval",), num_eval=10_000), FolderRecorder(tmp_path / "runs")
    with building_ahead(recorder, True) as ahead:
        assert ahead is not None
        ahead.begin(config)
        ahead.settle(config)
        with pytest.raises(InputError, match=r"data\.num_eval must be at most"):
            make_data.run(config, recorder)


def test_closing_ends_a_build_in_its_middle_and_the_stage_does_it_itself(world: Path, tmp_path: Path) -> None:
    config, recorder = asked(world, tmp_path), FolderRecorder(tmp_path / "runs")
    with building_ahead(recorder, True) as ahead:
        assert ahead is not None
        ahead.begin(config)
        worker = ahead._worker
    assert worker is not None
    assert worker.poll() is not None
    result = make_data.run(config, recorder)
    card = json.loads(result.artifacts.file(make_data.CARD).read_text(encoding="utf-8"))
    assert card["parts"]["train"]["num_examples"] == 4


def test_a_worker_that_is_killed_costs_nothing_but_its_work(world: Path, tmp_path: Path) -> None:
    config, recorder = asked(world, tmp_path), FolderRecorder(tmp_path / "runs")
    with building_ahead(recorder, True) as ahead:
        assert ahead is not None
        ahead.begin(config)
        assert ahead._worker is not None
        ahead._worker.kill()
        began = time.monotonic()
        ahead.settle(config)
        assert time.monotonic() - began < 30
        assert make_data.run(config, recorder).summary["num_examples_train"] == 4


def test_the_worker_ends_with_its_parent(world: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from rhstudy.children import start_module\n"
        "worker = start_module('rhstudy.stages.ahead', text=True)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def test_a_stage_that_fails_after_taking_what_was_built_finds_it_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, recorder = asked(world, tmp_path), FolderRecorder(tmp_path / "runs")
    with building_ahead(recorder, True) as ahead:
        assert ahead is not None
        ahead.begin(config)
        ahead.settle(config)
    with monkeypatch.context() as once:
        once.setattr(FolderRecorder, "log_artifacts", _full_disk)
        with pytest.raises(RuntimeError, match="nowhere to write"):
            make_data.run(config, recorder)
    result = make_data.run(config, recorder)
    assert result.summary["num_examples_train"] == 4
    assert "rhstudy.built_ahead_s" in recorder.get_run(result.run_id).tags
    assert leftovers(tmp_path) == []


def _full_disk(*_given: object, **_options: object) -> None:
    raise RuntimeError("nowhere to write")


def test_what_is_wrong_with_the_next_recipe_is_no_fault_of_this_arm(world: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    config = asked(world, tmp_path, task="mdqa", recipe="high_low", rewritten_file=str(broken))
    with building_ahead(FolderRecorder(tmp_path / "runs"), True) as ahead:
        assert ahead is not None
        ahead.begin(config)
        assert ahead._worker is None
    with pytest.raises(InputError):
        make_data.run(config, FolderRecorder(tmp_path / "runs"))
