from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound
from fake_engine import FakeContainer, FakeEngine

from rhstudy.containers import container as container_module
from rhstudy.containers import runtime
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.container import Container, Ended
from rhstudy.containers.engine import EngineError
from rhstudy.containers.image import Image
from rhstudy.containers.runtime import HostProcess, Job, engine_for, make_container, start
from rhstudy.tracking.recorder import Recorder

IMAGE = Image(name="rhstudy:x", image_id="sha256:1", repo_digest="", size_bytes=5, git={"RHSTUDY_GIT_COMMIT": "abc"})
SERVER = "http://tracking.example.org:5000"


def made(here: Path, engine: FakeEngine, uri: str = SERVER, **values: Any) -> Container:
    job = Job(command=["rhstudy", "study"], working_dir=here, uri=uri, environment={"MLFLOW_RUN_ID": "r", "BOTH": "j"})
    return make_container(engine, IMAGE, job, ContainerConfig(**values), "launch-1")  # type: ignore[arg-type]


def asked(here: Path, engine: FakeEngine, uri: str = SERVER, **values: Any) -> Mapping[str, Any]:
    made(here, engine, uri, **values)
    return engine.made[-1].asked


@pytest.mark.parametrize(
    ("uri", "network", "chosen"),
    [
        (SERVER, "auto", None),
        ("http://localhost:5000", "auto", "host"),
        ("http://127.0.0.1:5000", "auto", "host"),
        ("http://localhost:5000", "mine", "mine"),
        (SERVER, "host", "host"),
        ("sqlite:///mlflow.db", "auto", None),
    ],
)
def test_the_network_is_the_hosts_when_the_server_is_here(here: Path, uri: str, network: str, chosen: str) -> None:
    given = asked(here, FakeEngine(), uri, network=network)
    assert given["network_mode"] == chosen
    wanted = uri if uri.startswith("http") else f"sqlite:///{here}/mlflow.db"
    assert given["environment"]["MLFLOW_TRACKING_URI"] == wanted


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("http://localhost:5000", "http://host.docker.internal:5000"),
        ("http://LocalHost", "http://host.docker.internal"),
        (
            "https://localhost:secret@127.0.0.1:5000/path?x=1",
            "https://localhost:secret@host.docker.internal:5000/path?x=1",
        ),
        ("http://[::1]:5000", "http://host.docker.internal:5000"),
        (SERVER, SERVER),
    ],
)
def test_docker_desktop_reaches_the_host_by_name(here: Path, uri: str, inside: str) -> None:
    given = asked(here, FakeEngine(system="Docker Desktop"), uri)
    assert given["environment"]["MLFLOW_TRACKING_URI"] == inside
    assert given["network_mode"] is None


def test_what_the_engine_is_asked_for(here: Path, programs: Callable[..., Path]) -> None:
    given = asked(here, FakeEngine(), memory="4g", shm_size="", environment={"BOTH": "config"})
    assert (given["image"], given["command"]) == ("sha256:1", ["rhstudy", "study"])
    assert given["name"] == given["hostname"] == "rhstudy-launch-1"
    assert (given["mem_limit"], given["shm_size"], given["device_requests"]) == ("4g", None, [])
    assert given["working_dir"] == str(here)
    environment = given["environment"]
    assert environment["RHSTUDY_LAUNCH"] == given["labels"]["rhstudy.launch"] == "launch-1"
    assert environment["RHSTUDY_LAUNCHER"] == given["labels"]["rhstudy.launcher"]
    assert (environment["RHSTUDY_GIT_COMMIT"], environment["MLFLOW_RUN_ID"]) == ("abc", "r")
    assert environment["BOTH"] == "config"
    assert asked(here, FakeEngine(security=("name=rootless",)))["user"] == "0:0"


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        ("none", []),
        ("all", [(-1, None)]),
        ("auto", [(-1, None)]),
        ("0,2", [(None, ["0", "2"])]),
        ("3", [(None, ["3"])]),
    ],
)
def test_gpus_are_asked_for(here: Path, programs: Callable[..., Path], gpus: str, wanted: list[Any]) -> None:
    programs("nvidia-smi", "echo 'GPU 0: NVIDIA'")
    requests = asked(here, FakeEngine(), gpus=gpus)["device_requests"]
    assert [(item["Count"] or None, item["DeviceIDs"] or None) for item in requests] == wanted
    assert all(item["Capabilities"] == [["gpu"]] for item in requests)


