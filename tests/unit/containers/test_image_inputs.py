from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from docker.errors import APIError
from fake_engine import FakeEngine, FakeImage

import rhstudy
from rhstudy.configs import file_sha256
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.engine import EngineError, explained
from rhstudy.containers.image import (
    _STEP,
    BILL,
    Image,
    build_arguments,
    ensure_image,
    export_bill,
    image_facts,
    inputs_digest,
    project_root,
    resolved_variant,
    with_cache_mounts,
)
from rhstudy.errors import InputError

ROOT = Path(rhstudy.__file__).parents[1]
CPU = ContainerConfig(variant="cpu", builder="classic")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in {
        "Dockerfile": "FROM base\n# cache: /root/.cache/pip\nRUN pip install x\n",
        ".dockerignore": (ROOT / ".dockerignore").read_text(encoding="utf-8"),
        "pyproject.toml": "[project]\n",
        "requirements.lock": "x==1\n",
        "rhstudy/__init__.py": "",
        "rhstudy/models/tiny/weights.bin": "0",
        "tests/test_x.py": "",
    }.items():
        write(folder / name, text)
    return folder


def write(path: Path, text: str = "changed") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile",
        "pyproject.toml",
        "requirements.lock",
        "requirements-dev.lock",
        "rhstudy/__init__.py",
        "rhstudy/models/tiny/weights.bin",
        "rhstudy/new.py",
        "tests/deep/er/test_y.py",
        "sweeps/question/study.toml",
        "wheels/torch-2.13.0.whl",
        "mlproject",
    ],
)
def test_each_file_of_the_context_counts(project: Path, name: str) -> None:
    before = inputs_digest(project, CPU)
    write(project / name)
    changed = inputs_digest(project, CPU)
    assert changed != before
    (project / name).rename(project / f"{name}.other" if name != "Dockerfile" else project / "Dockerfile.bak")
    assert inputs_digest(project, CPU) != changed


@pytest.mark.parametrize(
    "name",
    [
        ".git/HEAD",
        "mlruns/0/meta.yaml",
        "mlflow.db",
        "mlartifacts/0/x",
        "rhstudy-runs/x/run.json",
        ".env",
        "credentials.json",
        "build/lib/x.py",
        "rhstudy/__pycache__/x.cpython-312.pyc",
        "rhstudy/stray.pyc",
        "study.toml",
    ],
)
def test_no_other_file_counts(project: Path, name: str) -> None:
    before = inputs_digest(project, CPU)
    write(project / name)
    assert inputs_digest(project, CPU) == before


def test_the_place_of_the_project_does_not_count(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "elsewhere")
    assert inputs_digest(project, CPU) == inputs_digest(tmp_path / "elsewhere", CPU)


def test_variant_and_build_arguments_count_and_how_it_is_run_does_not(project: Path) -> None:
    configs = [
        CPU,
        ContainerConfig(variant="cu130"),
        ContainerConfig(variant="cpu", build_args={"BASE_IMAGE": "a"}),
        ContainerConfig(variant="cpu", build_args={"BASE_IMAGE": "b"}),
    ]
    assert len({inputs_digest(project, config) for config in configs}) == 4
    run = ContainerConfig(variant="cpu", memory="4g", network="host", builder="buildkit", environment={"A": "b"})
    assert inputs_digest(project, run) == inputs_digest(project, CPU)


def test_the_variant_follows_the_gpus(programs: Callable[..., Path]) -> None:
    assert resolved_variant(ContainerConfig()) == "cpu"
    programs("nvidia-smi", "echo 'GPU 0: NVIDIA'")
    assert resolved_variant(ContainerConfig()) == "cu130"
    assert resolved_variant(ContainerConfig(gpus="none")) == "cpu"
    assert resolved_variant(ContainerConfig(variant="cu126", gpus="none")) == "cu126"


def test_the_project_is_the_checkout_around_a_folder_or_the_packages_own(project: Path, tmp_path: Path) -> None:
    assert project_root(project) == project_root(project / "rhstudy" / "models") == project
    assert project_root(tmp_path) == ROOT


def test_outside_a_checkout_an_image_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhstudy, "__file__", str(tmp_path / "site-packages" / "rhstudy" / "__init__.py"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    wanted = "project folder must hold Dockerfile and rhstudy/, got .*Run this in a checkout of rhstudy, or name"
    with pytest.raises(InputError, match=wanted):
        project_root(tmp_path)
    with pytest.raises(InputError, match=wanted):
        image_facts(CPU, "")
    with pytest.raises(EngineError, match="Docker engine must answer"):
        image_facts(ContainerConfig(image="somebodys:image"), "")


def test_a_folder_without_dockerfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="project folder must hold a Dockerfile, got .*Name an image"):
        ensure_image(FakeEngine(), tmp_path, CPU)


