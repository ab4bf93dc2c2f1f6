from __future__ import annotations

import hashlib
import http.server
import json
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
import requests
from docker.errors import APIError, NotFound
from fake_engine import FakeEngine

from rhstudy.containers import engine
from rhstudy.containers.engine import EngineError, connect, explained, facts, num_host_gpus, wait_until_answering


def test_without_engine_it_is_said_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"unix://{tmp_path}/no.sock"
    monkeypatch.setenv("DOCKER_HOST", place)
    wanted = f"Docker engine must answer, got <no answer at {place}>. Start Docker, set DOCKER_HOST, or run on the host"
    with pytest.raises(EngineError, match=wanted) as caught:
        connect()
    assert caught.value.exit_code == 1
    assert str(facts()["docker_engine"]).startswith("none: Docker engine must answer")


def test_the_default_place_is_the_default_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert engine.address() == "unix:///var/run/docker.sock"


class _Answers(http.server.BaseHTTPRequestHandler):
    """An engine of which only /version and /_ping are there; it may hang before it answers."""

    hangs = threading.Event()

    def do_GET(self) -> None:
        content = b'{"ApiVersion": "1.45"}' if self.path.endswith("/version") else b"OK"
        if self.hangs.is_set():
            time.sleep(3)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass  # a client that did not wait for the answer


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of a socket on which `_Answers` does."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are too long for a socket's path
        server = _Server(f"{folder}/x.sock", _Answers)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"unix://{folder}/x.sock"
        _Answers.hangs.clear()
        server.shutdown()
        server.server_close()


def _use_context(home: Path, name: str, meta: str) -> None:
    folder = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(meta)
    (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def _meta(name: str, place: str) -> str:
    return json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": place, "SkipTLSVerify": False}}})


def test_without_docker_host_the_current_context_is_the_place(
    tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_context(tmp_path / "home", "rootless", _meta("rootless", listening))
    assert engine.address() == listening
    assert engine.is_answering(connect())
    gone = f"unix://{tmp_path}/gone.sock"
    monkeypatch.setenv("DOCKER_HOST", gone)
    assert engine.address() == gone


def test_a_context_that_nobody_answers_at_is_named(tmp_path: Path) -> None:
    place = f"unix://{tmp_path}/no.sock"
    _use_context(tmp_path / "home", "colima", _meta("colima", place))
    with pytest.raises(EngineError, match=f"Docker engine must answer, got <no answer at {place}>. Start Docker"):
        connect()


@pytest.mark.parametrize("meta", ["no JSON", "{}", '{"Name": "odd", "Metadata": {}, "Endpoints": {"docker": 3}}'])
def test_a_context_that_is_none_is_said(tmp_path: Path, meta: str) -> None:
    _use_context(tmp_path / "home", "odd", meta)
    with pytest.raises(EngineError, match="Docker engine must answer, got <no answer at an unreadable docker context>"):
        connect()


def test_an_engine_that_hangs_does_not_outlast_the_patience(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = docker.DockerClient(base_url=listening, timeout=engine.CALL_TIMEOUT_S)
    assert engine.is_answering(client)
    monkeypatch.setattr(engine, "_PROBE_S", 0.2)
    _Answers.hangs.set()
    began = time.monotonic()
    assert not wait_until_answering(client, -1)
    assert time.monotonic() - began < 2


def test_a_login_in_what_the_engine_says_is_masked_before_it_is_cut() -> None:
    with pytest.raises(EngineError) as caught, explained("work"):
        raise APIError("500", explanation=f"http://ada:{'p' * 500}@host is down")
    assert "ppp" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("echo 'GPU 0: NVIDIA A'; echo 'GPU 1: NVIDIA A'; echo '  MIG 1g.5gb'", 2),
        ("echo 'No devices were found'", 0),
        ("echo 'GPU 0: NVIDIA A'; exit 9", 0),
    ],
)
def test_gpus_are_what_the_driver_lists(programs: Callable[..., Path], script: str, number: int) -> None:
    assert num_host_gpus() == 0
    programs("nvidia-smi", script)
    assert num_host_gpus() == number


def test_rootless_and_desktop_engines_are_recognised() -> None:
    assert engine.is_rootless(FakeEngine(security=("name=seccomp", "name=rootless")))
    assert not engine.is_rootless(FakeEngine(security=("name=seccomp,profile=default",)))
    assert engine.is_desktop(FakeEngine(system="Docker Desktop"))
    assert not engine.is_desktop(FakeEngine())


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (APIError("400", explanation="no such runtime"), "work must be possible .* The engine says: no such runtime"),
        (NotFound("404: gone"), "work must be possible on this engine, got <refused>. The engine says: 404: gone"),
        (requests.exceptions.ReadTimeout(), "work must be answered by the engine, got <ReadTimeout>. Start the engine"),
        (ConnectionRefusedError(), "work must be answered by the engine, got <ConnectionRefusedError>"),
    ],
)
def test_what_the_engine_raises_is_explained(raised: Exception, said: str) -> None:
    with pytest.raises(EngineError, match=said), explained("work"):
        raise raised


def test_other_errors_are_not_the_engines() -> None:
    with pytest.raises(ZeroDivisionError), explained("work"):
        raise ZeroDivisionError


def test_an_engine_that_is_away_is_waited_for_no_longer_than_asked() -> None:
    assert wait_until_answering(FakeEngine(), 0)
    assert not wait_until_answering(FakeEngine(is_away=True), -1)
