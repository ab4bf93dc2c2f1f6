"""A real `mlflow server` with proxied artifacts, on sqlite or Postgres, and a gate before it that can be shut."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def tracking_server(folder: Path, store_uri: str) -> Iterator[str]:
    """Yields the address of an `mlflow server` that keeps its runs in `store_uri` and its artifacts in `folder`."""
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", uri.rpartition(":")[2]]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            limit = time.monotonic() + 120
            while not _answers(uri):
                assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
                assert time.monotonic() < limit, "the server did not answer in time"
                time.sleep(0.1)
            yield uri
        finally:
            os.killpg(process.pid, 9)  # the server's own session: its workers too
            process.wait()


def _postgres_tool(name: str) -> str | None:
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return str(found) if found else None


@dataclass
class Postgres:
    """A Postgres server of its own in `folder`, which can be stopped and started again."""

    folder: Path
    port: int
    pg_ctl: str
    user: str | None
    options: str = ""

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://rhstudy@127.0.0.1:{self.port}/postgres"

    def call(self, *command: str) -> None:
        subprocess.run(
            command, cwd="/", user=self.user, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 {self.options}"
        self.call(self.pg_ctl, "-D", f"{self.folder}/db", "-o", options, "-l", f"{self.folder}/log", "-w", "start")

    def stop(self) -> None:
        """At once, whatever its clients do."""
        self.call(self.pg_ctl, "-D", f"{self.folder}/db", "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def postgres_server(options: str = "-F") -> Iterator[Postgres]:
    """Yields a Postgres of its own, by default without fsync; skips where there is none."""
    pytest.importorskip("psycopg2", reason="no Postgres driver: pip install psycopg2-binary")
    initdb, pg_ctl = _postgres_tool("initdb"), _postgres_tool("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("no Postgres here: initdb and pg_ctl are not installed")
    user = None
    if os.geteuid() == 0:  # Postgres refuses to run as root
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("Postgres does not run as root and there is no user postgres")
    # Not below pytest's folder, which no other user may enter; and a socket's path must be short.
    data = Path(tempfile.mkdtemp(prefix="rhstudy-pg.", dir="/tmp"))
    if user is not None:
        shutil.chown(data, user)
    server = Postgres(data, free_port(), pg_ctl, user, options)
    try:
        server.call(initdb, "-D", f"{data}/db", "-A", "trust", "-U", "rhstudy", "--no-sync")
        server.start()
        yield server
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            server.stop()
        shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Yields the store URI of a Postgres of its own; skips where there is none."""
    with postgres_server() as server:
        yield server.url


class Gate:
    """Passes connections on to a server while it is open; shut, it refuses them and breaks those there are."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rpartition(":")[2]))
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._pairs: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        sockets = [*self._pairs, *([self._listener] if self._listener else [])]
        self._listener, self._pairs = None, []
        for item in sockets:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                inner, _ = listener.accept()
                outer = socket.create_connection(self._target)
            except OSError:
                return
            self._pairs += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