def test_an_image_of_the_same_inputs_is_used_and_gets_the_name_stock_mlflow_runs(project: Path) -> None:
    known = FakeImage()
    engine = FakeEngine(labelled={inputs_digest(project, CPU): known})
    found = ensure_image(engine, project, CPU)
    assert (found.image_id, found.built, found.size_bytes) == (known.id, False, 2_000_000_000)
    assert known.tags == [f"rhstudy:{rhstudy.__version__}"]
    assert not engine.built
    write(project / "rhstudy" / "new.py")
    assert ensure_image(engine, project, CPU).built


def test_an_image_derived_from_ours_is_not_taken_for_it(project: Path) -> None:
    inputs = inputs_digest(project, CPU)
    known = FakeImage(tags=[f"rhstudy:cpu-{inputs[:12]}"])
    derived = FakeImage(id="sha256:derived", tags=["theirs:1"])
    engine = FakeEngine(labelled={inputs: known}, derived=[derived])
    assert ensure_image(engine, project, CPU).image_id == known.id
    assert derived.tags == ["theirs:1"]


def test_a_build_says_what_it_is_made_of(project: Path) -> None:
    engine = FakeEngine(build_stream=[{"stream": "Step 1/2 : FROM base\n"}, {"stream": "\n"}, {"aux": {}}])
    config = ContainerConfig(variant="cpu", builder="classic", build_args={"BASE_IMAGE": "b"}, build_network="host")
    found = ensure_image(engine, project, config)
    (asked,) = engine.built
    inputs = inputs_digest(project, config)
    assert asked["path"] == str(project)
    assert asked["labels"] == {"rhstudy.inputs": inputs}
    assert asked["tag"] == found.name == f"rhstudy:cpu-{inputs[:12]}"
    assert asked["network_mode"] == "host"
    assert asked["buildargs"] == build_arguments(project, config)
    assert asked["buildargs"].keys() == {"VARIANT", "BASE_IMAGE", "GIT_COMMIT", "GIT_DIRTY"}
    assert found.git.keys() == {"RHSTUDY_GIT_COMMIT", "RHSTUDY_GIT_DIRTY"}
    assert engine.named[found.name].tags == [f"rhstudy:{rhstudy.__version__}"]


def test_a_failed_build_ends_with_its_last_lines(project: Path) -> None:
    lines = [{"stream": f"line {number}\n"} for number in range(30)]
    engine = FakeEngine(build_stream=[*lines, {"error": "The command '/bin/sh -c false' returned a non-zero code: 1"}])
    wanted = "building the image must succeed, got <failed>. Mend the step that failed; the engine says: The command"
    with pytest.raises(EngineError, match=wanted) as caught:
        ensure_image(engine, project, CPU)
    (note,) = caught.value.__notes__
    assert note.splitlines() == [f"line {number}" for number in range(15, 30)]


BUILDX = """
[ "$2" != version ] || exit 0
cat > "$SEEN.dockerfile"
for argument; do echo "$argument" >> "$SEEN.arguments"; done
"""


