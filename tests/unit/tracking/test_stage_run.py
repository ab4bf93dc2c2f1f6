from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from stage_examples import ToyBody, ToyConfig, inputs_of, toy_spec

import rhstudy
from rhstudy.configs import from_mapping, load_toml
from rhstudy.errors import InputError, InterruptedRunError, StudyError
from rhstudy.tracking.artifacts import open_artifacts
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.process import process_tags
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageRun, run_stage, stage_digest

HERE = Path(__file__).parent
REPO = Path(rhstudy.__file__).parents[1]


def statuses(recorder: Recorder) -> list[str]:
    return [record.status for record in reversed(recorder.find_runs())]


def test_a_run_says_everything_about_itself(recorder: Recorder, tmp_path: Path) -> None:
    result = run_stage(recorder, toy_spec(tmp_path / "work", tags={"arm": "real"}), ToyBody())
    record = recorder.get_run(result.run_id)
    assert (record.name, record.status, result.reused) == ("toy run", "FINISHED", False)
    assert record.params["inner.rate"] == "1e-05"
    assert record.params["seed"] == "7"
    expected = {
        "arm": "real",
        "rhstudy.stage": "detect",
        "rhstudy.version": rhstudy.__version__,
        "rhstudy.stage_digest": stage_digest(toy_spec(tmp_path)),
        "rhstudy.seed": "7",
        "rhstudy.exit_code": "0",
        "rhstudy.pid": str(os.getpid()),
        "rhstudy.summary.rule": "top 10",
        "rhstudy.summary.ok": "true",
        "rhstudy.content_digest": result.artifacts.content_digest,
    }
    assert expected.items() <= record.tags.items()
    named = {"rhstudy.git_commit", "rhstudy.git_dirty", "rhstudy.version.torch", "rhstudy.version.python"}
    assert named | {"rhstudy.cpu", "rhstudy.cpu_cores", "rhstudy.ram_bytes", "rhstudy.command"} <= record.tags.keys()
    assert record.metrics["f1"] == 0.25
    assert math.isnan(record.metrics["undefined"])
    assert record.metrics["peak_rss_bytes"] > 1e6
    assert 0 <= record.metrics["duration_s"] < 60


def test_config_files_read_back_as_the_same_config(recorder: Recorder, tmp_path: Path) -> None:
    config = ToyConfig(size=9)
    result = run_stage(recorder, toy_spec(tmp_path / "work", config), ToyBody())
    folder = recorder.artifact_path(result.run_id, "config")
    assert from_mapping(ToyConfig, load_toml(folder / "config.toml")) == config
    assert from_mapping(ToyConfig, json.loads((folder / "config.json").read_text())) == config


def test_artifacts_and_summary(recorder: Recorder, tmp_path: Path) -> None:
    result = run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    assert result.artifacts.file("scores.txt").read_text() == "hello"
    assert math.isnan(result.artifacts.summary()["undefined"])
    assert result.artifacts.summary()["rule"] == result.summary["rule"] == "top 10"
    assert result.artifacts.run_id == result.run_id
    assert sorted(item.name for item in (tmp_path / "work").iterdir()) == ["locks"]


def test_finished_work_is_reused_and_other_work_is_not(make_recorder: Callable[[], Recorder], tmp_path: Path) -> None:
    body = ToyBody()
    first = run_stage(make_recorder(), toy_spec(tmp_path / "work"), body)
    again = run_stage(make_recorder(), toy_spec(tmp_path / "other work", ToyConfig(device="cuda")), body)
    assert (again.run_id, again.reused, body.calls) == (first.run_id, True, 1)
    assert again.summary["f1"] == 0.25
    for spec in (
        toy_spec(tmp_path / "work", ToyConfig(size=4)),
        toy_spec(tmp_path / "work", seed=8),
        toy_spec(tmp_path / "work", stage="evaluate"),
        toy_spec(tmp_path / "work", inputs=inputs_of(first.artifacts)),
    ):
        assert not run_stage(make_recorder(), spec, body).reused
    assert body.calls == 5


def test_input_runs_are_named_and_data_sets_logged(recorder: Recorder, tmp_path: Path) -> None:
    data = run_stage(recorder, toy_spec(tmp_path, stage="make-data"), ToyBody()).artifacts
    model = run_stage(recorder, toy_spec(tmp_path, stage="finetune"), ToyBody("weights")).artifacts
    inputs = {**inputs_of(data), **inputs_of(model, "model")}
    record = recorder.get_run(run_stage(recorder, toy_spec(tmp_path, inputs=inputs), ToyBody()).run_id)
    assert record.tags["rhstudy.input.train_data.run_id"] == data.run_id
    assert record.tags["rhstudy.input.model.digest"] == model.content_digest
    assert [(item.name, item.context) for item in record.inputs] == [("train_data", "train_data")]
    assert record.inputs[0].digest == data.content_digest[:36]


