"""A study with a knockout of its reference's heads: nested under that arm, in the report, and never at its expense."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Here, mlflow_store, study_values, write_config

from rhstudy.errors import StudyError
from rhstudy.stages import intervene


def config(world: Path, folder: Path) -> Path:
    values = study_values(
        world,
        recipes=["real", "symbolic"],
        ceiling_seeds=[],
        baselines=[],
        knockout_arms="reference",
        knockout={"doses": [1], "num_draws": 2, "include_all_retrieval_heads": False},
    )
    return write_config(folder / "study.toml", values)


def test_the_references_heads_are_knocked_out_and_reported(world: Path, here: Here, tmp_path: Path) -> None:
    done = here("study", str(config(world, tmp_path)))
    assert done.code == 0, done.err[-2000:]
    store = mlflow_store(here.folder)
    (arm,) = [run for run in store.find_runs({"rhstudy.stage": "arm"}) if run.name == "real/seed0"]
    (knockout,) = store.find_runs({"rhstudy.stage": "intervene"})
    (report,) = store.find_runs({"rhstudy.stage": "report"})
    assert knockout.parent_run_id == arm.run_id
    assert report.metrics["num_knockouts"] == 1
    assert "## Knockout 1" in Path(done.facts["report_dir"], "report.md").read_text(encoding="utf-8")


def test_a_knockout_that_fails_costs_no_arm_and_no_analysis(
    world: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise StudyError("GPU memory must hold the cache, got none. Use fewer heads.")

    monkeypatch.setattr(intervene, "run", broken)
    done = here("study", str(config(world, tmp_path)))
    assert done.code == 1
    assert "real/seed0 knockout" in done.err
    store = mlflow_store(here.folder)
    assert len(store.find_runs({"rhstudy.stage": "arm"}, "FINISHED")) == 2
    assert len(store.find_runs({"rhstudy.stage": "analyze"}, "FINISHED")) == 1
    assert not store.find_runs(status="RUNNING")
