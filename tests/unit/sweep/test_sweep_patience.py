"""A storage that is away, unwritable or full: waited for, with a message; in the end a sweep stops and can go on."""

from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import Fake, FakeSweep, fake_sweep
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file
from sqlalchemy.exc import DatabaseError, DataError, OperationalError
from storages import run_of, states_of, trials_of

from rhstudy.errors import AwayStorageError, StudyError
from rhstudy.sweep import patience as patience_module
from rhstudy.sweep.guard import FileGuard, connect_arguments
from rhstudy.sweep.patience import Patience, is_away


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience_module, "time", clock)
    return clock


def failing(times: int) -> Any:
    """A function that fails so often, then gives how often it was called."""
    calls = []

    def call() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise ConnectionRefusedError("nobody there")
        return len(calls)

    return call


def test_it_waits_longer_and_longer_and_says_so_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("postgresql://ada:secret@host/db")
    patience.wait_up_to(600)
    assert patience.call(failing(14)) == 15
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, *[10.0] * 7]
    assert caplog.messages == [
        "storage postgresql://***@host/db is away, trying again for 600 s (ConnectionRefusedError: nobody there)",
        "storage postgresql://***@host/db is away, trying again for 537 s (ConnectionRefusedError: nobody there)",
        "storage postgresql://***@host/db is back",
    ]
    assert patience.back_at == clock.now


def test_in_the_end_it_gives_up_and_then_waits_for_nothing(clock: Clock) -> None:
    patience = Patience("postgresql://ada:secret@host/db")
    patience.wait_up_to(60)
    with pytest.raises(AwayStorageError, match=r"storage must answer, got 'postgresql://\*\*\*@host/db'\. Start the"):
        patience.call(failing(100))
    assert 60 <= sum(clock.slept) < 75
    again = failing(100)
    with pytest.raises(AwayStorageError):
        patience.call(again)
    with pytest.raises(ConnectionRefusedError):
        again()


def test_other_errors_are_nobodys_to_wait_for(clock: Clock) -> None:
    patience = Patience("here")
    patience.wait_up_to(60)
    with pytest.raises(ZeroDivisionError):
        patience.call(lambda: 1 / 0)
    assert clock.slept == []


def test_a_call_inside_another_is_a_part_of_it(clock: Clock) -> None:
    patience, inner, outer = Patience("here"), failing(1), []
    patience.wait_up_to(60)

    def step() -> int:
        outer.append(1)
        return patience.call(inner)

    assert patience.call(step) == 2
    assert (len(outer), clock.slept) == (2, [0.1])


def lost_connection(message: str) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("SELECT 1", {}, Exception(message))
    return error


def test_what_counts_as_away() -> None:
    wrong = StorageInternalError("An exception is raised during the commit.")
    wrong.__cause__ = DataError("INSERT", {}, Exception("value too long"))
    assert is_away(lost_connection("server closed the connection"))
    assert is_away(OSError(errno.ENOSPC, "No space left on device"))
    assert is_away(DatabaseError("SELECT 1", {}, Exception("error with status PGRES_TUPLES_OK")))
    assert not is_away(wrong)
    assert not is_away(StudyError("a recipe's own"))
    assert not is_away(ValueError("a bug"))


@pytest.fixture
def shared(world: Path, tmp_path: Path) -> FakeSweep:
    """A sweep whose journal has a folder of its own, as on a network drive."""
    (tmp_path / "drive").mkdir()
    return fake_sweep(world, tmp_path, num_trials=4, storage=str(tmp_path / "drive" / "fake.journal"))


def unmounted(sweep: FakeSweep, trial: int, away_s: float) -> Fake:
    """Takes the journal's folder away in the midst of a trial, and brings it back."""
    drive, elsewhere = sweep.folder / "drive", sweep.folder / "elsewhere"

    def before(number: int) -> None:
        if number == trial:
            drive.rename(elsewhere)
            if away_s:
                threading.Timer(away_s, lambda: elsewhere.rename(drive)).start()

    return Fake(before=before)