def test_a_refused_container_says_what_to_do(here: Path) -> None:
    engine = FakeEngine(refuses_to_create='could not select device driver "" with capabilities: [[gpu]]')
    wanted = "creating the container must be possible on this engine, got <refused>. Install the NVIDIA"
    with pytest.raises(EngineError, match=wanted):
        made(here, engine, gpus="all")


def run(here: Path, engine: FakeEngine, **values: Any) -> tuple[Ended, str, list[str]]:
    written: list[str] = []
    ended = made(here, engine, **values).run(lambda text, is_error: written.append(text))
    return ended, "".join(written), engine.made[-1].calls


def test_output_memory_and_exit_code_of_a_run(here: Path) -> None:
    memory = {"usage": 900, "stats": {"inactive_file": 100}}
    engine = FakeEngine(
        exit_code=3,
        chunks=[(b"caf\xc3", None), (b"\xa9\n", b"oh\n"), (None, b"no\n")],
        samples=[{"memory_stats": memory}, {"memory_stats": {"usage": 5}}, {}],
    )
    ended, written, calls = run(here, engine)
    assert (ended.exit_code, ended.out_of_memory, ended.stopped) == (3, False, False)
    assert (ended.last_lines, ended.last_stdout_line) == (("oh", "no"), "café")
    assert written == "café\noh\nno\n"
    assert calls == ["start", "wait", "remove"]


def test_peak_memory_leaves_out_the_page_cache(here: Path) -> None:
    engine = FakeEngine(samples=[{"memory_stats": {"usage": 900, "stats": {"total_inactive_file": 100}}}, {}])
    container = made(here, engine)
    container._watch_memory()
    assert container.run().peak_memory_bytes == 800


def test_out_of_memory_is_what_the_kernel_says(here: Path) -> None:
    assert run(here, FakeEngine(exit_code=137, out_of_memory=True))[0].out_of_memory


def test_a_container_that_somebody_removed_is_contact_lost(here: Path) -> None:
    ended, _, calls = run(here, FakeEngine(chunks=[(b"a\n", None), NotFound("gone")]))
    assert ended.exit_code is None
    assert calls[-1] == "remove"


