"""A disk that is really full (a small tmpfs), under the journal and under the runs: said, waited for, gone on from."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Fake, FakeSweep, fake_sweep
from storages import run_of, states_of, trials_of

from rhstudy.errors import AwayStorageError, StudyError
from rhstudy.tracking.folder_recorder import FolderRecorder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes of their own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    handle = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    size = 65536
    while size:
        try:
            os.write(handle, bytes(size))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 2
    os.close(handle)


def filling(disk: Path, trial: int, freed_after_s: float = 0.0) -> Fake:
    """Fills the disk in the midst of a trial, for a while or for good."""

    def before(number: int) -> None:
        if number == trial:
            fill(disk)
            if freed_after_s:
                threading.Timer(freed_after_s, (disk / "filler").unlink).start()

    return Fake(before=before)


def values_of(sweep: FakeSweep) -> list[float | None]:
    return [trial.value for trial in trials_of(sweep) if trial.state.name == "COMPLETE"]


def assert_goes_on(sweep: FakeSweep, before: list[float | None]) -> None:
    """With room again the same command does what is left, and what was done stands."""
    facts = sweep().facts
    assert (facts["num_complete"], facts["num_failed"]) == (sweep.config.num_trials, 0)
    assert values_of(sweep)[: len(before)] == before
    assert [run.status for run in run_of(sweep, "sweep")] == ["FINISHED"]
    assert "RUNNING" not in {run.status for run in run_of(sweep, "trial")}


def test_a_journal_on_a_full_disk_is_waited_for(
    world: Path, tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=4, storage=str(disk / "fake.journal"))
    facts = sweep(filling(disk, 2, freed_after_s=0.5)).facts
    assert (facts["num_complete"], facts["num_failed"]) == (4, 0)
    assert facts["num_lost_workers"] <= 1  # a claim that was cut is made anew
    said = "\n".join(caplog.messages)
    assert f"storage {disk}/fake.journal is away, trying again for 600 s (OSError: [Errno 28] No space left" in said
    assert f"storage {disk}/fake.journal is back" in said


def test_a_journal_on_a_disk_that_stays_full_stops_the_sweep_which_goes_on(
    world: Path, tmp_path: Path, disk: Path
) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=9, storage=str(disk / "fake.journal"))
    with pytest.raises(
        AwayStorageError, match=r"storage must answer, got '.*/disk/fake\.journal'\. Start the same .*28"
    ):
        sweep(filling(disk, 3), patience_s=0.2)
    assert [run.status for run in run_of(sweep, "sweep")] == ["FAILED"]
    before = values_of(sweep)
    assert 2 <= len(before) < 9  # the journal's last page takes a little more
    (disk / "filler").unlink()
    assert_goes_on(sweep, before)


def test_runs_on_a_full_disk_stop_the_sweep_which_goes_on(
    world: Path, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=4)
    monkeypatch.setattr(FakeSweep, "recorder", property(lambda _: FolderRecorder(str(disk / "runs"))))
    with pytest.raises(
        StudyError, match=r"disk must have free space, got <\d+ bytes free> \(.*/disk/runs.*\)\. Free some"
    ):
        sweep(filling(disk, 3))
    before = values_of(sweep)
    assert (len(before), states_of(sweep)[2]) == (2, "FAIL")
    with contextlib.suppress(StudyError):  # still full: it cannot begin, and breaks nothing
        sweep()
    (disk / "filler").unlink()
    assert_goes_on(sweep, before)
