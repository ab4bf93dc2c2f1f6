"""`mlflow run` on the host: one run per launch, named and ended by our stage, never left RUNNING."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT, data_values, environment, mlflow_store, write_config

from rhstudy.cli import STAGES, without_empty
from rhstudy.tracking.recorder import Recorder

HOST = json.dumps({"runtime": "host"})


@pytest.fixture(scope="module")
def project(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has of the project, and a config."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "mlproject", folder)
    model = {"name": str(world / "model")}
    # A path with a blank: parameters reach the command whole.
    write_config(folder / "my data.toml", {"data": data_values(world, num_examples=2), "model": model})
    return folder


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "--backend", "rhstudy", "--backend-config", HOST, *arguments],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(project: Path) -> Recorder:
    """The store after one good launch, one refused before any work, and one refused at work."""
    good = launch(project, "-e", "make-data", "-P", "config=my data.toml", "-P", "data.seed=3")
    assert good.returncode == 0, good.stderr[-3000:]
    absent = launch(project, "-e", "make-data", "-P", "config=my data.toml", "-P", "data.train_file=no.jsonl")
    assert absent.returncode == 2
    assert "data.train_file must be an existing file, got 'no.jsonl'" in absent.stderr
    short = launch(project, "-e", "make-data", "-P", "config=my data.toml", "-P", "data.num_tokens=80")
    assert short.returncode == 2
    assert "data.num_tokens must be longer than the needle" in short.stderr
    return mlflow_store(project)


def test_a_launch_is_one_run_that_our_stage_took_over(store: Recorder, world: Path) -> None:
    (run,) = store.find_runs(status="FINISHED")
    assert run.name == "make-data real train"
    assert run.tags["rhstudy.exit_code"] == "0"
    assert run.tags["mlflow.source.type"] == "PROJECT"
    assert run.tags["mlflow.project.backend"] == "rhstudy"
    assert run.tags["rhstudy.runtime"] == "host"
    assert int(run.tags["rhstudy.container.peak_memory_bytes"]) > 50e6
    assert run.tags["mlflow.project.entryPoint"] == "make-data"
    assert run.params["data.seed"] == "3"
    assert run.params["data.num_tokens"] == "256"
    assert run.metrics["num_examples_train"] == 2
    assert (store.artifact_path(run.run_id) / "train.parquet").is_file()


def test_bad_input_leaves_its_run_failed(store: Recorder) -> None:
    assert len(store.find_runs()) == 3
    refused = store.find_runs(status="FAILED")
    assert [run.name for run in refused] == ["make-data real train", "make-data"]
    assert [run.tags["rhstudy.exit_code"] for run in refused] == ["2", "2"]
    at_work, before = (run.tags["rhstudy.error"] for run in refused)
    assert "longer than the needle" in at_work
    assert "no.jsonl" in before


def test_there_is_an_entry_point_for_every_stage_and_main_is_the_study() -> None:
    project = yaml.safe_load((ROOT / "mlproject").read_text(encoding="utf-8"))
    points = project["entry_points"]
    assert set(points) == {"main", *STAGES}
    assert points["main"] == points["study"]
    assert set(project) == {"name", "docker_env", "entry_points"}


@pytest.mark.parametrize("stage", STAGES)
def test_an_entry_point_calls_its_stage_with_exactly_what_was_given(stage: str) -> None:
    from mlflow.projects._project_spec import load_project

    point = load_project(str(ROOT)).get_entry_point(stage)
    given = {name: f"a {name}" for name in point.parameters} | {"model.name": "some model"}

    def called(values: dict[str, str]) -> list[str]:
        # Docker and Kubernetes split the command into words and run it without a shell.
        program, flag, *arguments = shlex.split(point.compute_command(values, None))
        assert (program, flag) == ("rhstudy", "--skip-empty")
        return without_empty(arguments)

    flags = [item for name in point.parameters if name != "config" for item in (f"--{name}", f"a {name}")]
    assert called(given) == [stage, "a config", *flags, "--model.name", "some model"]
    required = {name: f"a {name}" for name, item in point.parameters.items() if item.default is None}
    flags = [item for name in required if name != "config" for item in (f"--{name}", f"a {name}")]
    assert called(required) == [stage, *(["a config"] if "config" in required else []), *flags]


def test_only_empty_arguments_and_their_flags_are_skipped() -> None:
    given = ["detect", "", "--data", "x", "--checkpoint", "", "--scoring.threshold", "0.2", ""]
    assert without_empty(given) == ["detect", "--data", "x", "--scoring.threshold", "0.2"]
