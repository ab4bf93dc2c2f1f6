"""Workers of different machines (folders, caches) on one tracking server: nothing is done twice, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, Here, content_digests, environment, stage_of, study_values, write_config
from tracking_server import Gate, free_port, postgres, tracking_server

from rhstudy.configs import TrackingConfig
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.process import ENDED_BY_TAG
from rhstudy.tracking.recorder import Recorder, RunRecord
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder, f"sqlite:///{folder}/mlflow.db") as uri:
        yield uri


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def store_uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on each kind of database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("server")
        return
    folder = tmp_path_factory.mktemp("postgres")
    with postgres(folder) as database, tracking_server(folder, database) as uri:
        yield uri


def start(folder: Path, uri: str, *arguments: str, **changes: str) -> subprocess.Popen[str]:
    """A worker with a working folder and a cache of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(folder, MLFLOW_TRACKING_URI=uri, **changes),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def small(world: Path, name: str, **changes: Any) -> dict[str, Any]:
    few: dict[str, Any] = {"name": name, "recipes": ["real", "symbolic"], "ceiling_seeds": [], "baselines": []}
    return study_values(world, **few, **changes)


def runs_of(store: Recorder, study: str) -> list[RunRecord]:
    """The runs of every study of that name, but those withdrawn because another worker began at the same moment."""
    by_id = {run.run_id: run for run in store.find_runs()}

    def root(run: RunRecord) -> RunRecord:
        return root(by_id[run.parent_run_id]) if run.parent_run_id else run

    return [run for run in by_id.values() if root(run).name == study and run.tags.get(ENDED_BY_TAG) != "withdrawn"]


def store_of(uri: str, folder: Path, experiment: str) -> Recorder:
    return open_recorder(TrackingConfig(uri=uri, work_dir=str(folder / "work"), experiment=experiment))


def test_two_workers_share_a_study_and_a_third_finds_it_done(
    server: str, world: Path, here: Here, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path / "study.toml", small(world, "shared")))
    command = ("study", config, "--tracking.experiment", "shared")
    workers = [start(tmp_path / f"w{k}", server, *command, "--part", str(k), "2") for k in (1, 2)]
    for worker in workers:
        _, err = worker.communicate(timeout=200)
        assert worker.returncode == 0, err[-3000:]
    store = store_of(server, tmp_path, "shared")
    done = content_digests(store)  # fails when a stage was done twice
    counts = Counter(map(stage_of, runs_of(store, "shared")))
    # One study and one run an arm for each worker; every stage once.
    once = {"make-data": 4, "finetune": 2, "detect": 2, "evaluate": 2, "analyze": 1, "report": 1}
    assert counts == {"study": 2, "arm": 4, **once}
    assert {run.status for run in runs_of(store, "shared")} == {"FINISHED"}

    third = here(*command, "--tracking.uri", server)
    assert third.code == 0, third.err[-3000:]
    assert third.facts["reused"] is True
    assert f"Compare the runs: {server}" in third.err
    assert content_digests(store) == done
    by_id = {run.run_id: run for run in runs_of(store, "shared")}
    assert Counter(map(stage_of, by_id.values())) == counts
    for run in by_id.values():
        if stage_of(run) in ("finetune", "detect", "evaluate"):
            arm = by_id[run.parent_run_id]
            assert (stage_of(arm), stage_of(by_id[arm.parent_run_id])) == ("arm", "study")
            assert arm.name in run.name
        if stage_of(run) == "finetune":
            loss = [point for point in store.metric_history(run.run_id) if point.key == "loss"]
            assert [point.step for point in loss] == list(range(int(run.metrics["num_steps"])))
            assert (store.artifact_path(run.run_id) / "attention.safetensors").is_file()
    assert (here.folder / "cache" / "downloads").is_dir()


