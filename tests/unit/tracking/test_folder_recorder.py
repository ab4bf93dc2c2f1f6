from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rhstudy.errors import InputError, StudyError
from rhstudy.tracking import atomic_files
from rhstudy.tracking.folder_recorder import FolderRecorder


@pytest.fixture
def recorder(tmp_path: Path) -> FolderRecorder:
    return FolderRecorder(tmp_path / "runs")


def test_layout(recorder: FolderRecorder, tmp_path: Path) -> None:
    run_id = recorder.create_run("r", "detect")
    recorder.log_metrics(run_id, {"a": float("nan")}, 2)
    folder = tmp_path / "runs" / run_id
    assert sorted(item.name for item in folder.iterdir()) == [".reserve", "artifacts", "metrics.jsonl", "run.json"]
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail).items() >= {"key": "a", "value": "NaN", "step": 2}.items()
    assert json.loads((folder / "run.json").read_text())["name"] == "r"
    recorder.end_run(run_id, "FINISHED")
    assert sorted(item.name for item in folder.iterdir()) == ["artifacts", "metrics.jsonl", "run.json"]


def test_a_line_cut_short_by_a_kill_is_dropped_and_the_next_one_whole(recorder: FolderRecorder) -> None:
    run_id = recorder.create_run("r", "detect")
    recorder.log_metrics(run_id, {"a": 1.0}, 1)
    path = recorder.root / run_id / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"key": "a", "val')
    assert [point.step for point in recorder.metric_history(run_id)] == [1]
    recorder.log_metrics(run_id, {"a": 3.0}, 3)
    assert [point.step for point in recorder.metric_history(run_id)] == [1, 3]
    assert path.read_text().count("\n") == 2


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(recorder: FolderRecorder) -> None:
    run_id = recorder.create_run("r", "detect")
    (recorder.root / run_id / "metrics.jsonl").write_text('rubbish\n{"key": 1}\n')
    with pytest.raises(StudyError, match=r"metrics\.jsonl must hold one metric point a line, got 'rubbish' .* line 1"):
        recorder.metric_history(run_id)


def test_an_unreadable_run_file_is_named(recorder: FolderRecorder) -> None:
    run_id = recorder.create_run("r", "detect")
    (recorder.root / run_id / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json must be readable JSON"):
        recorder.get_run(run_id)


def test_logged_artifacts_are_remembered_when_their_files_are_gone(recorder: FolderRecorder, tmp_path: Path) -> None:
    (tmp_path / "f" / "deep").mkdir(parents=True)
    (tmp_path / "f" / "deep" / "a.txt").write_text("abc")
    run_id = recorder.create_run("r", "detect")
    recorder.log_artifacts(run_id, tmp_path / "f", "sub")
    (recorder.artifact_path(run_id) / "sub/deep/a.txt").unlink()
    assert recorder.logged_artifacts(run_id) == {"sub/deep/a.txt": 3}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    atomic_files.write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]
