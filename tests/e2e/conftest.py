from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from commands import FinishedStudy, Here, give_store, in_own_process, mlflow_store, study_values, write_config


@pytest.fixture(scope="session")
def study(world: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    folder = tmp_path_factory.mktemp("study")
    config = write_config(folder / "study.toml", study_values(world))
    give_store(folder)
    outcome = in_own_process(folder, "study", "study.toml")
    assert outcome.code == 0, outcome.err[-3000:]
    return FinishedStudy(folder, config, outcome, mlflow_store(folder))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Commands in this process, in an empty folder."""
    return Here(tmp_path, monkeypatch, capsys)


@pytest.fixture
def in_study(study: FinishedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Commands in this process, in the folder of the finished study."""
    return Here(study.folder, monkeypatch, capsys)
