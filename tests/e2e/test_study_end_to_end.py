"""One small study through the command line, looked at from every side."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from commands import (
    FinishedStudy,
    Here,
    content_digests,
    data_values,
    folder_store,
    mlflow_store,
    stage_of,
    write_config,
)

from rhstudy.tracking.artifacts import open_artifacts
from rhstudy.tracking.recorder import RunRecord

ARMS = ["real/seed0", "real/seed1", "symbolic/seed0", "templated_in_filler/seed0", "untuned/seed0"]
TRAINED = 4


def runs_of(study: FinishedStudy, stage: str) -> list[RunRecord]:
    return [run for run in study.store.find_runs() if stage_of(run) == stage]


def run_named(study: FinishedStudy, name: str) -> RunRecord:
    (run,) = [run for run in study.store.find_runs() if run.name == name]
    return run


def test_the_last_line_of_stdout_has_run_artifacts_and_headline_numbers(study: FinishedStudy) -> None:
    facts = study.outcome.facts
    assert study.store.get_run(facts["run_id"]).name == "tiny study"
    assert open_artifacts(facts["artifact_dir"]).stage == "analyze"
    assert facts["num_arms"] == len(ARMS)
    assert {"verdict", "spearman_head_recall", "p_head_recall", "reused"} <= set(facts)


def test_progress_and_hints_are_on_stderr(study: FinishedStudy) -> None:
    assert "arm 1 of 5: real/seed0" in study.outcome.err
    assert "mlflow ui" in study.outcome.err
    assert "arm 1 of 5" not in study.outcome.out


def test_runs_are_nested_study_arm_stage_and_finished(study: FinishedStudy) -> None:
    # Other tests start stages by hand in this store; what belongs to the study is the study and what has a parent.
    runs = [run for run in study.store.find_runs() if run.parent_run_id or stage_of(run) == "study"]
    assert {run.status for run in runs} == {"FINISHED"}
    counts = Counter(map(stage_of, runs))
    arms = len(ARMS)
    assert counts == {
        "study": 1, "arm": arms, "make-data": TRAINED + 2, "finetune": TRAINED,
        "detect": arms, "evaluate": arms, "analyze": 1, "report": 1,
    }  # fmt: skip
    by_id = {run.run_id: run for run in runs}
    (root,) = runs_of(study, "study")
    assert root.parent_run_id == ""
    assert sorted(run.name for run in runs_of(study, "arm")) == ARMS
    for run in runs:
        parent = by_id.get(run.parent_run_id)
        if stage_of(run) in ("arm", "analyze"):
            assert run.parent_run_id == root.run_id
        elif stage_of(run) in ("finetune", "detect", "evaluate"):
            assert parent is not None
            assert stage_of(parent) == "arm"


def test_a_run_tells_what_it_was_made_of(study: FinishedStudy) -> None:
    run = run_named(study, "detect symbolic/seed0")
    assert run.tags["rhstudy.exit_code"] == "0"
    assert run.tags["rhstudy.seed"] == "0"
    assert run.tags["rhstudy.git_dirty"] in ("true", "false", "unknown")
    assert run.tags["rhstudy.version.torch"].startswith("2.")
    assert run.tags["rhstudy.cpu_cores"].isdigit()
    assert run.tags["rhstudy.input.checkpoint.run_id"] == run_named(study, "finetune symbolic/seed0").run_id
    assert run.params["scoring.threshold"] == "0.02"
    assert run.params["model.name"].endswith("model")
    assert {"num_retrieval_heads", "real_nll", "duration_s"} <= set(run.metrics)
    assert "score_data" in {item.name for item in run.inputs}
    folder = study.store.artifact_path(run.run_id)
    assert (folder / "config" / "config.toml").is_file()
    assert (folder / "figures" / "head_map.png").is_file()


def test_training_has_a_curve(study: FinishedStudy) -> None:
    run = run_named(study, "finetune real/seed0")
    steps = [point.step for point in study.store.metric_history(run.run_id) if point.key == "loss"]
    assert steps == list(range(4))


def test_the_arms_carry_the_numbers_to_compare(study: FinishedStudy) -> None:
    for run in runs_of(study, "arm"):
        assert {"f1", "real_nll", "num_retrieval_heads"} <= set(run.metrics)


def test_the_analysis_knows_every_arm(study: FinishedStudy) -> None:
    folder = Path(study.outcome.facts["artifact_dir"])
    (group,) = json.loads((folder / "analysis.json").read_text())["groups"]
    assert sorted(f"{arm['recipe']}/seed{arm['seed']}" for arm in group["arms"]) == ARMS
    assert (folder / "report.md").read_text() in study.outcome.out


def test_starting_again_reuses_everything(study: FinishedStudy, in_study: Here) -> None:
    before = {run.run_id: run.end_time_s for run in study.store.find_runs()}
    again = in_study("study", "study.toml")
    assert again.code == 0
    assert again.facts["reused"] is True
    assert again.facts["run_id"] == study.outcome.facts["run_id"]
    after = {run.run_id: run.end_time_s for run in study.store.find_runs()}
    assert after == before
    assert not study.store.find_runs(status="RUNNING")


def test_a_run_logged_config_runs_again_and_finds_itself(study: FinishedStudy, in_study: Here) -> None:
    run = run_named(study, "evaluate real/seed0")
    config = study.store.artifact_path(run.run_id) / "config" / "config.toml"
    outcome = in_study("evaluate", str(config))
    assert outcome.code == 0
    assert outcome.facts["reused"] is True
    assert outcome.facts["run_id"] == run.run_id


def test_dry_run_prints_config_and_digest_and_makes_no_run(study: FinishedStudy, in_study: Here) -> None:
    before = len(study.store.find_runs())
    first = in_study("study", "study.toml", "--dry-run").facts
    other = in_study("study", "study.toml", "--dry-run", "--training.learning-rate", "0.5").facts
    assert first["command"] == "study"
    assert first["config"]["data"]["num_tokens"] == 256
    assert other["config"]["training"]["learning_rate"] == 0.5
    assert len(first["digest"]) == 64
    assert first["digest"] != other["digest"]
    assert len(study.store.find_runs()) == before


def test_heads_show_takes_run_ids_folders_and_published_files(study: FinishedStudy, in_study: Here) -> None:
    run = run_named(study, "detect real/seed0")
    folder = study.store.artifact_path(run.run_id)
    named = in_study("heads", "show", run.run_id, "--threshold", "0.02")
    assert named.code == 0
    assert named.facts["num_heads"] == 8
    assert named.facts["fraction_retrieval"] == run.metrics["fraction_retrieval"]
    assert "fraction_retrieval" in named.err
    for other in (str(folder), str(folder / "head_score.json")):
        found = in_study("heads", "show", other, "--threshold", "0.02").facts
        assert found["fraction_retrieval"] == pytest.approx(named.facts["fraction_retrieval"])


def test_heads_compare_tells_all_measures(study: FinishedStudy, in_study: Here) -> None:
    real, other = (run_named(study, f"detect {name}").run_id for name in ("real/seed0", "symbolic/seed0"))
    same = in_study("heads", "compare", real, real, "--threshold", "0.02").facts
    assert same["pearson"] == pytest.approx(1)
    assert same["recall"] == same["jaccard"] == same["precision"] == 1
    found = in_study("heads", "compare", other, real, "--threshold", "0.02")
    assert found.code == 0
    wanted = "num_heads fraction_retrieval pearson spearman cosine recall precision jaccard chance_corrected_recall"
    assert {*wanted.split(), "weighted_recall"} <= set(found.facts)


def test_published_scores_compare(in_study: Here, study: FinishedStudy) -> None:
    rows = {f"{layer}-{head}": [0.1 * layer, 0.05 * head] for layer in range(2) for head in range(4)}
    (study.folder / "a.json").write_text(json.dumps(rows))
    (study.folder / "b.json").write_text(json.dumps({key: [2 * value for value in row] for key, row in rows.items()}))
    assert in_study("heads", "compare", "a.json", "b.json").facts["pearson"] == pytest.approx(1)


def test_analyze_by_hand_gives_what_the_study_gave(study: FinishedStudy, in_study: Here) -> None:
    arms = [
        {"detect": run_named(study, f"detect {name}").run_id, "evaluate": run_named(study, f"evaluate {name}").run_id}
        for name in ("real/seed0", "symbolic/seed0")
    ]
    config = {"arms": arms, "threshold": 0.02, "statistics": {"num_permutations": 100, "num_power_draws": 100}}
    write_config(study.folder / "analyze.toml", config)
    outcome = in_study("analyze", "analyze.toml")
    assert outcome.code == 0
    assert outcome.facts["num_arms"] == 2


def test_the_folder_recorder_gives_the_same_and_is_imported_whole(
    study: FinishedStudy, here: Here, tmp_path: Path
) -> None:
    plain = here("study", str(study.config), "--tracking.recorder", "folder")
    assert plain.code == 0
    store = folder_store(tmp_path)
    ours = {run.tags["rhstudy.stage_digest"] for run in store.find_runs() if "rhstudy.stage_digest" in run.tags}
    known = content_digests(study.store)
    assert content_digests(store) == {name: known[name] for name in ours}
    imported = here("import-runs", "rhstudy-runs")
    assert imported.code == 0
    records = store.find_runs()
    assert imported.facts["num_runs"] == len(records)
    ids = {row["folder_run_id"]: row["run_id"] for row in imported.facts["runs"]}
    target = mlflow_store(tmp_path)
    for record in records:
        copy = target.get_run(ids[record.run_id])
        assert (copy.name, copy.status) == (record.name, record.status)
        assert copy.parent_run_id == ids.get(record.parent_run_id, "")
        assert set(copy.metrics) == set(record.metrics)
        assert all(math.isclose(copy.metrics[key], value) or math.isnan(value) for key, value in record.metrics.items())


def test_a_renamed_recipe_is_run_under_its_new_name(world: Path, here: Here, tmp_path: Path) -> None:
    """The name is written into data and checkpoints, so a run under another name is not taken for it."""
    digests = []
    for name in ("mine", "renamed"):
        knobs = {"name": name, "concept_expression": "symbolic", "context_diversity": "templated"}
        config = write_config(tmp_path / f"{name}.toml", {"data": data_values(world, knobs=knobs, num_examples=2)})
        made = here("make-data", str(config), "--model.name", str(world / "model"))
        assert made.code == 0, made.err
        assert made.facts["recipe"] == name
        assert not made.facts["reused"]
        digests.append(made.facts["recipe_digest"])
    assert digests[0] == digests[1]