def wait_for_file(worker: subprocess.Popen[str], folder: Path, name: str) -> None:
    limit = time.monotonic() + 120
    while not list((folder / "cache" / "work").glob(f"*/{name}")):
        assert worker.poll() is None, worker.communicate()[1][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_server_that_is_away_is_waited_for_and_then_said_to_be_gone(server: str, world: Path, tmp_path: Path) -> None:
    training = {"batch_size": 1, "num_epochs": 4, "save_every_steps": 1, "learning_rate": 0.01}
    values = small(world, "outage", training=training)
    study = str(write_config(tmp_path / "study.toml", values))
    gate, folder = Gate(server), tmp_path / "w"
    gate.open()
    impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
    worker = start(folder, gate.uri, "study", study, "--tracking.experiment", "outage", **impatient)
    wait_for_file(worker, folder, "training-state.pt")
    gate.shut()
    _, err = worker.communicate(timeout=100)
    assert worker.returncode == 1
    assert f"tracking server must answer, got '{gate.uri}'. Start the same command again" in err
    assert "Traceback" not in err
    assert "arm 2 of 2" not in err  # the next arm would only wait for the server again
    store = store_of(server, tmp_path, "outage")
    (left,) = [run for run in runs_of(store, "outage") if stage_of(run) == "finetune"]
    assert left.status == "RUNNING"

    # The rest of that arm's training alone, with a shorter outage in the middle.
    rest = {"data": left.tags["rhstudy.input.train_data.run_id"]} | {
        key: values[key] for key in ("model", "context", "training")
    }
    gate.open()
    config = str(write_config(tmp_path / "finetune.toml", rest))
    worker = start(folder, gate.uri, "finetune", config, MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="1")
    (state,) = (folder / "cache" / "work").glob("*/training-state.pt")
    saved = state.stat().st_mtime_ns
    limit = time.monotonic() + 120
    while state.exists() and state.stat().st_mtime_ns == saved and time.monotonic() < limit:
        time.sleep(0.002)
    gate.shut()
    time.sleep(2.0)
    assert worker.poll() is None
    gate.open()
    out, err = worker.communicate(timeout=200)
    assert worker.returncode == 0, err[-3000:]
    gate.shut()
    assert store.get_run(left.run_id).status == "KILLED"
    whole = store.get_run(json.loads(out.splitlines()[-1])["run_id"])
    assert whole.tags["rhstudy.stage_digest"] == left.tags["rhstudy.stage_digest"]
    steps = [point.step for point in store.metric_history(whole.run_id) if point.key == "loss"]
    assert steps == list(range(int(whole.metrics["num_steps"])))


def test_a_server_that_is_down_at_the_start_is_bad_input(here: Here, world: Path) -> None:
    config = write_config(here.folder / "study.toml", small(world, "down"))
    port = free_port()
    outcome = here("study", str(config), "--tracking.uri", f"http://ada:pass@word@127.0.0.1:{port}")
    assert outcome.code == 2
    assert f"tracking.uri must be an MLflow store that opens, got 'http://***@127.0.0.1:{port}'" in outcome.err
    assert "word" not in outcome.err


def test_many_that_begin_one_stage_at_the_same_moment_do_it_once(store_uri: str, tmp_path: Path) -> None:
    """Each with a work folder of its own, as on machines of their own: no file lock is between them."""
    num_workers, bodies = 4, []

    def body(run: StageRun) -> dict[str, float]:
        bodies.append(run.run_id)
        run.log_input("eval_data", "same digest", "somewhere", "eval_data")
        time.sleep(1.0)
        (run.output_dir / "result.txt").write_text("42")
        return {"value": 42.0}

    def work(number: int) -> StageResult:
        place = tmp_path / str(number)
        recorder = MlflowRecorder(store_uri, "moment", download_dir=place / "down", system_metrics=False)
        spec = StageSpec(
            stage="detect", run_name="same stage", config=TrackingConfig(), seed=7, work_root=place / "work"
        )
        return run_stage(recorder, spec, body)

    with ThreadPoolExecutor(num_workers) as pool:
        results = list(pool.map(work, range(num_workers)))
    assert len(bodies) == 1
    assert {result.run_id for result in results} == set(bodies)
    assert [result.reused for result in results].count(False) == 1
    assert [(result.artifacts.path / "result.txt").read_text() for result in results] == ["42"] * num_workers


def test_workers_that_log_one_data_set_at_the_same_moment_all_do(store_uri: str, tmp_path: Path) -> None:
    def log(number: int) -> str:
        recorder = MlflowRecorder(store_uri, "data sets", download_dir=tmp_path / str(number), system_metrics=False)
        run_id = recorder.create_run(f"worker {number}", "detect")
        for index in range(5):
            recorder.log_input(run_id, "eval_data", f"digest {index}", f"folder {number}", "eval_data")
        recorder.end_run(run_id, "FINISHED")
        return run_id

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(log, range(4)))
    recorder = MlflowRecorder(store_uri, "data sets", download_dir=tmp_path, system_metrics=False)
    assert [len(recorder.get_run(run_id).inputs) for run_id in runs] == [5] * 4