def test_buildkit_gets_the_dockerfile_with_cache_mounts(
    project: Path, tmp_path: Path, programs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    programs("docker", BUILDX + 'echo "#1 a step"')
    engine = FakeEngine()
    name = f"rhstudy:cpu-{inputs_digest(project, CPU)[:12]}"
    engine.named[name] = FakeImage()
    config = ContainerConfig(variant="cpu", build_network="host")
    assert ensure_image(engine, project, config).built
    assert not engine.built
    assert "RUN --mount=type=cache,target=/root/.cache/pip pip install x" in (tmp_path / "seen.dockerfile").read_text()
    arguments = (tmp_path / "seen.arguments").read_text().splitlines()
    assert arguments[:3] == ["buildx", "build", "--load"]
    assert arguments[arguments.index("--tag") + 1] == name
    assert arguments[arguments.index("--label") + 1] == f"rhstudy.inputs={inputs_digest(project, config)}"
    assert arguments[arguments.index("--network") + 1] == "host"
    assert "--build-arg=VARIANT=cpu" in arguments
    assert arguments[-1] == str(project)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_buildkits_failure_ends_with_its_last_lines(project: Path, programs: Callable[..., Path], size: int) -> None:
    """Also when it ends without having read the Dockerfile."""
    write(project / "Dockerfile", "#" * size)
    programs("docker", '[ "$2" != version ] || exit 0\necho "no such platform" >&2\nexit 7')
    with pytest.raises(EngineError, match="building the image must succeed.*the engine says: exit code 7") as caught:
        ensure_image(FakeEngine(), project, ContainerConfig(variant="cpu"))
    assert "no such platform" in "".join(caught.value.__notes__)


def test_without_buildkit_it_may_not_be_demanded(project: Path, programs: Callable[..., Path]) -> None:
    wanted = "builder must be there, got 'buildkit'. Install docker buildx, or use the builder auto"
    with pytest.raises(InputError, match=wanted):
        ensure_image(FakeEngine(), project, ContainerConfig(variant="cpu", builder="buildkit"))
    programs("docker", "exit 1")
    with pytest.raises(InputError, match=wanted):
        ensure_image(FakeEngine(), project, ContainerConfig(variant="cpu", builder="buildkit"))
    assert ensure_image(FakeEngine(), project, ContainerConfig(variant="cpu")).built


def test_cache_mounts_stand_where_the_dockerfile_asks_for_them() -> None:
    text = "# cache: /a/b\nRUN one \\\n  two\n# cache: /c\nRUN three\nRUN four\n# cache: /d\n\nRUN five\n"
    made = with_cache_mounts(text)
    assert re.findall(r"^RUN .*", made, re.MULTILINE) == [
        "RUN --mount=type=cache,target=/a/b one \\",
        "RUN --mount=type=cache,target=/c three",
        "RUN four",
        "RUN five",
    ]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("debian", ("debian", "latest")),
        ("debian:12", ("debian", "12")),
        ("registry.example.org:5000/team/rhstudy", ("registry.example.org:5000/team/rhstudy", "latest")),
        ("registry.example.org:5000/team/rhstudy:1", ("registry.example.org:5000/team/rhstudy", "1")),
        ("team/rhstudy@sha256:abc", ("team/rhstudy", "sha256:abc")),
    ],
)
def test_a_named_image_is_pulled_when_missing(tmp_path: Path, name: str, asked: tuple[str, str]) -> None:
    engine = FakeEngine()
    found = ensure_image(engine, tmp_path, ContainerConfig(image=name))
    assert engine.pulled == [asked]
    assert (found.name, found.repo_digest, found.git) == (name, f"{asked[0]}@sha256:abc", {})


def test_a_named_image_that_is_there_is_not_pulled(tmp_path: Path) -> None:
    engine = FakeEngine(named={"a:b": FakeImage()})
    assert ensure_image(engine, tmp_path, ContainerConfig(image="a:b")).repo_digest == ""
    assert not engine.pulled


def test_a_named_image_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    engine = FakeEngine(refuses_to_pull="pull access denied for a")
    wanted = "image a:b must be possible on this engine, got <refused>. The engine says: pull access denied for a"
    with pytest.raises(EngineError, match=wanted):
        ensure_image(engine, tmp_path, ContainerConfig(image="a:b"))


def made_image() -> Image:
    return Image(name="rhstudy:x", image_id="sha256:1", repo_digest="", size_bytes=5)


def test_the_bill_is_copied_with_its_digests(tmp_path: Path) -> None:
    engine = FakeEngine(files={**{name: name.encode() for name in BILL}, "other": b"x"})
    found = export_bill(engine, made_image(), tmp_path / "bill")
    assert found == {name: file_sha256(tmp_path / "bill" / name) for name in BILL}
    assert sorted(path.name for path in (tmp_path / "bill").iterdir()) == sorted([*BILL, "image.json"])
    assert engine.made[0].calls == ["remove"]


def test_an_image_without_the_whole_bill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="reading the image's bill of materials must be possible on this engine"):
        export_bill(FakeEngine(), made_image(), tmp_path)
    (tmp_path / BILL[1]).write_text("of an earlier image", encoding="utf-8")
    engine = FakeEngine(files={BILL[0]: b"x"})
    wanted = r"bill of materials must be in the image, got <no licenses.csv> \(rhstudy:x\). Use an image of"
    with pytest.raises(EngineError, match=wanted):
        export_bill(engine, made_image(), tmp_path)


def test_an_engine_that_goes_away_while_building_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    def build(**asked: object) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(engine, "build", build)
    with pytest.raises(EngineError, match="building the image must be answered by the engine, got <ConnectionResetErr"):
        ensure_image(engine, project, CPU)


def test_refusals_are_explained_by_kind() -> None:
    said = 'could not select device driver "" with capabilities: [[gpu]]'
    wanted = "Install the NVIDIA container toolkit or set gpus to none; the engine says"
    with pytest.raises(EngineError, match=wanted), explained("creating the container"):
        raise APIError("500", explanation=said)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Step 3/40 : RUN true", ("3", "40")),
        ("#9 [torch 3/4] RUN set -eu", ("3", "4")),
        ("#5 [1/2] FROM base", ("1", "2")),
        ("#9 0.512 Collecting torch", None),
    ],
)
def test_steps_of_both_builders_are_known(line: str, step: tuple[str, str] | None) -> None:
    found = _STEP.match(line)
    assert (found and found.group(1, 2)) == step