def test_damaged_artifacts_are_made_again(recorder: Recorder, tmp_path: Path) -> None:
    body = ToyBody()
    first = run_stage(recorder, toy_spec(tmp_path / "work"), body)
    first.artifacts.file("scores.txt").write_text("changed")
    second = run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert (second.reused, body.calls) == (False, 2)
    assert run_stage(recorder, toy_spec(tmp_path / "work"), body).run_id == second.run_id


def test_bad_input_is_failed_with_exit_code_2(recorder: Recorder, tmp_path: Path) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        raise InputError("recipe must be known, got 'x'. Choose real.")

    with pytest.raises(InputError, match="recipe must be known"):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    (record,) = recorder.find_runs()
    assert (record.status, record.tags["rhstudy.exit_code"]) == ("FAILED", "2")
    assert record.tags["rhstudy.error"] == "recipe must be known, got 'x'. Choose real."


@pytest.mark.parametrize("error", [RuntimeError("loss is odd"), SystemExit(3), StudyError("loss must be finite")])
def test_a_failure_is_failed_with_its_traceback(recorder: Recorder, tmp_path: Path, error: BaseException) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        (run.work_dir / "partial").write_text("kept")
        raise error

    with pytest.raises(type(error)):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    (record,) = recorder.find_runs()
    assert (record.status, record.tags["rhstudy.exit_code"]) == ("FAILED", "1")
    text = (recorder.artifact_path(record.run_id) / "error" / "traceback.txt").read_text()
    assert "in body" in text
    assert str(error) in text
    assert (tmp_path / "work" / stage_digest(toy_spec(tmp_path)) / "partial").read_text() == "kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_kill_the_run_and_it_can_be_resumed(recorder: Recorder, tmp_path: Path, number: int) -> None:
    handlers = [signal.getsignal(item) for item in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(run: StageRun) -> Mapping[str, Any]:
        (run.work_dir / "step").write_text("3")
        os.kill(os.getpid(), number)
        time.sleep(10)
        return {}

    def resumed(run: StageRun) -> Mapping[str, Any]:
        return {"resumed_at": int((run.work_dir / "step").read_text())}

    with pytest.raises(InterruptedRunError, match=f"run must end by itself, got <{signal.Signals(number).name}>"):
        run_stage(recorder, toy_spec(tmp_path / "work"), interrupted)
    assert [signal.getsignal(item) for item in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run_stage(recorder, toy_spec(tmp_path / "work"), resumed).summary == {"resumed_at": 3}
    assert statuses(recorder) == ["KILLED", "FINISHED"]


def test_a_keyboard_interrupt_of_the_body_kills_the_run(recorder: Recorder, tmp_path: Path) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="got <KeyboardInterrupt>"):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    (record,) = recorder.find_runs()
    assert (record.status, record.tags["rhstudy.exit_code"]) == ("KILLED", "1")
    assert record.tags["rhstudy.ended_as"] == "KILLED"


def test_a_signal_while_the_run_is_being_opened_or_ended_is_not_lost(tmp_path: Path) -> None:
    class Signalling(FolderRecorder):
        def create_run(self, *args: Any, **kwargs: Any) -> str:
            run_id = super().create_run(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGTERM)
            return run_id

    recorder, body = Signalling(tmp_path / "runs"), ToyBody()
    with pytest.raises(InterruptedRunError):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert (body.calls, statuses(recorder)) == (0, ["KILLED"])

    class SignallingAtTheEnd(FolderRecorder):
        def end_run(self, run_id: str, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().end_run(run_id, *args, **kwargs)

    with pytest.raises(InterruptedRunError):
        run_stage(SignallingAtTheEnd(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
    assert statuses(recorder) == ["KILLED", "FINISHED"]


def test_a_second_signal_does_not_stop_the_run_from_being_ended(tmp_path: Path) -> None:
    class Impatient(FolderRecorder):
        def end_run(self, run_id: str, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            super().end_run(run_id, *args, **kwargs)

    def body(run: StageRun) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        return {}

    with pytest.raises(InterruptedRunError):
        run_stage(Impatient(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
    assert statuses(FolderRecorder(tmp_path / "runs")) == ["KILLED"]


def test_stages_run_in_threads_without_signal_handlers(recorder: Recorder, tmp_path: Path) -> None:
    body = ToyBody()
    results = []
    work = lambda: results.append(run_stage(recorder, toy_spec(tmp_path / "work"), body))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (body.calls, len({result.run_id for result in results})) == (1, 1)
    assert sorted(result.reused for result in results) == [False, True, True]


def test_runs_of_a_dead_process_are_ended_when_their_stage_starts_again(recorder: Recorder, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = {**process_tags(dead.pid), "rhstudy.stage_digest": stage_digest(toy_spec(tmp_path))}
    dead.communicate(b"\n")
    stale = recorder.create_run("stale", "detect", tags=tags)
    alive = {**tags, **process_tags()}
    living = recorder.create_run("alive elsewhere", "detect", tags=alive)
    run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    assert recorder.get_run(stale).status == "KILLED"
    assert recorder.get_run(stale).tags["rhstudy.ended_by"] == "stale"
    assert recorder.get_run(living).status == "RUNNING"


CHILD = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from stage_examples import toy_spec
    from rhstudy.tracking.stage_run import run_stage
    if {kind!r} == "folder":
        from rhstudy.tracking.folder_recorder import FolderRecorder
        recorder = FolderRecorder({store!r})
    else:
        from rhstudy.tracking.mlflow_recorder import MlflowRecorder
        recorder = MlflowRecorder({store!r}, "tests", system_metrics=False)
    root = Path({root!r})
    def body(run):
        with (root / "calls").open("a") as file:
            file.write("x")
        (run.work_dir / "step").write_text("2")
        (run.output_dir / "half").write_text("rubbish")
        (root / "started").touch()
        while not (root / "go").exists():
            time.sleep(0.02)
        (run.output_dir / "half").write_text("whole")
        return dict()
    print(run_stage(recorder, toy_spec(root / "work"), body).reused, flush=True)
"""


def start_child(recorder: Recorder, root: Path) -> subprocess.Popen[str]:
    folder = isinstance(recorder, FolderRecorder)
    store = str(recorder.root) if isinstance(recorder, FolderRecorder) else recorder.uri  # type: ignore[attr-defined]
    code = textwrap.dedent(CHILD).format(
        here=str(HERE), kind="folder" if folder else "mlflow", store=store, root=str(root)
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def test_killed_without_a_word_then_resumed(recorder: Recorder, tmp_path: Path) -> None:
    child = start_child(recorder, tmp_path)
    wait_for(tmp_path / "started")
    child.kill()
    child.communicate()
    assert statuses(recorder) == ["RUNNING"]

    def resumed(run: StageRun) -> Mapping[str, Any]:
        assert not (run.output_dir / "half").exists()
        return {"step": int((run.work_dir / "step").read_text())}

    assert run_stage(recorder, toy_spec(tmp_path / "work"), resumed).summary == {"step": 2}
    assert statuses(recorder) == ["KILLED", "FINISHED"]


def test_two_processes_do_the_same_stage_once(recorder: Recorder, tmp_path: Path) -> None:
    children = [start_child(recorder, tmp_path) for _ in range(2)]
    wait_for(tmp_path / "started")
    time.sleep(0.2)
    (tmp_path / "go").touch()
    said = sorted(child.communicate(timeout=300)[0].strip() for child in children)
    assert said == ["False", "True"]
    assert (tmp_path / "calls").read_text() == "x"
    assert statuses(recorder) == ["FINISHED"]


def test_figures_become_volatile_artifacts(tmp_path: Path) -> None:
    class Figure:
        def savefig(self, path: Path, **kwargs: Any) -> None:
            path.write_bytes(os.urandom(8))

    def body(run: StageRun) -> Mapping[str, Any]:
        run.log_figure("curve", Figure)
        run.set_tags({"mine": "1"})
        run.log_input("nq", "d" * 64, "/data/nq.jsonl", "source")
        return {}

    digests = set()
    for name in ("one", "two"):
        recorder = FolderRecorder(tmp_path / name)
        result = run_stage(recorder, toy_spec(tmp_path / "work"), body)
        assert open_artifacts(result.artifacts.path).file("figures/curve.png").stat().st_size == 8
        assert recorder.get_run(result.run_id).inputs[0].source == "/data/nq.jsonl"
        digests.add(result.artifacts.content_digest)
    assert len(digests) == 1


def test_a_work_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"tracking\.work_dir must be a folder to write in.*Not a directory"):
        run_stage(FolderRecorder(tmp_path / "runs"), toy_spec(tmp_path / "file"), ToyBody())


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        run_stage(FolderRecorder(tmp_path / "runs"), toy_spec(tmp_path, seed=-1), ToyBody())


def test_figures_are_left_out_where_matplotlib_is_missing(tmp_path: Path) -> None:
    def draw() -> Any:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.figure")

    def body(run: StageRun) -> Mapping[str, Any]:
        run.log_figure("curve", draw)
        return {}

    recorder = FolderRecorder(tmp_path / "runs")
    result = run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert "matplotlib" in recorder.get_run(result.run_id).tags["rhstudy.figures"]
    assert not (result.artifacts.path / "figures").exists()


def test_another_missing_library_of_a_figure_is_a_failure(tmp_path: Path) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        run.log_figure("curve", lambda: __import__("no_such_library"))
        return {}

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        run_stage(FolderRecorder(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
