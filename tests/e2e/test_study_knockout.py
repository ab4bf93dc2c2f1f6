"""A study with a knockout of its reference's heads: nested under that arm, in the report, and never at its expense."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from commands import Here, give_store, mlflow_store, study_values, write_config

from rhstudy.errors import StudyError
from rhstudy.stages import intervene
from rhstudy.tracking.recorder import Recorder, RunRecord


def config(world: Path, folder: Path, knockout_arms: str = "reference", **knockout: object) -> Path:
    values = study_values(
        world,
        recipes=["real", "symbolic"],
        ceiling_seeds=[],
        baselines=[],
        knockout_arms=knockout_arms,
        statistics={"necessity_dose": 1},
        knockout={"doses": [1], "num_draws": 2, "include_all_retrieval_heads": False, **knockout},
    )
    give_store(folder)
    return write_config(folder / "study.toml", values)


def analysis_of(store: Recorder, run: RunRecord) -> dict[str, Any]:
    text = (store.artifact_path(run.run_id) / "analysis.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read_means(store: Recorder, run: RunRecord) -> dict[str, float]:
    with (store.artifact_path(run.run_id) / "outcomes.csv").open(encoding="utf-8", newline="") as stream:
        return {row["condition"]: float(row["f1"]) for row in csv.DictReader(stream)}


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
    (analysis,) = store.find_runs({"rhstudy.stage": "analyze"})
    (necessity,) = analysis_of(store, analysis)["causal"]["necessity"]
    means = read_means(store, knockout)
    assert (necessity["model"], necessity["num_draws"]) == ("model/real/seed0", 2)
    assert necessity["drop"]["estimate"] == pytest.approx(means["baseline"] - means["top1"])
    (claim,) = [item for item in analysis_of(store, analysis)["claims"] if item["claim"].endswith("are necessary")]
    assert claim["claim"] == "the top 1 heads are necessary"
    assert "2 draws, an illustration" in claim["sentence"]


def test_in_all_arms_their_own_heads_and_the_references_are_knocked_out(
    world: Path, here: Here, tmp_path: Path
) -> None:
    path = config(world, tmp_path, knockout_arms="all", modes=["zero_output", "mean_output"])
    done = here("study", str(path))
    assert done.code == 0, done.err[-2000:]
    store = mlflow_store(here.folder)
    arms = {run.run_id: run.name for run in store.find_runs({"rhstudy.stage": "arm"})}
    knockouts = store.find_runs({"rhstudy.stage": "intervene"})
    found = sorted((arms[run.parent_run_id], run.tags["rhstudy.heads_of"]) for run in knockouts)
    assert found == [
        ("real/seed0", "model/real/seed0"),
        ("symbolic/seed0", "model/real/seed0"),
        ("symbolic/seed0", "model/symbolic/seed0"),
    ]
    (analysis,) = store.find_runs({"rhstudy.stage": "analyze"})
    judged = analysis_of(store, analysis)["causal"]["necessity"]
    assert [item["model"] for item in judged] == ["model/real/seed0"], "the claim is about the real-data model"
    report = Path(done.facts["report_dir"], "report.md").read_text(encoding="utf-8")
    assert [report.count(f"## Knockout {number}: model/{arm}") for number, arm in ((1, "real"), (2, "symbolic"))] == [
        1,
        1,
    ]
    assert "## Knockout 3: model/symbolic" in report
    assert report.count("### Mode mean_output, scope decode") == 3
    assert "Heads of the lowest mean score" in report
    assert {"f1_top1", "mean_output/decode/f1_top1", "mean_output/decode/p_f1_top1"} <= set(knockouts[0].metrics)
    again = here("study", str(path))
    assert again.code == 0
    assert len(store.find_runs({"rhstudy.stage": "intervene"})) == 3, "reused"


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
