from __future__ import annotations

import contextvars
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeContainer, FakeEngine
from stage_examples import ToyBody, ToyConfig, toy_spec

from rhstudy.configs import NO_DIGEST, TrackingConfig, from_mapping, load_toml
from rhstudy.containers import runtime
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.stages import stages_in_containers
from rhstudy.errors import InputError, StudyError
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageSpec, run_stage

CONFIG = ContainerConfig(runtime="docker", image="somebodys:image", patience_s=0)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """The quick one; what goes through the store is tested with both."""
    return FolderRecorder(tmp_path / "runs")


class Inside:
    """Does what the stage would do in the container: reads its config, records its run, prints its facts."""

    def __init__(self, recorder: Recorder, spec: StageSpec) -> None:
        self._recorder, self._spec = recorder, spec
        self.config: Mapping[str, Any] = {}
        self.environment: Mapping[str, str] = {}

    def __call__(self, container: FakeContainer) -> None:
        program, stage, path = container.asked["command"]
        assert (program, stage) == ("rhstudy", "detect")
        self.config, self.environment = load_toml(path), container.asked["environment"]
        launch = {"rhstudy.launch": self.environment["RHSTUDY_LAUNCH"]}
        spec = dataclasses.replace(self._spec, tags=launch)
        result = contextvars.Context().run(run_stage, self._recorder, spec, ToyBody())
        facts = json.dumps({"run_id": result.run_id, "reused": result.reused})
        container.engine.chunks = [(b"progress\n", b"a warning\n"), (facts.encode() + b"\n", None)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, programs: Callable[..., Path]) -> FakeEngine:
    found = FakeEngine()
    monkeypatch.setattr(runtime, "connect", lambda: found)
    return found


