"""Fixtures both recorder suites share: one MLflow store is migrated per session and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.mlflow_store import make_database
from rhstudy.tracking.recorder import Recorder


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    make_database(database, database.parent / "mlartifacts")
    return database


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def make_mlflow(tmp_path: Path, template_store: Path) -> Callable[[], MlflowRecorder]:
    """Opens the MLflow store of this test; a second call opens the same store again."""
    database = tmp_path / "store" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(template_store, database)

    def make() -> MlflowRecorder:
        return MlflowRecorder(f"sqlite:///{database}", "tests", download_dir=tmp_path / "down", system_metrics=False)

    return make


@pytest.fixture(params=["folder", "mlflow"])
def make_recorder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Recorder]:
    """Opens this test's recorder, once per kind; a second call opens the same store again."""
    if request.param == "mlflow":
        make: Callable[[], Recorder] = request.getfixturevalue("make_mlflow")
        return make
    return lambda: FolderRecorder(tmp_path / "runs")


@pytest.fixture
def recorder(make_recorder: Callable[[], Recorder]) -> Recorder:
    return make_recorder()
