"""A real Docker engine and a real image; nothing here is faked.

Where no engine answers these tests FAIL: containers are a promise. RHSTUDY_NO_DOCKER=1 says that none is wanted.

    RHSTUDY_TEST_BACKEND_CONFIG   JSON of the container config the image is built with, for instance another base
    RHSTUDY_TEST_WHOLE_SUITE      1: test_suite.py runs all tests inside the image, not those that rest on it alone
    RHSTUDY_DOCKER_UP, .._DOWN    commands that start and stop the engine, for the test that stops it
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from commands import ROOT, data_values, give_store, study_values, write_config
from projects import SETTINGS, Project

from rhstudy.containers.config import ContainerConfig, container_config
from rhstudy.containers.engine import connect
from rhstudy.containers.image import Image, _context, ensure_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unwanted = pytest.mark.skip(reason="RHSTUDY_NO_DOCKER=1: containers are not tested")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)
            if os.environ.get("RHSTUDY_NO_DOCKER") == "1":
                item.add_marker(unwanted)


@pytest.fixture(scope="session")
def config() -> ContainerConfig:
    return container_config(json.dumps(SETTINGS))


@pytest.fixture(scope="session")
def engine() -> docker.DockerClient:
    """The engine; an error where none answers."""
    return connect()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient, config: ContainerConfig) -> Image:
    """The image of this checkout, built when it is not there."""
    return ensure_image(engine, ROOT, config)


@pytest.fixture(scope="session")
def make_project(image: Image) -> Callable[[Path], Project]:
    """Makes `Project`s whose build context is this checkout's, so that its image is theirs."""

    def make(folder: Path) -> Project:
        for name in [*_context(ROOT), ".dockerignore"]:
            source, target = ROOT / name, folder / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                # A wheel of torch is large, and needed for a build alone, which the same inputs never start.
                target.symlink_to(source) if source.suffix == ".whl" else shutil.copy(source, target)
        (folder / "home").mkdir()
        return Project(folder)

    return make


@pytest.fixture(scope="module")
def project(make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def make_small(make_project: Callable[[Path], Project], world: Path) -> Callable[[Path], Project]:
    """Makes projects with a study of a minute and its data."""

    def make(folder: Path) -> Project:
        project = make_project(folder)
        shutil.copytree(world, folder / "world")
        values = study_values(folder / "world", recipes=["real", "symbolic"], ceiling_seeds=[], baselines=[])
        values["data"] = data_values(folder / "world", num_examples=24)
        values["training"] = {**values["training"], "num_epochs": 6}
        write_config(folder / "study.toml", values)
        give_store(folder)  # a test that looks while MLflow makes it would break it
        return project

    return make


@pytest.fixture
def small(make_small: Callable[[Path], Project], tmp_path: Path) -> Project:
    return make_small(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own are closed again whenever another pytest starts."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
