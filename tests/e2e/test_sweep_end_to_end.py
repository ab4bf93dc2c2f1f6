"""A sweep on the tiny world by the command line: reference, trials, best recipe; refused, joined by a worker."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from commands import Here, data_values, mlflow_store, stage_of, write_config

from rhstudy.configs import load_config
from rhstudy.heads.compare import head_measures
from rhstudy.heads.files import load_scores
from rhstudy.plan import StudyConfig, plan_arms
from rhstudy.tracking.recorder import Recorder


def sweep_values(world: Path) -> dict[str, object]:
    return {
        "name": "tiny sweep",
        "space": [{"knob": "concept_expression", "choices": ["templated", "symbolic"]}, {"knob": "real_fraction"}],
        "num_trials": 2,
        "seeds": [1, 2],
        "pruner": "median",  # which gives up none of the first five
        "report_at": [0.5],
        "build_ahead": "on",
        "data": data_values(world),
        "model": {"name": str(world / "model"), "device": "cpu"},
        "context": {"rope_theta": 40000.0},
        "training": {"batch_size": 2, "learning_rate": 0.01},
        "scoring": {"threshold": 0.02},
        "validation": {
            "top_k": 1, "num_random": 9, "num_further_seeds": 0, "reference_sizes": [0, 4, 8],
            "answering": {"max_new_tokens": 4},
            "statistics": {"num_permutations": 200, "num_resamples": 200, "num_power_draws": 100},
        },
    }  # fmt: skip


@pytest.mark.slow
def test_a_sweep_from_its_first_trial_to_the_study_of_its_best(world: Path, here: Here) -> None:
    config = write_config(here.folder / "search.toml", sweep_values(world))
    first = here("sweep", str(config))
    assert first.code == 0, first.err[-3000:]
    facts = first.facts
    assert (facts["num_trials"], facts["num_complete"], facts["objective"]) == (2, 2, "weighted_head_recall")
    assert (here.folder / "tiny sweep.journal").is_file()
    store = mlflow_store(here.folder)
    runs = store.find_runs()
    assert {run.status for run in runs} == {"FINISHED"}
    counts = {"sweep": 1, "trial": 2, "make-data": 6, "finetune": 5, "detect": 5}  # two trials and the reference
    assert Counter(map(stage_of, runs)) == counts
    parent = store.get_run(facts["run_id"])
    (reference,) = [run for run in runs if stage_of(run) == "detect" and run.parent_run_id == parent.run_id]
    trials = [run for run in runs if stage_of(run) == "trial"]
    real = load_scores(store.artifact_path(reference.run_id))
    for trial in trials:
        found = [load_scores(store.artifact_path(trial.tags[f"rhstudy.run.detect.seed{seed}"])) for seed in (1, 2)]
        measures = [head_measures(scores, real, 0.02) for scores in found]
        for name, short in (("objective", "weighted_recall"), ("head_recall", "recall")):
            assert trial.metrics[name] == pytest.approx(sum(one[short].value for one in measures) / 2)
        parts = ("make_data_s", "finetune_s", "checkpoints_s", "detect_s", "gpu_seconds")
        assert min(trial.metrics[name] for name in parts) > 0
        assert trial.metrics["checkpoints_s"] < trial.metrics["finetune_s"]
        assert (trial.metrics["train_tokens"] > 0) == (trial.metrics["load_s"] == 0)  # the reference's base is kept
        below = [run for run in runs if run.parent_run_id == trial.run_id]
        ahead = sorted("rhstudy.built_ahead_s" in run.tags for run in below if stage_of(run) == "make-data")
        assert ahead == [False, True]
        points = store.metric_history(trial.run_id)
        curve = {point.step: point.value for point in points if point.key == "checkpoint_weighted_head_recall"}
        assert list(curve) == [25, 50, 75, 100]
        assert (curve[50], curve[100]) == (
            pytest.approx(measures[0]["weighted_recall"].value), pytest.approx(trial.metrics["objective"]),
        )  # fmt: skip
        middles = [run.metrics["checkpoint_weighted_head_recall"] for run in below if stage_of(run) == "finetune"]
        assert curve[25] in middles
    assert re.search(r"make_data_s [\d.]+ \(n = 2\), finetune_s [\d.]+ \(n = 2\), checkpoints_s", first.out)
    assert facts["best_value"] == max(run.metrics["objective"] for run in trials)
    study = load_config(StudyConfig, facts["best_recipe"])
    assert {arm.recipe for arm in plan_arms(study)} == {"real", "untuned", study.custom_recipes[0].name}

    changed = write_config(here.folder / "changed.toml", {**sweep_values(world), "seeds": [2, 3]})
    refused = here("sweep", str(changed))
    assert refused.code == 2
    assert "search file must be the one that the sweep began with" in refused.err
    assert "-seeds = [1, 2]; +seeds = [2, 3]" in refused.err

    assert parent.tags["rhstudy.run.detect.reference"] == reference.run_id
    # A later worker compares with the same reference and need not train it again.
    drop_checkpoints(store, [reference.tags["rhstudy.input.checkpoint.run_id"]])
    worker = here("sweep", str(config), "--num-trials", "3", "--worker")
    assert worker.code == 0, worker.err[-3000:]
    assert worker.facts == {"run_id": facts["run_id"], "num_trials": 1}
    counts |= {"trial": 3, "make-data": 8, "finetune": 7, "detect": 7}
    assert Counter(map(stage_of, store.find_runs())) == counts
    again = here("sweep", str(config), "--num-trials", "3")
    assert again.facts["num_complete"] == 3
    assert json.loads(again.out.splitlines()[-1])["importance"] is None
    check_on_the_real_task(here, config, counts)


def drop_checkpoints(store: Recorder, run_ids: Iterable[str]) -> None:
    for run_id in run_ids:
        (store.artifact_path(run_id) / "attention.safetensors").unlink()


def check_on_the_real_task(here: Here, config: Path, counts: dict[str, int]) -> None:
    store = mlflow_store(here.folder)
    nothing = here("sweep-validate", str(config), "--storage", "none.journal")
    assert nothing.code == 2
    assert "storage must hold the sweep tiny sweep, got 'none.journal'" in nothing.err
    done = here("sweep-validate", str(config))
    assert done.code == 0, done.err[-3000:]
    facts = done.facts
    assert (facts["num_candidates"], facts["num_evaluated"], facts["num_eval_rows"]) == (3, 3, 6)
    runs = store.find_runs()
    # The trials' models are reused and the reference is trained again; new are the reference of 4 rows, eval rows and
    # the untuned model's heads.
    expected = {
        **counts, "sweep-validate": 1, "make-data": counts["make-data"] + 2, "finetune": counts["finetune"] + 2,
        "detect": counts["detect"] + 2, "evaluate": 8,
    }  # fmt: skip
    assert Counter(map(stage_of, runs)) == expected
    assert {run.status for run in runs} == {"FINISHED"}
    findings = json.loads((Path(facts["folder"]) / "validation.json").read_text(encoding="utf-8"))
    own = store.get_run(facts["run_id"])
    for row in findings["recipes"]:
        for seed, f1 in row["f1_by_seed"].items():
            evaluation = store.get_run(own.tags[f"rhstudy.run.evaluate.{row['recipe']}.seed{seed}"])
            assert f1 == pytest.approx(evaluation.metrics["f1"])
            assert evaluation.parent_run_id == own.run_id
    assert [item["num_distinct"] for item in findings["references"]] == [0, 4, 8]
    assert "made of 8 rows at most" in findings["references"][2]["reason"]
    assert findings["left_out"] == []
    assert {path.name for path in Path(facts["folder"]).iterdir()} == {
        "validation.json", "validation.csv", "validation.md", "recall_f1.png", "regret.png",
    }  # fmt: skip
    drop_checkpoints(store, [run.run_id for run in runs if stage_of(run) == "finetune"][:3])
    again = here("sweep-validate", str(config))
    assert again.facts == facts
    assert Counter(map(stage_of, store.find_runs())) == expected
