"""Workers of different machines (folders, caches) with one tracking server: each does its part, and nothing is lost."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, Here, Outcome, data_values, environment, stage_of, study_values, write_config
from tracking_server import Gate, free_port, postgres, tracking_server

from rhstudy.configs import TrackingConfig
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.recorder import Recorder, RunRecord


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder, f"sqlite:///{folder}/mlflow.db") as uri:
        yield uri


@pytest.fixture(params=["sqlite", "postgres"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server on sqlite, or a Postgres as the server's processes see it."""
    if request.param == "sqlite":
        yield request.getfixturevalue("server")
        return
    monkeypatch.chdir(tmp_path)
    with postgres() as database:
        yield database


@contextlib.contextmanager
def in_own_process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker with a working folder and a cache of its own, at work while the block runs."""
    folder.mkdir()
    worker = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield worker
    finally:
        worker.kill()


def small(world: Path, name: str, **changes: Any) -> dict[str, Any]:
    few: dict[str, Any] = {"name": name, "recipes": ["real", "symbolic"], "ceiling_seeds": [], "baselines": []}
    few["data"] = data_values(world, num_examples=4, num_score=3, num_eval=3)
    return study_values(world, **few, **changes)


def new_runs(store: Recorder, known: list[RunRecord]) -> list[RunRecord]:
    ids = {run.run_id for run in known}
    return [run for run in store.find_runs() if run.run_id not in ids]


def store_of(uri: str, folder: Path, experiment: str) -> Recorder:
    return open_recorder(TrackingConfig(uri=uri, work_dir=str(folder / "work"), experiment=experiment))


def test_two_workers_do_a_part_each_and_the_whole_study_reuses_both(
    server: str, world: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store = store_of(server, tmp_path, "shared")
    before = store.find_runs()
    config = str(write_config(tmp_path / "study.toml", small(world, "shared")))
    command = ("study", config, "--tracking.experiment", "shared", "--tracking.uri", server)
    with in_own_process(tmp_path / "w1", *command, "--part", "1", "2") as first:
        (tmp_path / "w2").mkdir()
        second = Here(tmp_path / "w2", monkeypatch, capsys)(*command, "--part", "2", "2")
        out, err = first.communicate(timeout=400)
    for k, arm, done in ((1, "real/seed0", Outcome(first.returncode, out, err)), (2, "symbolic/seed0", second)):
        assert done.code == 0, done.err[-3000:]
        assert done.out.splitlines()[-2] == (
            f"part {k} of 2 is done (arms {arm}); when all are, run the study without --part: it reuses them"
        )
        run_id = done.facts["run_id"]
        assert done.facts == {"run_id": run_id, "part": [k, 2], "num_arms": 1, "reused": False}
        assert store.get_run(run_id).name == f"shared, part {k} of 2"
    parts = new_runs(store, before)
    counts = Counter(map(stage_of, parts))
    # The rows that both need are made by both, unless one has finished them before the other begins.
    assert 4 <= counts.pop("make-data") <= 6
    assert counts == {"study": 2, "arm": 2, "finetune": 2, "detect": 2, "evaluate": 2}
    assert {run.status for run in parts} == {"FINISHED"}

    whole = here(*command)
    assert whole.code == 0, whole.err[-3000:]
    assert f"Compare the runs: {server}" in whole.err
    added = new_runs(store, [*before, *parts])
    assert Counter(map(stage_of, added)) == {"study": 1, "arm": 2, "analyze": 1, "report": 1}
    measured = {run.run_id for run in parts if stage_of(run) in ("finetune", "detect", "evaluate")}
    arms = [run for run in added if stage_of(run) == "arm"]
    assert {
        arm.tags[f"rhstudy.run.{stage}"] for arm in arms for stage in ("finetune", "detect", "evaluate")
    } == measured
    for run in (run for run in parts if stage_of(run) == "finetune"):
        loss = [point.step for point in store.metric_history(run.run_id) if point.key == "loss"]
        assert loss == list(range(int(run.metrics["num_steps"])))
        assert (store.artifact_path(run.run_id) / "attention.safetensors").is_file()
    assert (here.folder / "cache" / "downloads").is_dir()


def interrupt_training(gate: Gate, work: Path) -> None:
    """Shut the gate for a second in the middle of training, and later for good."""

    def wait_for_save(after_ns: int = 0) -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            for state in work.glob("*/training-state.pt"):
                with contextlib.suppress(FileNotFoundError):
                    if state.stat().st_mtime_ns > after_ns:
                        return
            time.sleep(0.002)

    wait_for_save()
    gate.shut()
    time.sleep(1.0)
    gate.open()
    wait_for_save(time.time_ns())
    gate.shut()


def test_a_server_that_is_away_is_waited_for_and_then_said_to_be_gone(
    server: str, world: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"batch_size": 1, "num_epochs": 10, "save_every_steps": 1, "learning_rate": 0.01}
    values = small(world, "outage", training=training)
    study = str(write_config(here.folder / "study.toml", values))
    # Two retries, after 0 and 2 s.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    gate = Gate(server)
    gate.open()
    outages = threading.Thread(target=interrupt_training, args=(gate, here.folder / "cache" / "work"))
    outages.start()
    done = here("study", study, "--tracking.experiment", "outage", "--tracking.uri", gate.uri)
    outages.join()
    assert done.code == 1
    assert f"tracking server must answer, got '{gate.uri}'. Start the same command again" in done.err
    assert "Traceback" not in done.err
    assert "arm 2 of 2" not in done.err  # the next arm would only wait for the server again
    store = store_of(server, here.folder, "outage")
    (left,) = store.find_runs({"rhstudy.stage": "finetune"}, "RUNNING")

    # The rest of that training.
    keys = ("model", "context", "training")
    rest = {"data": left.tags["rhstudy.input.train_data.run_id"]} | {key: values[key] for key in keys}
    config = str(write_config(here.folder / "finetune.toml", rest))
    done = here("finetune", config, "--tracking.uri", server)
    assert done.code == 0, done.err[-3000:]
    assert store.get_run(left.run_id).status == "KILLED"
    whole = store.get_run(done.facts["run_id"])
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


def test_workers_that_log_one_data_set_at_the_same_moment_all_do(store_uri: str, tmp_path: Path) -> None:
    def log(number: int) -> str:
        recorder = MlflowRecorder(store_uri, "data sets", download_dir=tmp_path / str(number), system_metrics=False)
        run_id = recorder.create_run(f"worker {number}", "detect")
        for index in range(5):
            recorder.log_input(run_id, "eval_data", f"digest {index}", f"folder {number}", "eval_data")
        recorder.end_run(run_id, "FINISHED")
        return run_id

    recorder = MlflowRecorder(store_uri, "data sets", download_dir=tmp_path, system_metrics=False)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(log, range(4)))
    assert [len(recorder.get_run(run_id).inputs) for run_id in runs] == [5] * 4