def test_an_engine_that_comes_back_is_followed_on(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(
        chunks=[(b"one\n", None), ConnectionResetError()], later_chunks=[(b"two\n", None), (None, b"!\n")]
    )
    with caplog.at_level(logging.WARNING):
        ended, written, calls = run(here, engine)
    assert ended.exit_code == 0
    assert written == "one\ntwo\n!\n"
    assert ended.last_stdout_line == "two"
    assert calls == ["start", "logs", "wait", "remove"]
    assert "the Docker engine stopped answering; waiting up to 60 s" in caplog.text


def test_silence_before_a_break_costs_no_patience(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage without a terminal says nothing for minutes; an engine that blinks then is no reason to give it up."""
    clock = iter([1.0])
    monkeypatch.setattr(container_module.time, "time", lambda: next(clock, 10_000.0))
    engine = FakeEngine(chunks=[ConnectionResetError()], later_chunks=[(b"done\n", None)])
    ended, _, calls = run(here, engine)
    assert (ended.exit_code, ended.last_stdout_line) == (0, "done")
    assert calls == ["start", "logs", "wait", "remove"]


def test_no_gpu_is_asked_for_an_image_built_for_a_cpu(here: Path, programs: Callable[..., Path]) -> None:
    programs("nvidia-smi", "echo 'GPU 0: NVIDIA'")
    assert asked(here, FakeEngine(), variant="cpu")["device_requests"] == []
    assert asked(here, FakeEngine(), variant="cpu", gpus="all")["device_requests"]


def test_an_engine_that_stays_away_is_contact_lost(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(chunks=[ConnectionResetError()])
    container = made(here, engine, patience_s=0)
    engine.is_away = True
    monkeypatch.setattr(container_module, "wait_until_answering", lambda client, patience_s: patience_s > 0)
    assert container.run().exit_code is None


def test_a_container_that_does_not_start_is_removed(here: Path) -> None:
    engine = FakeEngine(refuses_to_start="exec: rhstudy: not found")
    with pytest.raises(EngineError, match="starting the container must be possible.*says: exec: rhstudy: not found"):
        run(here, engine)
    assert engine.made[0].calls == ["start", "remove"]


def test_an_interrupt_gives_the_container_its_time(here: Path) -> None:
    engine = FakeEngine(chunks=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        run(here, engine, stop_timeout_s=7)
    assert engine.made[0].calls == ["start", "stop 7", "remove"]


def test_a_reader_that_is_gone_is_no_lost_engine(here: Path) -> None:
    engine = FakeEngine(chunks=[(b"one\n", None), (b"two\n", None)])

    def write(text: str, is_error: bool) -> None:
        raise BrokenPipeError

    ended = made(here, engine).run(write)
    assert (ended.exit_code, ended.last_stdout_line) == (0, "two")
    assert "logs" not in engine.made[0].calls


def test_a_stop_is_remembered(here: Path) -> None:
    engine = FakeEngine(exit_code=143)
    container = made(here, engine, stop_timeout_s=9)

    def stop(inside: FakeContainer) -> None:
        container.stop()

    engine.does = stop
    ended = container.run()
    assert (ended.exit_code, ended.stopped) == (143, True)
    assert "stop 9" in engine.made[0].calls


def test_where_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    assert engine_for(ContainerConfig(runtime="host")) == (None, "asked for")
    with pytest.raises(EngineError, match="Docker engine must answer"):
        engine_for(ContainerConfig(runtime="docker"))
    with caplog.at_level(logging.WARNING):
        client, reason = engine_for(ContainerConfig(runtime="auto"))
    assert client is None
    assert re.match("Docker engine must answer, got <no answer at unix://.*no.sock>", reason)
    assert "Running on the host (runtime auto)." in caplog.text
    engine = FakeEngine()
    monkeypatch.setattr(runtime, "connect", lambda: engine)
    assert engine_for(ContainerConfig(runtime="auto")) == (engine, "")


def test_a_job_on_the_host_says_why_it_is_there(
    here: Path, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    tags: dict[str, str] = {}
    job = Job(command=["sh", "-c", "exit 6"], working_dir=here, uri=SERVER)
    config = ContainerConfig(environment={"TOKEN": "a secret"})
    started = start(recorder, job, config, tags.update)
    assert isinstance(started, HostProcess)
    assert started.run().exit_code == 6
    assert tags["rhstudy.runtime"] == "host"
    assert tags["rhstudy.runtime_reason"].startswith("Docker engine must answer")
    assert tags["rhstudy.launch"] == started.launch
    assert '"environment": ["TOKEN"]' in tags["rhstudy.backend_config"]
    assert "a secret" not in "".join(tags.values())


def test_a_job_in_a_container_says_which(here: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(runtime, "connect", lambda: engine)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a secret")
    tags: dict[str, str] = {}
    job = Job(command=["rhstudy", "study", "my study.toml"], working_dir=here, uri=SERVER)
    started = start(recorder, job, ContainerConfig(image="somebodys:image"), tags.update)
    assert isinstance(started, Container)
    assert engine.made[0].asked["environment"]["MLFLOW_TRACKING_PASSWORD"] == "a secret"
    assert (
        tags.items()
        >= {
            "rhstudy.runtime": "docker",
            "rhstudy.container.image": "somebodys:image",
            "rhstudy.container.image_digest": "somebodys@sha256:abc",
            "rhstudy.container.id": started.container_id,
            "rhstudy.container.command": "rhstudy study 'my study.toml'",
            "mlflow.docker.image.id": "sha256:1mage",
        }.items()
    )
    assert "a secret" not in "".join(tags.values())
