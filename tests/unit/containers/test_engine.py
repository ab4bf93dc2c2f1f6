from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
