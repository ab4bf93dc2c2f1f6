"""`rhstudy report` after a study: one page with everything, figures inside; bad references are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import FinishedStudy, Here, stage_of, write_config


@pytest.fixture(scope="module")
def runs(study: FinishedStudy) -> dict[str, str]:
    """Run ids of the study that a report and a knockout need."""
    found = {stage_of(run): run.run_id for run in study.store.find_runs(status="FINISHED")}
    for stage in ("detect", "evaluate", "finetune"):
        (found[stage],) = [
            run.run_id
            for run in study.store.find_runs(status="FINISHED")
            if stage_of(run) == stage and run.params.get("checkpoint", "x") and run.metrics
            and study.store.get_run(run.parent_run_id).name == "real/seed0"
        ]  # fmt: skip
    return found


def knocked_out(study: FinishedStudy, runs: dict[str, str], run: Here, world: Path, *more: str) -> str:
    data = study.store.get_run(runs["evaluate"]).tags["rhstudy.input.eval_data.run_id"]
    config = {"model": {"name": str(world / "model"), "device": "cpu"}, "context": {"rope_theta": 40000.0}}
    write_config(study.folder / "intervene.toml", config)
    references = ("--data", data, "--heads", runs["detect"], "--checkpoint", runs["finetune"])
    few = ("--answering.max-new-tokens", "4", "--knockout.num-draws", "3", "--knockout.doses", "1", "2")
    outcome = run("intervene", "intervene.toml", *references, *few, *more)
    assert outcome.code == 0, outcome.err[-3000:]
    return str(outcome.facts["run_id"])


def test_a_report_gathers_the_analysis_the_head_map_and_the_knockouts(
    study: FinishedStudy, runs: dict[str, str], in_study: Here, world: Path
) -> None:
    first = knocked_out(study, runs, in_study, world)
    second = knocked_out(study, runs, in_study, world, "--seed", "1")
    values = {
        "analysis": runs["analyze"],
        "detect": runs["detect"],
        "knockouts": [first, second],
        "title": "A <b> title",
    }
    write_config(study.folder / "report.toml", values)
    outcome = in_study("report", "report.toml")
    assert outcome.code == 0, outcome.err[-3000:]
    folder = Path(outcome.facts["artifact_dir"])
    text, html = ((folder / name).read_text() for name in ("report.md", "report.html"))
    analysis = study.store.artifact_path(runs["analyze"]) / "report.md"
    assert analysis.read_text().strip() in text
    names = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", text)
    assert {"figures/head_map.png", "figures/f1_by_recipe.png", "figures/knockout1_dose_curve_f1.png"} <= set(names)
    assert len(names) == outcome.facts["num_figures"] == html.count("<img ")
    assert all((folder / name).is_file() for name in names)
    assert html.count("data:image/png;base64,") == len(names)
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "A &lt;b&gt; title" in html
    assert text.count("illustration: fewer than 199 draws") >= 4
    assert "## Knockout 2: model/real/seed0" in text
    assert outcome.facts["num_knockouts"] == 2
    record = study.store.get_run(outcome.facts["run_id"])
    assert record.tags["mlflow.note.content"].startswith("# A")
    assert "![" not in record.tags["mlflow.note.content"]
    assert json.loads((folder / "manifest.json").read_text())["volatile"].count("report.html") == 1
    assert in_study("report", "report.toml").facts["reused"] is True


def test_bad_references_exit_2_and_say_what_to_do(
    study: FinishedStudy, runs: dict[str, str], in_study: Here, world: Path
) -> None:
    knockout = knocked_out(study, runs, in_study, world)
    cases = {
        "analysis must come from analyze, got 'detect'": {"analysis": runs["detect"]},
        "detect must come from detect, got 'evaluate'": {"analysis": runs["analyze"], "detect": runs["evaluate"]},
        "knockouts.0 must come from intervene, got 'detect'": {
            "analysis": runs["analyze"],
            "knockouts": [runs["detect"]],
        },
        "patches.0 must come from patch, got 'intervene'": {"analysis": runs["analyze"], "patches": [knockout]},
        "knockouts must name each run once": {"analysis": runs["analyze"], "knockouts": [knockout, knockout]},
        "run reference must be the id of a recorded run": {"analysis": "nothing"},
    }
    for wanted, values in cases.items():
        write_config(study.folder / "bad-report.toml", values)
        outcome = in_study("report", "bad-report.toml")
        assert outcome.code == 2, outcome.err
        assert wanted in " ".join(outcome.err.split()), outcome.err