def test_a_stage_is_done_in_a_container_and_said_to_be(
    engine: FakeEngine, make_recorder: Callable[[], Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = make_recorder()
    parent = recorder.create_run("study", "study")
    spec = toy_spec(tmp_path / "work", parent_run_id=parent)
    engine.does = inside = Inside(recorder, spec)
    body = ToyBody()
    with stages_in_containers(recorder, CONFIG, "sqlite:///mlflow.db"):
        result = run_stage(recorder, spec, body)
        again = run_stage(recorder, spec, body)
    assert (result.reused, again.reused, again.run_id, body.calls) == (False, True, result.run_id, 0)
    assert result.summary["f1"] == 0.25
    assert from_mapping(ToyConfig, inside.config) == spec.config
    assert inside.environment["RHSTUDY_PARENT_RUN_ID"] == parent
    assert inside.environment["RHSTUDY_RUN_NAME"] == "toy run"
    record = recorder.get_run(result.run_id)
    assert record.status == "FINISHED"
    assert (
        record.tags.items()
        >= {
            "rhstudy.runtime": "docker",
            "rhstudy.container.image": "somebodys:image",
            "rhstudy.container.exit_code": "0",
        }.items()
    )
    assert len(engine.made) == 1
    assert {str(tmp_path / "work"), *map(str, recorder.folders())} & {
        mount["Target"] for mount in engine.made[0].asked["mounts"]
    }
    assert not list((tmp_path / "work" / "launches").iterdir())
    printed = capsys.readouterr()
    assert "a warning" in printed.err
    assert "run_id" not in printed.out


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrackedConfig:
    size: int = 3
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def test_the_stores_address_is_the_environments(engine: FakeEngine, recorder: Recorder, tmp_path: Path) -> None:
    uri = "http://localhost:5000"
    config = TrackedConfig(tracking=TrackingConfig(uri=uri, experiment="mine"))
    spec = toy_spec(tmp_path / "work", config=config)
    engine.does, engine.system = (inside := Inside(recorder, spec)), "Docker Desktop"
    with stages_in_containers(recorder, CONFIG, uri):
        run_stage(recorder, spec, ToyBody())
    assert inside.environment["MLFLOW_TRACKING_URI"] == "http://host.docker.internal:5000"
    assert from_mapping(TrackedConfig, inside.config).tracking == TrackingConfig(experiment="mine")


@pytest.mark.parametrize(
    ("code", "words", "kind", "said"),
    [
        (2, b"rhstudy: seed must be at least 0, got -1.\n", InputError, "seed must be at least 0"),
        (1, b"rhstudy: the disk is full.\n", StudyError, "the disk is full"),
        (3, b"oh\n", StudyError, "command must end with exit code 0, got <exit code 3>. Its last words: oh"),
        (0, b"", StudyError, "the stage's last line must be its facts as JSON, got 'hello'. Use an image of the same"),
    ],
)
def test_what_the_stage_raised_is_raised_here(
    engine: FakeEngine, recorder: Recorder, tmp_path: Path, code: int, words: bytes, kind: type[StudyError], said: str
) -> None:
    engine.exit_code = code
    engine.chunks = [(b"hello\n", words)]
    with stages_in_containers(recorder, CONFIG, ""), pytest.raises(kind, match=said) as caught:
        run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    assert type(caught.value) is kind
    assert not list((tmp_path / "work" / "launches").iterdir())


def test_a_run_that_the_container_left_is_closed(engine: FakeEngine, recorder: Recorder, tmp_path: Path) -> None:
    left: list[str] = []

    def begin(container: FakeContainer) -> None:
        tags = {"rhstudy.launch": container.asked["environment"]["RHSTUDY_LAUNCH"]}
        left.append(recorder.create_run("toy run", "detect", tags=tags))

    engine.does, engine.exit_code = begin, 137
    with stages_in_containers(recorder, CONFIG, ""), pytest.raises(StudyError, match="killed by a signal"):
        run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    record = recorder.get_run(left[0])
    assert (record.status, record.tags["rhstudy.container.exit_code"]) == ("KILLED", "137")


def test_an_interrupt_ends_the_stages_run_as_killed(engine: FakeEngine, recorder: Recorder, tmp_path: Path) -> None:
    left: list[str] = []

    def begin(container: FakeContainer) -> None:
        tags = {"rhstudy.launch": container.asked["environment"]["RHSTUDY_LAUNCH"]}
        left.append(recorder.create_run("toy run", "detect", tags=tags))
        engine.chunks = [KeyboardInterrupt()]

    engine.does = begin
    with stages_in_containers(recorder, CONFIG, ""), pytest.raises(KeyboardInterrupt):
        run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    record = recorder.get_run(left[0])
    assert record.status == "KILLED"
    assert record.tags["rhstudy.error"].startswith("command must end by itself, got <stopped>")
    assert engine.made[0].calls == ["start", "stop 60", "remove"]


@pytest.mark.parametrize(
    ("config", "looked_up"),
    [
        ({"gpus": "none"}, True),
        ({"gpus": "auto"}, False),
        ({"gpus": "auto", "image": "", "variant": "cpu"}, True),
        ({"gpus": "auto", "image": "", "variant": "cu130"}, False),
    ],
)
def test_finished_stages_are_looked_up_where_the_device_is_the_same(
    engine: FakeEngine,
    recorder: Recorder,
    tmp_path: Path,
    programs: Callable[..., Path],
    config: dict[str, str],
    looked_up: bool,
) -> None:
    """A GPU machine whose torch sees no GPU: a container with GPUs has other digests, which only it can compute."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this process has a GPU of its own")
    programs("nvidia-smi", "echo 'GPU 0: NVIDIA'")
    spec = toy_spec(tmp_path / "work")
    engine.does = Inside(recorder, spec)
    run_stage(recorder, spec, ToyBody())
    engine.build_stream = []
    values = {"runtime": "docker", "image": "somebodys:image", "builder": "classic", "patience_s": 0, **config}
    with stages_in_containers(recorder, ContainerConfig(**values), ""):  # type: ignore[arg-type]
        assert run_stage(recorder, spec, ToyBody()).reused
    assert (not engine.made) is looked_up


def test_on_the_host_stages_run_in_this_process(recorder: Recorder, tmp_path: Path) -> None:
    body = ToyBody()
    with stages_in_containers(recorder, ContainerConfig(runtime="host"), ""):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert body.calls == 1
