from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from stage_examples import ToyBody, toy_spec

from rhstudy.configs import TrackingConfig
from rhstudy.errors import InputError
from rhstudy.models import load
from rhstudy.tracking import mlflow_recorder
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.groups import group_run
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.opening import open_recorder, work_root
from rhstudy.tracking.stage_run import run_stage

REPO = Path(mlflow_recorder.__file__).parents[2]
Make = Callable[[], MlflowRecorder]


@pytest.fixture
def launch(make_mlflow: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a run as `mlflow run` does, and sets the environment it gives to its process."""

    def start(name: str | None = None, params: dict[str, str] | None = None) -> str:
        recorder = make_mlflow()
        client = MlflowClient(recorder.uri)
        tags = {"mlflow.source.type": "PROJECT", "mlflow.source.name": "git@example.org:x"}
        run = client.create_run("0", run_name=name, tags=tags)
        for key, value in (params or {}).items():
            client.log_param(run.info.run_id, key, value)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
        return str(run.info.run_id)

    return start


def test_the_first_top_level_run_is_the_one_mlflow_run_made(make_mlflow: Make, launch: Callable[..., str]) -> None:
    launched = launch(params={"size": "'it is quoted'", "recipe": "real"})
    recorder = make_mlflow()
    assert recorder.attachable_run_id() == launched
    run_id = recorder.create_run("mine", "detect", tags={"mlflow.source.type": "LOCAL", "a": "1"})
    assert run_id == launched
    assert make_mlflow().attachable_run_id() == ""
    recorder.log_params(run_id, {"size": "it is quoted", "recipe": "symbolic", "new": 1})
    record = recorder.get_run(run_id)
    assert (record.name, record.status) == ("mine", "RUNNING")
    assert record.params == {"size": "'it is quoted'", "recipe": "real", "new": "1"}
    assert (
        record.tags.items() >= {"a": "1", "mlflow.source.type": "PROJECT", "rhstudy.param.recipe": "symbolic"}.items()
    )
    assert "rhstudy.param.size" not in record.tags
    second = recorder.create_run("second", "detect")
    assert second != launched
    recorder.end_run(run_id, "FAILED")
    assert recorder.get_run(run_id).status == "FAILED"


def test_a_given_name_is_kept_and_nested_or_past_runs_take_nothing_over(
    make_mlflow: Make, launch: Callable[..., str]
) -> None:
    recorder = make_mlflow()
    parent = recorder.create_run("parent", "study")
    launched = launch(name="chosen by hand")
    assert recorder.create_run("child", "detect", parent) != launched
    assert recorder.create_run("past", "detect", start_time_s=1.0) != launched
    assert recorder.create_run("mine", "detect") == launched
    assert recorder.get_run(launched).name == "chosen by hand"


def test_children_live_in_their_parents_experiment(make_mlflow: Make, launch: Callable[..., str]) -> None:
    launched = launch()
    recorder = make_mlflow()
    child = recorder.create_run("child", "detect", recorder.create_run("study", "study"))
    client = MlflowClient(recorder.uri)
    assert client.get_run(child).info.experiment_id == client.get_run(launched).info.experiment_id == "0"
    assert {record.run_id for record in recorder.find_runs()} == {launched, child}


def test_a_launched_stage_that_was_done_before_names_the_run(
    make_mlflow: Make, launch: Callable[..., str], tmp_path: Path
) -> None:
    done = run_stage(make_mlflow(), toy_spec(tmp_path / "work"), ToyBody())
    launched = launch()
    result = run_stage(make_mlflow(), toy_spec(tmp_path / "work"), ToyBody())
    assert (result.run_id, result.reused) == (done.run_id, True)
    record = make_mlflow().get_run(launched)
    assert (record.status, record.tags["rhstudy.reused_run_id"]) == ("FINISHED", done.run_id)


def test_a_launched_stage_does_its_work_in_the_launched_run(
    make_mlflow: Make, launch: Callable[..., str], tmp_path: Path
) -> None:
    launched = launch()
    assert run_stage(make_mlflow(), toy_spec(tmp_path / "work"), ToyBody()).run_id == launched
    assert make_mlflow().get_run(launched).status == "FINISHED"


def test_a_launched_group_says_which_one_it_continues(make_mlflow: Make, launch: Callable[..., str]) -> None:
    with pytest.raises(RuntimeError), group_run(make_mlflow(), "s", digest="d") as first:
        raise RuntimeError
    launched = launch()
    with group_run(make_mlflow(), "s", digest="d") as second:
        pass
    assert second == launched
    assert make_mlflow().get_run(second).tags["rhstudy.continues_run_id"] == first


def test_a_launched_run_of_another_store_is_refused(make_mlflow: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "e" * 32)
    with pytest.raises(InputError, match="MLFLOW_RUN_ID must be a run of the store"):
        make_mlflow().create_run("r", "detect")


def test_a_launched_process_makes_no_experiment_of_its_own(
    make_mlflow: Make, launch: Callable[..., str], tmp_path: Path
) -> None:
    """An experiment made in a container would keep its artifacts at a path that is gone when it ends."""
    launched = launch()
    uri = make_mlflow().uri
    config = TrackingConfig(uri=uri, experiment="never made", work_dir=str(tmp_path / "work"))
    recorder = open_recorder(config)
    assert recorder.create_run("first", "study") == launched
    second = recorder.create_run("second", "study")
    copied = recorder.create_run("copied", "study", start_time_s=1.0)
    client = MlflowClient(uri)
    assert {client.get_run(run_id).info.experiment_id for run_id in (launched, second, copied)} == {"0"}
    assert client.get_experiment_by_name("never made") is None


def test_metrics_logged_twice_are_there_once(make_mlflow: Make) -> None:
    recorder = make_mlflow()
    run_id = recorder.create_run("r", "detect")
    recorder.log_metrics(run_id, {"a": 1.0}, 1)
    recorder.log_points(run_id, recorder.metric_history(run_id))
    assert len(recorder.metric_history(run_id)) == 1


def test_the_default_store_lies_in_this_folder(
    tmp_path: Path, template_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mlflow.db").write_bytes(template_store.read_bytes())
    monkeypatch.chdir(tmp_path / "here")
    before = mlflow.get_tracking_uri(), mlflow.active_run()
    recorder = open_recorder(TrackingConfig(work_dir=str(tmp_path / "work")))
    assert isinstance(recorder, MlflowRecorder)
    assert recorder.uri == f"sqlite:///{tmp_path}/here/mlflow.db"
    run_id = recorder.create_run("r", "detect")
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == before
    monkeypatch.chdir(tmp_path)
    assert recorder.artifact_path(run_id) == tmp_path / "here" / "mlartifacts" / "rhstudy" / run_id / "artifacts"
    # Quieter still where a test before this one ran the command line in this process.
    assert min(logging.getLogger(name).level for name in ("mlflow", "alembic")) >= logging.WARNING


def test_a_relative_or_environment_uri_is_made_absolute(
    tmp_path: Path, template_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.db").write_bytes(template_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert MlflowRecorder("sqlite:///own.db").uri == f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    assert MlflowRecorder().uri == f"sqlite:///{tmp_path}/own.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/x.db"])
def test_a_store_that_does_not_open_is_refused_at_once(uri: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"tracking\.uri must be an MLflow store that opens"):
        MlflowRecorder(uri)
    assert time.monotonic() - began < 10


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is text, not a database\n" * 100)
    with pytest.raises(InputError, match=r"tracking\.uri must be an MLflow store that opens"):
        MlflowRecorder(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_deleted_experiment_is_named(make_mlflow: Make) -> None:
    recorder = make_mlflow()
    client = MlflowClient(recorder.uri)
    client.delete_experiment(client.get_experiment_by_name("tests").experiment_id)
    with pytest.raises(InputError, match=r"tracking\.experiment must not be deleted, got 'tests'"):
        make_mlflow()


def test_system_metrics_are_logged_when_asked(
    make_mlflow: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    recorder = MlflowRecorder(make_mlflow().uri, "tests")
    run_id = recorder.create_run("r", "detect")
    name, deadline = "system/cpu_utilization_percentage", time.monotonic() + 60  # a busy host takes its time
    with recorder.watch_host(run_id):
        while name not in recorder.get_run(run_id).metrics and time.monotonic() < deadline:
            time.sleep(0.1)
    assert name in recorder.get_run(run_id).metrics


def test_a_host_that_cannot_be_watched_stops_nothing(make_mlflow: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no psutil here")

    monkeypatch.setattr(mlflow_recorder, "SystemMetricsMonitor", broken)
    recorder = MlflowRecorder(make_mlflow().uri, "tests")
    run_id = recorder.create_run("r", "detect")
    with recorder.watch_host(run_id):
        pass
    assert recorder.get_run(run_id).tags["rhstudy.system_metrics"] == "none: no psutil here"


FOUR_PROCESSES = """
import os, sys
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        recorder = MlflowRecorder(sys.argv[1])
        recorder.end_run(recorder.create_run(f"run {number}", "detect"), "FINISHED")
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_four_processes_open_a_cold_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    command = [sys.executable, "-c", FOUR_PROCESSES, uri]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0]\n", "")
    records = MlflowRecorder(uri).find_runs(status="FINISHED")
    assert sorted(record.name for record in records) == [f"run {number}" for number in range(4)]
    assert not list(tmp_path.glob("*/*.new*"))


