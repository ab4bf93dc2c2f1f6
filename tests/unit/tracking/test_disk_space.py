from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from stage_examples import ToyBody, toy_spec

from rhstudy.errors import StudyError
from rhstudy.tracking import disk_space
from rhstudy.tracking.disk_space import RESERVE_BYTES, copy_files, full_disk
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import run_stage

Usage = namedtuple("Usage", "total used free")


def reserves(recorder: Recorder) -> list[int]:
    (folder,) = recorder.folders()
    found = [*folder.glob("*/.reserve"), *folder.glob("mlartifacts/.reserves/*")]
    return [item.stat().st_size for item in found]


def test_a_running_run_holds_room_for_its_end_and_gives_it_back(recorder: Recorder) -> None:
    run_id = recorder.create_run("r", "detect")
    assert reserves(recorder) == [RESERVE_BYTES]
    recorder.end_run(run_id, "FAILED")
    assert reserves(recorder) == []
    recorder.reopen_run(run_id)
    assert reserves(recorder) == [RESERVE_BYTES]


def test_the_room_is_given_back_before_the_status_is_written(
    make_mlflow: Callable[[], MlflowRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make_mlflow()
    run_id = recorder.create_run("r", "detect")
    seen: list[list[int]] = []
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *args: seen.append(reserves(recorder)))
    recorder.end_run(run_id, "FAILED")
    assert seen == [[]]


def test_a_disk_full_from_the_start_starts_no_run(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_space.os, "fsync", full)
    body = ToyBody()
    with pytest.raises(StudyError, match="disk must have free space"):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert (body.calls, recorder.find_runs(), reserves(recorder)) == (0, [], [])


def test_files_that_cannot_fit_are_not_begun(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"12345")
    run_id = recorder.create_run("r", "detect")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10, 6, 4))
    with pytest.raises(StudyError, match=r"disk must have 5 bytes free, got <4 bytes free> \(.*artifacts"):
        recorder.log_artifacts(run_id, tmp_path / "f")
    assert not (recorder.artifact_path(run_id) / "a").exists()


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    for name in ("a", "b"):
        (tmp_path / "f" / name).write_text(name)
    copy = shutil.copy2

    def failing(source: Path, target: Path) -> Any:
        copy(source, target)
        if source.name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_space.shutil, "copy2", failing)
    with pytest.raises(OSError, match="No space left"):
        copy_files(tmp_path / "f", tmp_path / "g")
    assert list((tmp_path / "g").iterdir()) == []


def test_the_fullest_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {str(tmp_path): 5, "/": 3}
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10, 0, free[str(path)]))
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "got <3 bytes free> (/)" in str(full_disk(error, [tmp_path / "gone", Path("/")]))


@pytest.mark.parametrize(
    "error",
    [
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_full_disks_told_in_words_only(error: Exception, tmp_path: Path) -> None:
    assert "disk must have free space" in str(full_disk(error, [tmp_path]))


def test_a_full_disk_behind_another_error(tmp_path: Path) -> None:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "gone" / "x"))
    assert f"({tmp_path})" in str(full_disk(error, [Path("/")]))
    assert full_disk(OSError(errno.EACCES, "Permission denied"), [tmp_path]) is None
