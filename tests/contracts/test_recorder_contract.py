"""One contract for every recorder: MLflow and the plain folder must be interchangeable."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rhstudy.errors import InputError
from rhstudy.tracking.recorder import MetricPoint, Recorder, RunInput

UNKNOWN_RUN = "0" * 32


def test_create_makes_a_running_run_with_its_stage_and_tags(recorder: Recorder) -> None:
    before = time.time()
    run_id = recorder.create_run("first", "detect", tags={"a": "1"})
    record = recorder.get_run(run_id)
    assert (record.run_id, record.name, record.status, record.parent_run_id) == (run_id, "first", "RUNNING", "")
    assert record.tags.items() >= {"a": "1", "rhstudy.stage": "detect"}.items()
    assert record.end_time_s is None
    assert before - 0.01 <= record.start_time_s <= time.time()


def test_ids_are_32_hex_digits_and_differ(recorder: Recorder) -> None:
    ids = [recorder.create_run("same", "study") for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(item) == 32 and int(item, 16) >= 0 for item in ids)


def test_nesting_three_deep(recorder: Recorder) -> None:
    study = recorder.create_run("study", "study")
    arm = recorder.create_run("arm", "arm", study)
    stage = recorder.create_run("stage", "detect", arm)
    assert recorder.get_run(stage).parent_run_id == arm
    assert recorder.get_run(arm).parent_run_id == study


def test_params_are_text_and_keep_their_first_value(recorder: Recorder) -> None:
    run_id = recorder.create_run("p", "study")
    params = {
        "text": "as is",
        "flag": True,
        "none": None,
        "list": [1, "ü"],
        "float": 1e-5,
        "empty": "",
        "quote": "it's",
    }
    recorder.log_params(run_id, params)
    recorder.log_params(run_id, {"text": "as is", "flag": False, "new": 1})
    record = recorder.get_run(run_id)
    assert record.params == {
        "text": "as is",
        "flag": "true",
        "none": "null",
        "list": '[1, "ü"]',
        "float": "1e-05",
        "empty": "",
        "quote": "it's",
        "new": "1",
    }
    assert record.tags["rhstudy.param.flag"] == "false"
    assert "rhstudy.param.text" not in record.tags


def test_long_params_end_in_the_sha256_of_the_whole(recorder: Recorder) -> None:
    run_id = recorder.create_run("p", "study")
    recorder.log_params(run_id, {"long": "x" * 6001, "fits": "y" * 6000})
    params = recorder.get_run(run_id).params
    assert params["fits"] == "y" * 6000
    assert len(params["long"]) == 6000
    assert params["long"] == "x" * 5926 + "...sha256:" + hashlib.sha256(b"x" * 6001).hexdigest()


def test_more_than_one_batch_of_params_and_tags(recorder: Recorder) -> None:
    run_id = recorder.create_run("many", "study")
    recorder.log_params(run_id, {f"p{index}": index for index in range(205)})
    recorder.set_tags(run_id, {f"t{index}": str(index) for index in range(205)})
    record = recorder.get_run(run_id)
    assert len(record.params) == 205
    assert record.tags["t204"] == "204"


def test_a_curve_of_a_thousand_points(recorder: Recorder) -> None:
    run_id = recorder.create_run("curve", "finetune")
    points = [MetricPoint(key="loss", value=1 / (s + 1), step=s, timestamp_s=1000.0 + s) for s in range(1001)]
    recorder.log_points(run_id, points)
    assert recorder.metric_history(run_id) == points
    assert recorder.get_run(run_id).metrics == {"loss": 1 / 1001}


def test_the_current_value_is_that_of_the_largest_step(recorder: Recorder) -> None:
    run_id = recorder.create_run("m", "study")
    recorder.log_metrics(run_id, {"a": 2.0}, step=5)
    recorder.log_metrics(run_id, {"a": 1.0, "b": 3}, step=None)
    assert recorder.get_run(run_id).metrics == {"a": 2.0, "b": 3.0}
    assert [(point.key, point.step, point.value) for point in recorder.metric_history(run_id)] == [
        ("a", 0, 1.0),
        ("a", 5, 2.0),
        ("b", 0, 3.0),
    ]


def test_nan_stays_nan_and_infinity_becomes_nan_with_a_reason(recorder: Recorder) -> None:
    run_id = recorder.create_run("nan", "analyze")
    recorder.log_metrics(run_id, {"undefined": math.nan, "blown up": math.inf, "zero": 0.0}, step=3)
    record = recorder.get_run(run_id)
    assert math.isnan(record.metrics["undefined"])
    assert math.isnan(record.metrics["blown up"])
    assert record.metrics["zero"] == 0
    assert record.tags["rhstudy.nonfinite.blown up"] == "inf at step 3"
    assert all(math.isnan(point.value) for point in recorder.metric_history(run_id) if point.key != "zero")


def test_unicode_everywhere(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "tähti.txt").write_text("☆", encoding="utf-8")
    run_id = recorder.create_run("Köpfe 头", "detect", tags={"größe": "µ ☆"})
    recorder.log_params(run_id, {"größe": "µ ☆"})
    recorder.log_metrics(run_id, {"größe": 1.0})
    recorder.log_artifacts(run_id, tmp_path / "files")
    record = recorder.get_run(run_id)
    assert (record.name, record.tags["größe"], record.params["größe"]) == ("Köpfe 头", "µ ☆", "µ ☆")
    assert record.metrics == {"größe": 1.0}
    assert (recorder.artifact_path(run_id) / "tähti.txt").read_text(encoding="utf-8") == "☆"


def test_artifacts_land_below_their_subpath_and_can_be_replaced(recorder: Recorder, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("1")
    (folder / "deep" / "b.bin").write_bytes(b"\x00\xff")
    run_id = recorder.create_run("art", "study")
    recorder.log_artifacts(run_id, folder, "sub/place")
    (folder / "a.txt").write_text("2")
    recorder.log_artifacts(run_id, folder, "sub/place")
    assert (recorder.artifact_path(run_id) / "sub/place/a.txt").read_text() == "2"
    assert (recorder.artifact_path(run_id, "sub/place") / "deep" / "b.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_end_and_reopen(recorder: Recorder, status: str) -> None:
    run_id = recorder.create_run("end", "study")
    recorder.end_run(run_id, status)  # type: ignore[arg-type]
    ended = recorder.get_run(run_id)
    assert ended.status == status
    assert ended.end_time_s is not None
    assert ended.end_time_s >= ended.start_time_s
    recorder.reopen_run(run_id)
    assert (recorder.get_run(run_id).status, recorder.get_run(run_id).end_time_s) == ("RUNNING", None)
    recorder.end_run(run_id, "FINISHED")
    assert recorder.get_run(run_id).status == "FINISHED"


def test_a_past_run_keeps_its_times(recorder: Recorder) -> None:
    run_id = recorder.create_run("old", "study", start_time_s=1_600_000_000.5)
    recorder.end_run(run_id, "FINISHED", end_time_s=1_600_000_100.25)
    record = recorder.get_run(run_id)
    assert (record.start_time_s, record.end_time_s) == (1_600_000_000.5, 1_600_000_100.25)


def test_find_by_tags_and_status_newest_first(make_recorder: Callable[[], Recorder]) -> None:
    recorder = make_recorder()
    old = recorder.create_run("old", "detect", tags={"k": "it's", "x": "1"}, start_time_s=100.0)
    new = recorder.create_run("new", "detect", tags={"k": "it's", "x": "2"}, start_time_s=200.0)
    recorder.create_run("other", "detect", tags={"k": "no"})
    recorder.end_run(old, "FINISHED")
    again = make_recorder()
    assert [record.run_id for record in again.find_runs({"k": "it's"})] == [new, old]
    assert [record.run_id for record in again.find_runs({"k": "it's", "x": "1"})] == [old]
    assert [record.run_id for record in again.find_runs({"k": "it's"}, "RUNNING")] == [new]
    assert [record.run_id for record in again.find_runs(status="FINISHED")] == [old]
    assert again.find_runs({"k": "absent"}) == []
    assert len(again.find_runs()) == 3


def test_log_input(recorder: Recorder) -> None:
    run_id = recorder.create_run("in", "finetune")
    recorder.log_input(run_id, "train", "d" * 64, "/data/ü.jsonl", "training")
    recorder.log_input(run_id, "train", "d" * 64, "/data/ü.jsonl", "training")
    expected = RunInput(name="train", digest="d" * 36, source="/data/ü.jsonl", context="training")
    assert recorder.get_run(run_id).inputs == (expected,)


def test_threads_do_not_take_each_others_values(recorder: Recorder) -> None:
    parent = recorder.create_run("parent", "study")
    ids: dict[int, str] = {}

    def work(number: int) -> None:
        ids[number] = recorder.create_run(f"run {number}", "detect", parent)
        for step in range(5):
            recorder.log_metrics(ids[number], {"value": number}, step)
        recorder.set_tags(ids[number], {"number": str(number)})
        recorder.set_tags(parent, {f"child{number}": ids[number]})
        recorder.end_run(ids[number], "FINISHED")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == [0, 1, 2, 3]
    for number, run_id in ids.items():
        record = recorder.get_run(run_id)
        assert (record.name, record.metrics, record.tags["number"]) == (f"run {number}", {"value": number}, str(number))
        assert recorder.get_run(parent).tags[f"child{number}"] == run_id


@pytest.mark.parametrize("name", ["", "a=b", "a,b", "a//b", "/a", "a/../b", "x" * 251])
def test_names_no_store_can_hold_are_refused(recorder: Recorder, name: str) -> None:
    run_id = recorder.create_run("names", "study")
    with pytest.raises(InputError, match="metric name must be at most 250 letters"):
        recorder.log_metrics(run_id, {name: 1.0})
    with pytest.raises(InputError, match="param name must be"):
        recorder.log_params(run_id, {name: 1.0})
    with pytest.raises(InputError, match="tag name must be"):
        recorder.set_tags(run_id, {name: "1"})


@pytest.mark.parametrize("run_id", [UNKNOWN_RUN, "no such run", "../x"])
def test_an_unknown_run_is_refused_everywhere(recorder: Recorder, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    calls: list[Callable[[], object]] = [
        lambda: recorder.get_run(run_id),
        lambda: recorder.log_params(run_id, {"a": 1}),
        lambda: recorder.log_metrics(run_id, {"a": 1.0}),
        lambda: recorder.set_tags(run_id, {"a": "1"}),
        lambda: recorder.log_input(run_id, "a", "b", "c", "d"),
        lambda: recorder.log_artifacts(run_id, tmp_path / "f"),
        lambda: recorder.end_run(run_id, "FINISHED"),
        lambda: recorder.reopen_run(run_id),
        lambda: recorder.artifact_path(run_id),
        lambda: recorder.metric_history(run_id),
        lambda: recorder.create_run("child", "study", run_id),
    ]
    for call in calls:
        with pytest.raises(InputError, match="run_id must be a recorded run"):
            call()


def test_new_artifacts_lie_below_the_artifact_root(recorder: Recorder, tmp_path: Path) -> None:
    top = recorder.create_run("top", "study")
    for run_id in (top, recorder.create_run("nested", "detect", top)):
        parent = recorder.get_run(run_id).parent_run_id
        root = recorder.artifact_root(parent)
        assert root is not None
        assert recorder.artifact_path(run_id).is_relative_to(root)


def test_watching_the_host_changes_nothing_when_off(recorder: Recorder) -> None:
    run_id = recorder.create_run("watch", "study")
    with recorder.watch_host(run_id):
        recorder.log_metrics(run_id, {"a": 1.0})
    assert recorder.get_run(run_id).metrics == {"a": 1.0}