def test_a_half_made_store_of_a_killed_process_is_made_again(tmp_path: Path, template_store: Path) -> None:
    (tmp_path / "mlflow.db.new").write_bytes(template_store.read_bytes()[:50000])
    (tmp_path / "mlflow.db").touch()
    recorder = MlflowRecorder(f"sqlite:///{tmp_path}/mlflow.db")
    assert recorder.get_run(recorder.create_run("r", "detect")).status == "RUNNING"


def test_made_up_names_are_told_from_given_ones() -> None:
    made_up = [mlflow_recorder.name_utils._generate_random_name() for _ in range(50)]
    assert all(mlflow_recorder._is_made_up(name) for name in [*made_up, ""])
    assert not any(mlflow_recorder._is_made_up(name) for name in ["real-mdqa-10", "study", "bold-new-1x"])


def test_the_folder_recorder_and_the_work_folder_follow_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_recorder(TrackingConfig(recorder="folder", folder=str(tmp_path / "runs")))
    assert isinstance(recorder, FolderRecorder)
    monkeypatch.setenv("RHSTUDY_CACHE", str(tmp_path / "cache"))
    assert work_root(TrackingConfig()) == tmp_path / "cache" / "work"
    assert work_root(TrackingConfig(work_dir=str(tmp_path / "w"))) == tmp_path / "w"


@pytest.mark.parametrize(("given", "found"), [("~/mine", "home/mine"), ("near", "near"), ("", "home/.cache/rhstudy")])
def test_models_and_unfinished_work_share_one_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RHSTUDY_CACHE", given)
    assert work_root(TrackingConfig()) == load.cache_root().absolute() / "work" == tmp_path / found / "work"


def test_without_mlflow_the_remedy_is_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rhstudy.tracking.mlflow_recorder")
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(InputError, match=r"tracking\.recorder must be folder where MLflow is missing"):
        open_recorder(TrackingConfig())