def test_a_journal_that_comes_back_loses_nothing(shared: FakeSweep, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    facts = shared(unmounted(shared, 2, away_s=0.5)).facts
    assert (facts["num_complete"], facts["num_lost_workers"]) == (4, 0)
    text = "\n".join(caplog.messages)
    assert f"storage {shared.config.storage} is away, trying again for 600 s (FileNotFoundError: " in text
    assert f"storage {shared.config.storage} is back" in text


def test_a_journal_that_stays_away_stops_the_sweep_which_goes_on_later(shared: FakeSweep) -> None:
    with pytest.raises(AwayStorageError, match=r"storage must answer, got '.*fake\.journal'\. Start the same command"):
        shared(unmounted(shared, 2, away_s=0.0), patience_s=0.2)
    assert [run.status for run in run_of(shared, "sweep")] == ["FAILED"]
    assert sorted(run.status for run in run_of(shared, "trial")) == ["FAILED", "FINISHED"]
    (shared.folder / "elsewhere").rename(shared.folder / "drive")
    facts = shared().facts
    assert (facts["num_complete"], facts["num_lost_workers"]) == (4, 1)
    assert states_of(shared) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    (parent,) = run_of(shared, "sweep")
    assert (parent.status, parent.tags["rhstudy.error"]) == ("FINISHED", "")


def fill_disk(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> threading.Event:
    """From the event `full` on, half of each line is written to a journal and the rest finds no space, `until` then."""
    append, full = JournalFileBackend.append_logs, threading.Event()

    def write(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        if not full.is_set() or until.is_set():
            return append(backend, logs)
        with get_lock_file(backend._lock), open(backend._file_path, "ab") as file:
            file.write(b'{"op_code": 4, "worker')
        raise OSError(errno.ENOSPC, "No space left on device", backend._file_path)

    monkeypatch.setattr(JournalFileBackend, "append_logs", write)
    return full


def test_a_full_disk_under_the_journal_is_waited_for(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = threading.Event()
    full = fill_disk(monkeypatch, freed)

    def before(number: int) -> None:
        if number == 2:
            full.set()
            threading.Timer(0.4, freed.set).start()

    assert sweep(Fake(before=before)).facts["num_complete"] == 6
    lines = Path(sweep.config.storage).read_text().splitlines(keepends=True)
    assert all(line.startswith('{"op_code"') and line.endswith("}\n") for line in lines)


def test_a_disk_that_stays_full_stops_the_sweep_which_goes_on_later(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    full = fill_disk(monkeypatch, freed)
    fake = Fake(before=lambda number: full.set() if number == 2 else None)
    with pytest.raises(StudyError, match=r"(storage must answer|disk must have free space).*"):
        sweep(fake, patience_s=0.1)
    assert "RUNNING" not in {run.status for run in [*run_of(sweep, "sweep"), *run_of(sweep, "trial")]}
    freed.set()
    assert sweep().facts["num_complete"] == 6


def test_a_recipe_that_finds_the_disk_full_is_not_to_blame(sweep: FakeSweep) -> None:
    def before(number: int) -> None:
        if number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StudyError, match="disk must have free space"):
        sweep(Fake(before=before))
    assert [run.status for run in run_of(sweep, "sweep")] == ["FAILED"]
    facts = sweep().facts
    assert (facts["num_complete"], facts["num_failed"], facts["num_lost_workers"]) == (6, 0, 1)
    assert trials_of(sweep)[2].params == trials_of(sweep)[1].params


def test_a_database_that_is_not_there_is_not_waited_for_at_the_start(sweep: FakeSweep) -> None:
    pytest.importorskip("psycopg2")
    began = time.monotonic()
    with pytest.raises(
        AwayStorageError, match=r"storage must answer, got 'postgresql\+psycopg2://\*\*\*@127.0.0.1:1/x'"
    ):
        sweep(storage="postgresql+psycopg2://ada:secret@127.0.0.1:1/x")
    assert time.monotonic() - began < 30


def test_a_lock_file_that_was_replaced_holds_nothing(tmp_path: Path) -> None:
    guard = FileGuard(tmp_path / "guard")
    guard.acquire()
    guard.require_held()
    (tmp_path / "guard").unlink()
    with pytest.raises(FileNotFoundError):
        guard.require_held()
    (tmp_path / "guard").touch()
    with pytest.raises(FileNotFoundError, match="was replaced"):
        guard.require_held()
    guard.release()


def test_what_the_url_says_of_its_connection_stands() -> None:
    url = "postgresql+psycopg2://ada@host/db?connect_timeout=99"
    assert "connect_timeout" not in connect_arguments(url)
    assert connect_arguments(url)["keepalives_idle"] == 30
    assert connect_arguments("mysql+pymysql://ada@host/db") == {"connect_timeout": 10}
    assert connect_arguments("sqlite:///sweep.db") == {"timeout": 60}
    assert connect_arguments("postgresql+pg8000://ada@host/db") == {}
