"""`rhstudy patch` on a study's arms: what it leaves, both directions, bad references, killed and started again."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import FinishedStudy, Here, interrupted, write_config

from rhstudy.stages.patch_outcomes import read_patching
from rhstudy.tracking.artifacts import open_artifacts
from rhstudy.tracking.recorder import Recorder


@dataclass(frozen=True)
class Arm:
    """Run ids of one arm."""

    checkpoint: str
    heads: str


@dataclass(frozen=True)
class Made:
    """The folder of a study, its eval rows and three of its arms."""

    folder: Path
    store: Recorder
    data: str
    score_data: str
    real: Arm
    other_seed: Arm
    synth: Arm

    @property
    def arguments(self) -> tuple[str, ...]:
        few = ("--patching.num-draws", "2", "--answering.max-new-tokens", "4", "--patching.top-k", "3")
        return ("patch", "patch.toml", "--data", self.data, *self.references(self.real, self.synth), *few)

    @staticmethod
    def references(donor: Arm, recipient: Arm) -> tuple[str, ...]:
        ours = ("--checkpoint", recipient.checkpoint, "--heads", recipient.heads)
        return (*ours, "--donor-checkpoint", donor.checkpoint, "--donor-heads", donor.heads)


@pytest.fixture(scope="module")
def made(study: FinishedStudy, world: Path) -> Made:
    def arm(name: str) -> Arm:
        (found,) = [run for run in study.store.find_runs({"rhstudy.stage": "arm"}) if run.name == name]
        return Arm(found.tags["rhstudy.run.finetune"], found.tags["rhstudy.run.detect"])

    def rows(stage: str, role: str) -> str:
        return study.store.find_runs({"rhstudy.stage": stage}, "FINISHED")[0].tags[f"rhstudy.input.{role}.run_id"]

    config = {"model": {"name": str(world / "model"), "device": "cpu"}, "context": {"rope_theta": 40000.0}}
    write_config(study.folder / "patch.toml", config)
    return Made(
        folder=study.folder,
        store=study.store,
        data=rows("evaluate", "eval_data"),
        score_data=rows("detect", "score_data"),
        real=arm("real/seed0"),
        other_seed=arm("real/seed1"),
        synth=arm("symbolic/seed0"),
    )


@pytest.fixture
def run(in_study: Here) -> Here:
    return in_study


def test_a_run_leaves_outcomes_conditions_shares_and_figures(made: Made, run: Here) -> None:
    outcome = run(*made.arguments)
    assert outcome.code == 0, outcome.err[-3000:]
    artifacts = open_artifacts(outcome.facts["artifact_dir"])
    plan = json.loads((artifacts.path / "conditions.json").read_text())
    rows = [json.loads(line) for line in (artifacts.path / "patches.jsonl").read_text().splitlines()]
    names = [item["condition"] for item in plan["conditions"]]
    assert len(rows) == 6 * len(names)
    assert [row["condition"] for row in rows[: len(names)]] == names
    assert {"example_id", "f1", "exact_match", "gold_nll", "text", "positions", "of_set"} <= set(rows[0])
    assert len((artifacts.path / "patches.csv").read_text().splitlines()) == 1 + len(names)
    found = json.loads((artifacts.path / "patching.json").read_text())
    assert [(patch["positions"], patch["of_set"]) for patch in found["patches"]] == [
        (positions, name)
        for positions in ("all_positions", "answer_rows")
        for name in ("intersection", "complement", "retrieval", "all_heads")
    ]
    assert (found["donor_subject"]["recipe"], found["subject"]["recipe"]) == ("real", "symbolic")
    assert json.loads((artifacts.path / "donor_subject.json").read_text())["recipe"] == "real"
    assert json.loads((artifacts.path / "subject.json").read_text())["recipe"] == "symbolic"
    assert (artifacts.path / "figures" / "patches_answer_rows_f1.png").is_file()
    assert (artifacts.path / "figures" / "patches_all_positions_gold_logp.png").is_file()
    losses = {row["condition"]: row["gold_nll"] for row in rows if row["example_id"] == rows[0]["example_id"]}
    assert losses["all_positions/all_heads"] != pytest.approx(losses["recipient"], abs=1e-4)
    # A row whose every head is patched hears of no other row, so patching those as well changes nothing.
    assert losses["all_positions/all_heads"] == pytest.approx(losses["answer_rows/all_heads"], abs=1e-5)
    assert losses["all_positions/retrieval"] != pytest.approx(losses["answer_rows/retrieval"], abs=1e-5)
    (artifacts.path / "patching.json").rename(made.folder / "aside.json")
    assert read_patching(artifacts) == found, "the statistics can be made from the other files"
    (made.folder / "aside.json").rename(artifacts.path / "patching.json")
    record = made.store.get_run(outcome.facts["run_id"])
    assert record.metrics["gap_gold_logp"] == found["models"]["gold_logp"]["gap"]["estimate"]
    assert record.metrics["num_counter_examples"] == len(found["counter_examples"])
    assert record.tags["rhstudy.donor"] == "model/real/seed0"
    assert record.params["patching.num_draws"] == "2"

    again = run(*made.arguments, "--answering.batch-size", "4")
    assert again.facts["reused"] is True
    assert again.facts["run_id"] == outcome.facts["run_id"]


def test_the_other_direction_and_the_null_are_runs_of_their_own(made: Made, run: Here) -> None:
    few = (*made.arguments, "--patching.positions", "answer_rows")
    null = run(*few, *made.references(made.real, made.other_seed), "--patching.sets", "retrieval")
    assert null.code == 0, null.err[-3000:]
    found = read_patching(open_artifacts(null.facts["artifact_dir"]))
    assert found["same_recipe"] is True
    change = found["patches"][0]["gold_logp"]["change"]
    assert change["estimate"] != 0
    back = (*made.references(made.synth, made.real), "--patching.real-model", "recipient")
    outcome = run(*few, *back, "--null", null.facts["run_id"])
    assert outcome.code == 0, outcome.err[-3000:]
    found = read_patching(open_artifacts(outcome.facts["artifact_dir"]))
    assert (found["donor_subject"]["recipe"], found["subject"]["recipe"]) == ("symbolic", "real")
    nulls = {patch["of_set"]: patch["null"] for patch in found["patches"]}
    assert nulls["intersection"] is None
    assert nulls["retrieval"]["gold_logp"] == change


def test_a_model_patched_from_its_twin_does_not_change(made: Made, run: Here) -> None:
    twins = made.references(made.real, made.real)
    outcome = run(*made.arguments, *twins, "--patching.sets", "retrieval", "all_heads", "--answering.batch-size", "3")
    assert outcome.code == 0, outcome.err[-3000:]
    rows = [
        json.loads(line) for line in (Path(outcome.facts["artifact_dir"]) / "patches.jsonl").read_text().splitlines()
    ]
    own = {row["example_id"]: (row["gold_nll"], row["text"]) for row in rows if row["kind"] == "recipient"}
    for row in rows:  # bit for bit at equal shapes: tests/unit/interventions/test_patching.py
        loss, text = own[row["example_id"]]
        assert row["text"] == text
        assert row["gold_nll"] == pytest.approx(loss, abs=1e-5)
    assert outcome.facts["gap_gold_logp"] == pytest.approx(0, abs=1e-5)
    assert outcome.facts["share_f1_answer_rows_retrieval"] is None


def test_a_killed_run_goes_on_where_it_was_and_ends_as_an_unbroken_one(made: Made, run: Here) -> None:
    arguments = (*made.arguments, "--seed", "7", "--patching.num-draws", "20", "--answering.batch-size", "2")
    work = made.folder / "cache" / "work"

    def some_rows_are_done() -> bool:
        return any(path.read_bytes().count(b"\n") >= 6 for path in work.glob("*/patches.jsonl"))

    killed = interrupted(made.folder, signal.SIGKILL, some_rows_are_done, *arguments)
    assert killed.code == -signal.SIGKILL
    kept = max(path.read_bytes().count(b"\n") for path in work.glob("*/patches.jsonl"))
    finished = run(*arguments)
    assert finished.code == 0, finished.err[-3000:]
    assert finished.facts["reused"] is False
    assert 6 <= kept < 6 * finished.facts["num_conditions"]
    assert not made.store.find_runs(status="RUNNING")

    def moved(argument: str) -> str:
        known = {made.data, made.real.checkpoint, made.real.heads, made.synth.checkpoint, made.synth.heads}
        return str(made.store.artifact_path(argument)) if argument in known else argument

    store = ("--tracking.recorder", "folder", "--tracking.folder", "unbroken")
    unbroken = run(*map(moved, arguments), *store)
    assert unbroken.code == 0, unbroken.err[-3000:]
    assert unbroken.facts["reused"] is False
    for name in ("patches.jsonl", "conditions.json", "patching.json"):
        one, other = (Path(item.facts["artifact_dir"]) / name for item in (finished, unbroken))
        assert one.read_bytes() == other.read_bytes(), name


def test_bad_references_exit_2_and_say_what_to_do(made: Made, run: Here) -> None:
    cases = {
        "heads must come from detect, got 'make-data'": ("--heads", made.data),
        "donor_heads must come from detect, got 'finetune'": ("--donor-heads", made.real.checkpoint),
        "donor_checkpoint must come from finetune, got 'detect'": ("--donor-checkpoint", made.real.heads),
        "null must come from patch, got 'detect'": ("--null", made.real.heads),
        "data must come from make-data, got 'detect'": ("--data", made.real.heads),
        "heads must be scored on the model they are given for, model/symbolic/seed0, got 'model/real/seed0'": (
            "--heads", made.real.heads,
        ),
        "donor_heads must be scored on the model they are given for, model/untuned/seed0": ("--donor-checkpoint", ""),
        "heads must be scored on other rows than they are tested on, got <5 shared>": (
            "--data", made.score_data, "--part", "score",
        ),
        "context.rope_theta must be 40000.0 as in training, got 50000.0": ("--context.rope-theta", "50000"),
        "patching.sets must name each once": ("--patching.sets", "all_heads", "all_heads"),
    }  # fmt: skip
    for wanted, changes in cases.items():
        outcome = run(*made.arguments, *changes)
        assert outcome.code == 2, outcome.err
        assert wanted in " ".join(outcome.err.split()), outcome.err
    assert not made.store.find_runs(status="RUNNING")
