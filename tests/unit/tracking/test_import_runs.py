from __future__ import annotations

import math
from pathlib import Path

import pytest
from stage_examples import ToyBody, ToyConfig, inputs_of, toy_spec

from rhstudy.errors import InputError
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.groups import group_run
from rhstudy.tracking.import_runs import import_folder_runs
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import run_stage


@pytest.fixture
def folder(tmp_path: Path) -> FolderRecorder:
    """A study of two stages, one reading the other, recorded on a machine without MLflow."""
    away = FolderRecorder(tmp_path / "away")
    with group_run(away, "study", digest="d", config=ToyConfig()) as study:
        spec = toy_spec(tmp_path / "work", stage="make-data", run_name="data", parent_run_id=study)
        data = run_stage(away, spec, ToyBody()).artifacts
        run_stage(away, toy_spec(tmp_path / "work", parent_run_id=study, inputs=inputs_of(data)), ToyBody("x"))
    return away


def by_name(recorder: Recorder) -> dict[str, str]:
    return {record.name: record.run_id for record in recorder.find_runs()}


def make_target(tmp_path: Path) -> FolderRecorder:
    return FolderRecorder(tmp_path / "home")


def test_everything_arrives(folder: FolderRecorder, recorder: Recorder, tmp_path: Path) -> None:
    imported = import_folder_runs(folder.root, recorder)
    assert [run.name for run in imported] == ["study", "data", "toy run"]
    assert not any(run.skipped or run.missing_artifacts for run in imported)
    new_ids = {run.folder_run_id: run.run_id for run in imported}
    for run in imported:
        old, new = folder.get_run(run.folder_run_id), recorder.get_run(run.run_id)
        assert (new.name, new.status, new.params) == (old.name, old.status, old.params)
        assert new.parent_run_id == new_ids.get(old.parent_run_id, "")
        assert (new.start_time_s, new.end_time_s) == pytest.approx((old.start_time_s, old.end_time_s), abs=0.001)
        same = {key: value for key, value in old.tags.items() if not key.endswith(".run_id")}
        assert same.items() <= new.tags.items()
        assert new.inputs == old.inputs
        assert new.tags["rhstudy.imported_from"] == run.folder_run_id
        for before, after in zip(
            folder.metric_history(run.folder_run_id), recorder.metric_history(run.run_id), strict=True
        ):
            assert (after.key, after.step) == (before.key, before.step)
            assert after.value == before.value or (math.isnan(after.value) and math.isnan(before.value))
            assert after.timestamp_s == pytest.approx(before.timestamp_s, abs=0.001)
    detect, data = imported[2], imported[1]
    assert recorder.get_run(detect.run_id).tags["rhstudy.input.train_data.run_id"] == data.run_id
    assert run_stage(recorder, toy_spec(tmp_path / "work", stage="make-data"), ToyBody()).run_id == data.run_id


def test_twice_adds_nothing(folder: FolderRecorder, tmp_path: Path) -> None:
    target = make_target(tmp_path)
    first = import_folder_runs(folder.root, target)
    # As text, because NaN differs from itself.
    points = [repr(target.metric_history(run.run_id)) for run in first]
    second = import_folder_runs(folder.root, target)
    assert [run.run_id for run in second] == [run.run_id for run in first]
    assert all(run.skipped for run in second)
    assert [repr(target.metric_history(run.run_id)) for run in second] == points


def test_an_import_that_was_killed_is_completed_in_mlflow(
    folder: FolderRecorder, make_mlflow: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder: Recorder = make_mlflow()  # type: ignore[operator]
    with monkeypatch.context() as patch:
        patch.setattr(type(recorder), "log_input", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_folder_runs(folder.root, recorder)
    imported = import_folder_runs(folder.root, recorder)
    assert len(recorder.find_runs()) == 3
    assert [run.skipped for run in imported] == [True, True, False]
    detect = imported[2]
    before, after = folder.metric_history(detect.folder_run_id), recorder.metric_history(detect.run_id)
    assert len(before) == len(after)
    assert recorder.get_run(detect.run_id).status == "FINISHED"


def test_files_left_behind_are_listed_and_added_later(folder: FolderRecorder, tmp_path: Path) -> None:
    target = make_target(tmp_path)
    data = by_name(folder)["data"]
    path = folder.artifact_path(data) / "scores.txt"
    path.rename(tmp_path / "left behind")
    imported = {run.name: run for run in import_folder_runs(folder.root, target)}
    assert imported["data"].missing_artifacts == ("scores.txt",)
    assert target.get_run(imported["data"].run_id).tags["rhstudy.missing_artifacts"] == "scores.txt"
    assert "rhstudy.missing_artifacts" not in target.get_run(imported["toy run"].run_id).tags
    (tmp_path / "left behind").rename(path)
    again = {run.name: run for run in import_folder_runs(folder.root, target)}
    assert again["data"].missing_artifacts == ()
    assert target.get_run(again["data"].run_id).tags["rhstudy.missing_artifacts"] == ""
    assert (target.artifact_path(again["data"].run_id) / "scores.txt").is_file()


def test_a_run_that_never_ended_arrives_as_killed(recorder: Recorder, tmp_path: Path) -> None:
    away = FolderRecorder(tmp_path / "away")
    run_id = away.create_run("r", "detect", start_time_s=1000.0)
    away.log_metrics(run_id, {"a": 1.0})
    (run,) = import_folder_runs(away.root, recorder)
    record = recorder.get_run(run.run_id)
    assert (run.status, record.status) == ("KILLED", "KILLED")
    assert "was recorded as RUNNING" in record.tags["rhstudy.import_note"]
    assert record.end_time_s == pytest.approx(away.metric_history(run_id)[0].timestamp_s, abs=0.001)


def test_a_parent_left_behind_is_named(tmp_path: Path) -> None:
    away, target = FolderRecorder(tmp_path / "away"), make_target(tmp_path)
    parent = away.create_run("study", "study")
    away.create_run("child", "detect", parent)
    (away.root / parent).rename(tmp_path / "left behind")
    (run,) = import_folder_runs(away.root, target)
    assert target.get_run(run.run_id).tags["rhstudy.missing_parent"] == parent


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"import-runs folder must hold <run id>/run\.json files"):
        import_folder_runs(tmp_path / name, make_target(tmp_path))
