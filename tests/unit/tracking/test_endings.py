from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stage_examples import toy_spec

from rhstudy.errors import InputError, InterruptedRunError, StudyError
from rhstudy.tracking.endings import catch_interrupts, explained_launch
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageRun, run_stage


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder_and_its_free_bytes(recorder: Recorder, tmp_path: Path, number: int) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        raise OSError(number, os.strerror(number), str(run.work_dir / "checkpoint"))

    with pytest.raises(StudyError, match=rf"disk must have free space, got <\d+ bytes free> \({tmp_path}/work"):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    (record,) = recorder.find_runs()
    assert (record.status, record.tags["rhstudy.exit_code"]) == ("FAILED", "1")
    assert record.tags["rhstudy.error"].startswith("disk must have free space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_really_full_device(recorder: Recorder, tmp_path: Path) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        Path("/dev/full").write_text("x")
        return {}

    with pytest.raises(StudyError, match="disk must have free space"):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert [record.status for record in recorder.find_runs()] == ["FAILED"]


def test_output_is_removed_before_the_failure_is_recorded(tmp_path: Path) -> None:
    """A disk filled by the stage's own output has room again for the record."""
    seen: list[bool] = []

    class Watching(FolderRecorder):
        def end_run(self, *args: Any, **kwargs: Any) -> None:
            seen.append(any((tmp_path / "work").glob("*.output")))
            super().end_run(*args, **kwargs)

    def body(run: StageRun) -> Mapping[str, Any]:
        (run.output_dir / "large").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StudyError, match="disk must have free space"):
        run_stage(Watching(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
    assert seen == [False]


class Broken(FolderRecorder):
    """Cannot write any more once its run has started."""

    def end_run(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def set_tags(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")


def test_the_original_error_survives_a_recorder_that_cannot_write(tmp_path: Path) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        raise RuntimeError("the real reason")

    with pytest.raises(RuntimeError, match="the real reason") as caught:
        run_stage(Broken(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
    assert any("Read-only file system" in note for note in caught.value.__notes__)


LOGIN = "http://ada:pw@host is down"


@pytest.mark.parametrize("error", [StudyError(LOGIN), InputError(LOGIN), RuntimeError(LOGIN), OSError(5, LOGIN)])
def test_no_login_reaches_a_runs_record(recorder: Recorder, tmp_path: Path, error: Exception) -> None:
    def body(run: StageRun) -> Mapping[str, Any]:
        raise error

    with pytest.raises(type(error)):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    (record,) = recorder.find_runs()
    assert "http://***@host is down" in record.tags["rhstudy.error"]
    texts = [path.read_text() for path in recorder.artifact_path(record.run_id).rglob("*.txt")]
    assert not [text for text in [*record.tags.values(), *texts] if "ada" in text]
    assert isinstance(error, InputError) or "http://***@host" in "".join(texts)


def test_no_login_reaches_the_run_of_a_refused_launch(tmp_path: Path) -> None:
    class Launched(FolderRecorder):
        def attachable_run_id(self) -> str:
            return "launched"

    recorder = Launched(tmp_path / "runs")
    with pytest.raises(InputError), explained_launch(recorder, "detect"):
        raise InputError(LOGIN)
    (record,) = recorder.find_runs()
    assert (record.tags["rhstudy.exit_code"], record.tags["rhstudy.error"]) == ("2", "http://***@host is down")


def test_no_login_reaches_the_note_that_nothing_was_recorded(tmp_path: Path) -> None:
    class Refusing(FolderRecorder):
        def set_tags(self, *args: Any, **kwargs: Any) -> None:
            raise OSError(LOGIN)

    def body(run: StageRun) -> Mapping[str, Any]:
        raise RuntimeError("the real reason")

    with pytest.raises(RuntimeError, match="the real reason") as caught:
        run_stage(Refusing(tmp_path / "runs"), toy_spec(tmp_path / "work"), body)
    assert [note for note in caught.value.__notes__ if "http://***@host is down" in note]


def test_an_ignored_signal_stays_ignored() -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_interrupts() as interrupts:
            interrupts.deliver()
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.received == ""
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_signal_that_is_held_back_surfaces_at_the_end() -> None:
    with pytest.raises(InterruptedRunError, match="SIGTERM"), catch_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
