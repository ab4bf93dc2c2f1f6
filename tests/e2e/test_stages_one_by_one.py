"""Each stage by its own command, each in a process of its own, twice with one seed: the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Here, Outcome, data_values, folder_store, in_own_process, write_config

from rhstudy.cli import STAGES

HEADLINES = {
    "make-data": {"num_examples_train", "mean_prompt_tokens_score", "answer_in_needle_share_eval"},
    "finetune": {"train_loss", "weight_change_norm", "num_steps", "train_tokens_per_s"},
    "detect": {"num_heads", "fraction_retrieval", "real_nll", "scoring_s"},
    "evaluate": {"f1", "exact_match", "num_unscored"},
    "intervene": {"f1_baseline", "f1_top2", "f1_random2", "drop_f1_top2", "p_exact_match_top2", "num_conditions"},
}


def chain(folder: Path, world: Path, run: Here | None = None) -> dict[str, Outcome]:
    """make-data to intervene in `folder`, each stage given the run id that the one before printed."""
    folder.mkdir(exist_ok=True)
    model = {"name": str(world / "model"), "device": "cpu"}
    tracking = {"recorder": "folder"}
    data = data_values(world, recipe="real", parts=["train", "score", "eval"])
    write_config(folder / "data.toml", {"data": data, "model": model, "tracking": tracking})
    write_config(folder / "model.toml", {"model": model, "tracking": tracking})

    def do(*arguments: str) -> Outcome:
        outcome = run(*arguments) if run else in_own_process(folder, *arguments)
        assert outcome.code == 0, outcome.err[-3000:]
        return outcome

    made = do("make-data", "data.toml")
    reference = ("model.toml", "--data", made.facts["run_id"])
    tuned = do("finetune", *reference, "--training.batch-size", "4")
    # The other way to name an input: its artifact folder.
    checkpoint = ("--checkpoint", tuned.facts["artifact_dir"])
    detected = do("detect", *reference, *checkpoint)
    evaluated = do("evaluate", *reference, *checkpoint, "--answering.max-new-tokens", "4")
    heads = ("--heads", detected.facts["run_id"], "--knockout.num-draws", "3")
    knocked = do("intervene", *reference, *checkpoint, *heads, "--answering.max-new-tokens", "4")
    stages = {"make-data": made, "finetune": tuned, "detect": detected, "evaluate": evaluated}
    return {**stages, "intervene": knocked}


@pytest.fixture(scope="module")
def separate(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return chain(tmp_path_factory.mktemp("separate"), world)


@pytest.mark.parametrize("stage", HEADLINES)
def test_a_stage_prints_its_headline_numbers(separate: dict[str, Outcome], stage: str) -> None:
    facts = separate[stage].facts
    assert {"run_id", "artifact_dir", "reused"} | HEADLINES[stage] <= set(facts)
    assert facts["reused"] is False


@pytest.mark.parametrize("stage", HEADLINES)
def test_stdout_is_one_line_and_progress_is_on_stderr(separate: dict[str, Outcome], stage: str) -> None:
    assert len(separate[stage].out.splitlines()) == 1
    assert "Traceback" not in separate[stage].err


def test_the_same_seed_gives_the_same_bytes_in_another_process(
    separate: dict[str, Outcome], world: Path, here: Here, tmp_path: Path
) -> None:
    again = chain(tmp_path, world, here)
    files = {
        "make-data": ("train.parquet", "score.parquet", "eval.parquet", "card.json", "card.md"),
        "finetune": ("attention.safetensors",),
        "detect": ("scores.safetensors", "head_score.json"),
        "evaluate": ("predictions.jsonl",),
        "intervene": ("outcomes.jsonl", "conditions.json", "necessity.json"),
    }
    for stage, names in files.items():
        for name in names:
            first, second = (Path(runs[stage].facts["artifact_dir"]) / name for runs in (separate, again))
            assert first.read_bytes() == second.read_bytes(), name
    assert {run.status for run in folder_store(tmp_path).find_runs()} == {"FINISHED"}


def test_another_seed_gives_other_data(separate: dict[str, Outcome], world: Path, here: Here, tmp_path: Path) -> None:
    data = data_values(world, recipe="real", seed=1)
    write_config(tmp_path / "data.toml", {"data": data, "model": {"name": str(world / "model")}})
    other = here("make-data", "data.toml", "--tracking.recorder", "folder")
    first, second = (Path(run.facts["artifact_dir"]) / "train.parquet" for run in (separate["make-data"], other))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("command", [*STAGES, "heads", "import-runs", ""])
def test_help_exits_0_and_names_the_flags(here: Here, command: str) -> None:
    outcome = here(*filter(None, [command, "--help"]))
    assert outcome.code == 0
    assert "--" in outcome.out
    assert "tracking" in outcome.out or not command


def test_version(here: Here) -> None:
    outcome = here("--version")
    assert outcome.code == 0
    assert outcome.out.strip()[0].isdigit()
