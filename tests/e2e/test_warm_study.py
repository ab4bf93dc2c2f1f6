"""A study that keeps its base model, or builds data sets ahead, finds the numbers of one that does not."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path

import pytest
from commands import FinishedStudy, content_digests, folder_store, in_own_process, study_values, write_config

from rhstudy import study as study_module
from rhstudy.configs import ContextConfig, ModelConfig, from_mapping
from rhstudy.errors import StudyError
from rhstudy.models import warm
from rhstudy.models.load import LoadedModel, load_base
from rhstudy.plan import StudyConfig
from rhstudy.tracking.opening import open_recorder
from rhstudy.training import loop
from rhstudy.training.loss import answer_loss


def test_building_ahead_changes_no_digest(study: FinishedStudy, world: Path, tmp_path: Path) -> None:
    values = study_values(world, build_ahead="on", tracking={"recorder": "folder"})
    write_config(tmp_path / "study.toml", values)
    outcome = in_own_process(tmp_path, "study", "study.toml")
    assert outcome.code == 0, outcome.err[-3000:]
    store = folder_store(tmp_path)
    found, expected = content_digests(store), content_digests(study.store)
    assert len(found) > 10
    assert found.items() <= expected.items()
    tagged = {run.name for run in store.find_runs() if "rhstudy.built_ahead_s" in run.tags}
    assert tagged == {f"make-data {arm}" for arm in ("real/seed1", "templated_in_filler/seed0", "symbolic/seed0")}
    parents = {run.name: run.parent_run_id for run in store.find_runs()}
    arms = {run.run_id: run.name for run in store.find_runs() if run.tags.get("rhstudy.stage") == "arm"}
    assert all(arms[parents[f"make-data {name}"]] == name for name in ("real/seed1", "symbolic/seed0"))


def run_here(world: Path, folder: Path, **changes: object) -> StudyConfig:
    tracking = {"recorder": "folder", "folder": str(folder / "rhstudy-runs"), "work_dir": str(folder / "work")}
    return from_mapping(StudyConfig, study_values(world, build_ahead="off", tracking=tracking, **changes))


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """The base models that are read from files, as long as they live."""
    found: list[weakref.ref] = []

    def counted(config: ModelConfig, context: ContextConfig) -> LoadedModel:
        loaded = load_base(config, context)
        found.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(warm, "load_base", counted)
    return found


@pytest.mark.parametrize("keeps", [True, False])
def test_a_study_reads_its_base_once_and_finds_what_one_finds_that_reads_it_every_time(
    keeps: bool,
    study: FinishedStudy,
    world: Path,
    tmp_path: Path,
    bases: list[weakref.ref],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not keeps:
        monkeypatch.setattr(study_module, "keeping", contextlib.nullcontext)
    config = run_here(world, tmp_path)
    study_module.run(config, open_recorder(config.tracking))
    found = content_digests(folder_store(tmp_path))
    assert len(found) > 10
    assert found.items() <= content_digests(study.store).items()
    assert len(bases) == (1 if keeps else 14)  # four trained arms of three stages, one untuned of two


def test_arms_that_fail_keep_no_model_alive(
    world: Path, tmp_path: Path, bases: list[weakref.ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "answer_loss", lambda *given: answer_loss(*given) * float("nan"))
    config = run_here(world, tmp_path, recipes=["real", "symbolic"], ceiling_seeds=[], baselines=[])
    with pytest.raises(StudyError, match="arms must all finish") as caught:
        study_module.run(config, open_recorder(config.tracking))
    gc.collect()
    assert len(bases) == 2
    assert [base() for base in bases] == [None, None]
    assert caught.value is not None
