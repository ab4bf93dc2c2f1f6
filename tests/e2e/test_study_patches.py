"""A study with patches between its arms: null first, in the report, and never at the cost of arms or analysis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Here, give_store, mlflow_store, study_values, write_config

from rhstudy.errors import StudyError
from rhstudy.plan import StudyConfig, patch_pairs
from rhstudy.stages import patch
from rhstudy.stages.patch_outcomes import read_patching
from rhstudy.tracking.artifacts import open_artifacts


def config(world: Path, folder: Path) -> Path:
    values = study_values(
        world,
        recipes=["real", "symbolic"],
        baselines=["untuned"],
        patch_arms="both_directions",
        patching={"num_draws": 1, "top_k": 2, "positions": ["answer_rows"]},
    )
    give_store(folder)
    return write_config(folder / "study.toml", values)


def test_heads_are_patched_between_the_arms_and_reported(world: Path, here: Here, tmp_path: Path) -> None:
    done = here("study", str(config(world, tmp_path)))
    assert done.code == 0, done.err[-2000:]
    store = mlflow_store(here.folder)
    (study,) = store.find_runs({"rhstudy.stage": "study"}) or [store.get_run(done.facts["run_id"])]
    runs = sorted(store.find_runs({"rhstudy.stage": "patch"}), key=lambda run: run.name)
    assert [run.name for run in runs] == [
        "patch real/seed0 to real/seed1",
        "patch real/seed0 to symbolic/seed0",
        "patch symbolic/seed0 to real/seed0",
    ]
    assert {run.parent_run_id for run in runs} == {study.run_id}
    null, forward, back = (read_patching(open_artifacts(store.artifact_path(run.run_id))) for run in runs)
    assert (forward["real_model"], back["real_model"]) == ("donor", "recipient")
    changes = {item["of_set"]: item["null"] for item in forward["patches"]}
    assert changes["retrieval"]["f1"] == next(p for p in null["patches"] if p["of_set"] == "retrieval")["f1"]["change"]
    text = Path(done.facts["report_dir"], "report.md").read_text(encoding="utf-8")
    assert "## Patching 1 (null patch): model/real/seed0 -> model/real/seed1" in text
    assert "## Patching 3: model/symbolic/seed0 -> model/real/seed0" in text
    assert text.count("Counter-examples (the patch made it worse):") == 3
    assert "figures/patching2_patches_answer_rows_f1.png" in text
    (analysis,) = store.find_runs({"rhstudy.stage": "analyze"})
    found = json.loads((store.artifact_path(analysis.run_id) / "analysis.json").read_text(encoding="utf-8"))
    sets = found["causal"]["sufficiency"]
    assert {item["model"] for item in sets} == {"model/symbolic/seed0"}, "neither null patches nor the way back"
    effects = {item["of_set"]: item["f1"]["patched"]["estimate"] for item in forward["patches"]}
    donor = forward["models"]["f1"]["donor"]["estimate"]
    assert {item["of_set"]: item["difference"]["estimate"] for item in sets} == pytest.approx(
        {name: value - donor for name, value in effects.items()}
    )
    assert sum("equal to its donor" in item["claim"] for item in found["claims"]) == len(sets)
    again = here("study", str(config(world, tmp_path)))
    assert again.facts["reused"] is True


def test_a_patch_that_fails_costs_no_arm_and_no_analysis(
    world: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise StudyError("GPU memory must hold two models, got one. Use a smaller one.")

    monkeypatch.setattr(patch, "run", broken)
    done = here("study", str(config(world, tmp_path)))
    assert done.code == 1
    assert "real/seed0 to symbolic/seed0 patching" in done.err
    store = mlflow_store(here.folder)
    assert len(store.find_runs({"rhstudy.stage": "arm"}, "FINISHED")) == 4
    assert len(store.find_runs({"rhstudy.stage": "analyze"}, "FINISHED")) == 1
    assert not store.find_runs(status="RUNNING")


def test_pairs_begin_at_the_reference_and_leave_baselines_out() -> None:
    from rhstudy.data.config import DataConfig

    data = DataConfig(train_file="mdqa")
    asked = {"recipes": ("symbolic", "real"), "seeds": (2, 3), "ceiling_seeds": (4,), "data": data}
    pairs = list(patch_pairs(StudyConfig(**asked, patch_arms="synthetic")))
    assert [(pair.recipient, pair.is_null) for pair in pairs] == [
        ("real/seed3", True), ("real/seed4", True), ("symbolic/seed2", False), ("symbolic/seed3", False),
    ]  # fmt: skip
    assert {(pair.donor, pair.real_model) for pair in pairs} == {("real/seed2", "donor")}
    assert not list(patch_pairs(StudyConfig(**asked)))
