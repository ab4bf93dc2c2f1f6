"""`rhstudy intervene` on the tiny world: what it leaves, heads of another model, killed and started again, reused."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Here, data_values, folder_store, in_this_process, interrupted, write_config
from tiny_hub import tiny_llama_config, write_model

from rhstudy.stages.outcomes import read_necessity
from rhstudy.tracking.artifacts import open_artifacts


@dataclass(frozen=True)
class Made:
    """A folder with data, a checkpoint and head scores of the untuned model."""

    folder: Path
    data: str
    checkpoint: str
    heads: str

    @property
    def arguments(self) -> tuple[str, ...]:
        few = ("--knockout.num-draws", "4", "--answering.max-new-tokens", "4", "--knockout.threshold", "0.02")
        return ("intervene", "model.toml", "--data", self.data, "--heads", self.heads, *few)


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("intervene")
    model, tracking = {"name": str(world / "model"), "device": "cpu"}, {"recorder": "folder"}
    data = data_values(world, recipe="real", parts=["train", "score", "eval"])
    write_config(folder / "data.toml", {"data": data, "model": model, "tracking": tracking})
    write_config(folder / "model.toml", {"model": model, "tracking": tracking})

    def do(*arguments: str) -> str:
        outcome = in_this_process(folder, *arguments)
        assert outcome.code == 0, outcome.err[-3000:]
        return str(outcome.facts["run_id"])

    data_id = do("make-data", "data.toml")
    checkpoint = do("finetune", "model.toml", "--data", data_id)
    return Made(folder, data_id, checkpoint, do("detect", "model.toml", "--data", data_id))


@pytest.fixture
def run(made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(made.folder, monkeypatch, capsys)


def test_a_run_leaves_outcomes_conditions_statistics_and_figures(made: Made, run: Here) -> None:
    outcome = run(*made.arguments)
    assert outcome.code == 0, outcome.err[-3000:]
    artifacts = open_artifacts(outcome.facts["artifact_dir"])
    plan = json.loads((artifacts.path / "conditions.json").read_text())
    rows = [json.loads(line) for line in (artifacts.path / "outcomes.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * len(plan["conditions"])
    assert [row["condition"] for row in rows[: len(plan["conditions"])]] == [item["id"] for item in plan["conditions"]]
    assert len((artifacts.path / "outcomes.csv").read_text().splitlines()) == 1 + len(plan["conditions"])
    found = json.loads((artifacts.path / "necessity.json").read_text())
    assert found["same_model"] is True
    assert {"dose", "reason", "control_reason", "borrowed", "f1", "exact_match", "gold_logp"} <= set(found["doses"][0])
    assert [dose["reason"] for dose in found["doses"] if dose["dose"] == 10] == ["the model has 8 heads"]
    assert outcome.facts["f1_top10"] is None
    for metric in ("f1", "exact_match", "gold_logp"):
        assert (artifacts.path / "figures" / f"dose_curve_{metric}.png").is_file()
    (artifacts.path / "necessity.json").rename(made.folder / "aside.json")
    assert read_necessity(artifacts) == found, "the statistics can be made from the other files"
    (made.folder / "aside.json").rename(artifacts.path / "necessity.json")
    record = folder_store(made.folder).get_run(outcome.facts["run_id"])
    assert record.metrics["f1_baseline"] == found["doses"][0]["f1"]["baseline"]["estimate"]
    assert {"duration_s", "intervention_s"} <= set(record.metrics)
    assert record.tags["rhstudy.heads_of"] == "model/untuned_native/seed0"
    ways = [json.loads(record.params[f"knockout.{name}"]) for name in ("modes", "scopes")]
    assert ways == [["zero_output"], ["decode"]]

    again = run(*made.arguments, "--answering.batch-size", "4")
    assert again.facts["reused"] is True
    assert again.facts["run_id"] == outcome.facts["run_id"]


def test_heads_of_one_model_are_knocked_out_of_another_and_both_are_recorded(made: Made, run: Here) -> None:
    outcome = run(*made.arguments, "--checkpoint", made.checkpoint)
    assert outcome.code == 0, outcome.err[-3000:]
    plan = json.loads((Path(outcome.facts["artifact_dir"]) / "conditions.json").read_text())
    assert plan["same_model"] is False
    assert (plan["subject"]["recipe"], plan["heads_subject"]["recipe"]) == ("real", "untuned_native")


def test_a_killed_run_goes_on_where_it_was_and_ends_as_an_unbroken_one(made: Made, run: Here, world: Path) -> None:
    arguments = (*made.arguments, "--seed", "7", "--knockout.num-draws", "60", "--answering.batch-size", "2")
    work = made.folder / "cache" / "work"

    def two_examples_are_done() -> bool:
        return any(path.read_bytes().count(b"\n") >= 2 for path in work.glob("*/outcomes.jsonl"))

    killed = interrupted(made.folder, signal.SIGKILL, two_examples_are_done, *arguments)
    assert killed.code == -signal.SIGKILL
    kept = max(path.read_bytes().count(b"\n") for path in work.glob("*/outcomes.jsonl"))
    finished = run(*arguments)
    assert finished.code == 0, finished.err[-3000:]
    assert finished.facts["reused"] is False
    # A row an example and condition: a fast machine has more than two of them before the signal comes.
    assert 2 <= kept < len((Path(finished.facts["artifact_dir"]) / "outcomes.jsonl").read_text().splitlines())

    store = ("--tracking.folder", "unbroken")
    paths = {name: str(folder_store(made.folder).artifact_path(getattr(made, name))) for name in ("data", "heads")}
    unbroken = run(*arguments, *store, "--data", paths["data"], "--heads", paths["heads"])
    assert unbroken.code == 0, unbroken.err[-3000:]
    assert unbroken.facts["reused"] is False
    for name in ("outcomes.jsonl", "conditions.json", "necessity.json"):
        one, other = (Path(item.facts["artifact_dir"]) / name for item in (finished, unbroken))
        assert one.read_bytes() == other.read_bytes(), name


def test_bad_references_exit_2_and_say_what_to_do(made: Made, run: Here) -> None:
    write_model(made.folder / "wide", tiny_llama_config(num_attention_heads=8, num_key_value_heads=2))
    cases = {
        r"heads must come from detect, got 'make-data'": ("--heads", made.data),
        r"data must come from make-data, got 'detect'": ("--data", made.heads),
        r"heads must be scored on other rows than they are tested on, got <5 shared>": ("--part", "score"),
        r"heads must be of a model with 2 layers x 8 heads, got <2 layers x 4 heads>": (
            "--model.name", str(made.folder / "wide"),
        ),
        r"knockout.doses must all be at least 1, got (0,)": ("--knockout.doses", "0"),
    }  # fmt: skip
    for wanted, changes in cases.items():
        outcome = run(*made.arguments, *changes)
        assert outcome.code == 2, outcome.err
        assert wanted in " ".join(outcome.err.split()), outcome.err
