"""The lock of workers behind a proxy: one holder at a time, and none for ever."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from fakes import Fake, fake_sweep
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from rhstudy.errors import InputError, UnreachableStoreError
from rhstudy.sweep.proxy import is_lost_call, open_proxy
from rhstudy.sweep.token_guard import TokenGuard
from rhstudy.tracking.process import process_tags


def test_of_many_one_holds_the_token_at_a_time() -> None:
    storage = InMemoryStorage()
    inside: list[int] = []
    overlaps = 0

    def work(number: int) -> None:
        nonlocal overlaps
        guard = TokenGuard(storage, "many", stale_s=60.0)
        for _ in range(5):
            assert guard.acquire()
            inside.append(number)
            time.sleep(0.002)
            overlaps += len(inside) > 1
            inside.remove(number)
            guard.release()
            guard.release()  # of what is not held changes nothing

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert overlaps == 0
    trials = optuna.load_study(study_name="many.guard", storage=storage).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 20


@pytest.mark.parametrize("process", [{"rhstudy.host": socket.gethostname()}, {"rhstudy.host": "another"}, None])
def test_a_token_whose_holder_is_gone_is_ended(process: dict[str, str] | None) -> None:
    storage = InMemoryStorage()
    left = TokenGuard(storage, "left", stale_s=60.0)
    left.acquire()
    token = left._held
    assert token is not None
    dead = {} if process is None else {**process_tags(), **process, "rhstudy.process_start_time": "long ago"}
    storage.set_trial_user_attr(token, "process", dead)
    on_this_host = bool(process) and process["rhstudy.host"] == socket.gethostname()
    other = TokenGuard(storage, "left", stale_s=60.0 if on_this_host else 0.2)
    began = time.monotonic()
    left.require_held()
    assert other.acquire()
    other.require_held()
    with pytest.raises(ConnectionError, match="another worker ended the token"):
        left.require_held()
    assert (time.monotonic() - began > 0.2) == (not on_this_host)
    left.release()  # it comes back: what it held is another's, and stays so
    assert storage.get_trial(token).state == TrialState.FAIL
    assert other._held is not None
    assert storage.get_trial(other._held).state == TrialState.RUNNING


SERVE = """
import sys
from optuna.storages import InMemoryStorage, run_grpc_proxy_server
run_grpc_proxy_server(InMemoryStorage(), host="127.0.0.1", port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    """Address of Optuna's proxy. It runs in a process of its own, as workers do: none may fork after using gRPC."""
    if importlib.util.find_spec("grpc") is None:
        pytest.skip("grpcio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVE, str(port)])
    yield f"grpc://127.0.0.1:{port}"
    server.kill()
    server.wait()


def test_workers_behind_a_proxy_share_the_budget(world: Path, tmp_path: Path, proxy: str) -> None:
    sweep = fake_sweep(world, tmp_path, storage=proxy, num_trials=5)
    fake = Fake(seconds=0.05, log=tmp_path / "log")
    limit = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", int(proxy.rpartition(":")[2]))) and time.monotonic() < limit:
        time.sleep(0.1)
    for pid in [sweep.fork(fake) for _ in range(2)]:
        assert os.waitpid(pid, 0)[1] == 0
    runs = sweep.recorder.find_runs({"rhstudy.stage": "trial"})
    assert [run.status for run in runs] == ["FINISHED"] * 5
    assert {run.tags["rhstudy.sweep.trial"] for run in runs} == set("01234")
    assert sorted((tmp_path / "log").read_text().split()) == sorted(run.run_id for run in runs)
    assert [run.status for run in sweep.recorder.find_runs({"rhstudy.stage": "sweep"})] == ["FINISHED"]


def test_a_proxy_that_does_not_answer_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhstudy.sweep.proxy.READY_S", 0.2)
    with pytest.raises(UnreachableStoreError, match=r"storage must answer, got 'grpc://127\.0\.0\.1:1'"):
        open_proxy("grpc://127.0.0.1:1")


def test_without_grpcio_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**given: object) -> None:
        raise ImportError("no grpc")

    monkeypatch.setattr("rhstudy.sweep.proxy.GrpcStorageProxy", missing)
    with pytest.raises(InputError, match=r"storage must be one that this machine can open, .*rhstudy\[grpc\]"):
        open_proxy("grpc://proxy:13000")


def test_an_address_without_a_port_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"storage must be grpc://HOST:PORT, got 'grpc://proxy'"):
        fake_sweep(world, tmp_path, storage="grpc://proxy")()


def test_calls_that_no_server_answers_are_told_from_other_errors() -> None:
    lost = type("RpcError", (Exception,), {"__module__": "grpc"})
    assert is_lost_call(type("Inactive", (lost,), {})())
    assert not is_lost_call(ValueError())
