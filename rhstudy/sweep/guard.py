"""One worker at a time: what is looked up and then decided in a sweep's storage is done under one lock.

The lock dies with the process that holds it: a file lock beside a journal or sqlite file, an advisory lock of a
database server. A file lock holds between machines where the file system hands locks on (NFS 4 does).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rhstudy.errors import require
from rhstudy.seeding import stream_seed

_log = logging.getLogger(__name__)
WAIT_S = 3600
POSTGRES_LIMITS = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip


@runtime_checkable
class Guard(Protocol):
    """A lock; releasing one that is not held changes nothing."""

    def acquire(self) -> bool:
        """Wait for the lock; True."""

    def release(self) -> None:
        """Let go of it."""

    def require_held(self) -> None:
        """Nothing, or an error of the storage when the lock was lost with the connection that held it."""


@contextlib.contextmanager
def holding(guard: Guard) -> Iterator[None]:
    """Hold `guard` inside the block."""
    guard.acquire()
    try:
        yield
    finally:
        guard.release()


class FileGuard:
    """A lock on a file of its own, which is left there."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1

    def acquire(self) -> bool:
        """See `Guard`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """See `Guard`."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def require_held(self) -> None:
        """See `Guard`."""
        if not os.path.samestat(os.fstat(self._handle), os.stat(self._path)):
            raise FileNotFoundError(errno.ENOENT, "the lock file was replaced", str(self._path))


class JournalLock(FileGuard):
    """The lock under which a journal is written; Optuna's own outlives a killed writer by half a minute.

    A disk that was full, or a kill, may have cut the last line: nobody was told that it was written, and with another
    line behind it the journal could not be read any more. It is dropped before the next one is written.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(journal.with_name(f"{journal.name}.writing"))
        self._journal = journal

    def acquire(self) -> bool:
        """See `Guard`."""
        super().acquire()
        try:
            _drop_cut_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True


def _drop_cut_line(journal: Path) -> None:
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        while kept:
            start = max(0, kept - 65536)
            file.seek(start)
            newline = file.read(kept - start).rfind(b"\n")
            kept = start if newline < 0 else start + newline + 1
            if newline >= 0:
                break
        if kept < end:
            file.truncate(kept)


class ServerGuard:
    """An advisory lock of PostgreSQL or MySQL, held by a connection of its own, with whose end it ends."""

    def __init__(self, url: str, name: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import Connection

        self._engine = create_engine(
            url, pool_size=1, isolation_level="AUTOCOMMIT", connect_args=connect_arguments(url)
        )
        backend = self._engine.url.get_backend_name()
        remedy = "Use postgresql+psycopg2://, mysql+pymysql://, sqlite:/// or the path of a journal file"
        served = backend in ("postgresql", "mysql", "mariadb")
        require(served, "storage", "be PostgreSQL, MySQL, sqlite or a path", backend, remedy)
        key = stream_seed(0, "rhstudy sweep", name)
        # MariaDB knows no lock without a time limit.
        mysql = (f"SELECT GET_LOCK('rhstudy-{key}', {WAIT_S})", f"SELECT RELEASE_LOCK('rhstudy-{key}')")
        postgres = (f"SELECT 1 FROM pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})")
        self._lock, self._unlock = postgres if backend == "postgresql" else mysql
        self._connection: Connection | None = None

    def acquire(self) -> bool:
        """See `Guard`."""
        from sqlalchemy import text

        self._connection = self._engine.connect()
        try:
            while self._connection.scalar(text(self._lock)) != 1:
                pass
        except BaseException:
            self._connection.invalidate()
            self._connection = None
            raise
        return True

    def release(self) -> None:
        """See `Guard`."""
        from sqlalchemy import text

        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if connection.scalar(text(self._unlock)) in (1, True):
                connection.close()
                return
        except Exception as error:  # the lock went with the server
            _log.debug("the lock of the sweep was lost: %s", error)
        with contextlib.suppress(Exception):
            connection.invalidate()

    def require_held(self) -> None:
        """See `Guard`."""
        from sqlalchemy import text

        if self._connection is not None:
            self._connection.execute(text("SELECT 1"))


def connect_arguments(url: str) -> dict[str, Any]:
    """What a driver is told so that a server that fell silent is noticed within a minute; what the URL says stands."""
    from sqlalchemy import make_url

    parsed = make_url(url)
    known = {
        "psycopg2": POSTGRES_LIMITS,
        "psycopg": POSTGRES_LIMITS,
        "pymysql": {"connect_timeout": 10},
        "mysqldb": {"connect_timeout": 10},
        "pysqlite": {"timeout": 60},
    }
    limits = known.get(parsed.get_driver_name(), {})
    return {name: value for name, value in limits.items() if name not in parsed.query}
