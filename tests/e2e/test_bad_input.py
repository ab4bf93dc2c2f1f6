"""The table of everything a person can get wrong: a message that says what to do, the right exit code, and no run left
RUNNING. Every row goes through the real command line into one MLflow store.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Here, data_values, in_this_process, mlflow_store, write_config
from tiny_hub import VOCABULARY, person, write_data, write_model, write_rows
from transformers import GptOssConfig, MambaConfig

from rhstudy.tracking.recorder import Recorder

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
MODELS = {
    "mamba": MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0, eos_token_id=2
    ),
    "gpt-oss": GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1),
}


@dataclass(frozen=True)
class Place:
    """One folder of commands: its store, the world's data and models, a data set and a checkpoint made before."""

    folder: Path
    world: Path
    store: Recorder
    data: str
    checkpoint: str

    def data_config(self, **changes: Any) -> str:
        model = {"name": str(self.world / "model")}
        return str(
            write_config(self.folder / "data.toml", {"data": data_values(self.world, **changes), "model": model})
        )

    def model_config(self, model: Path, **changes: Any) -> str:
        values = {"data": self.data, "model": {"name": str(model), "device": "cpu"}, **changes}
        return str(write_config(self.folder / "stage.toml", values))


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("bad-input")
    for name, config in MODELS.items():
        write_model(folder / name, config)
    write_model(folder / "other", seed=1)
    place = Place(folder, world, mlflow_store(folder), "", "")
    made = in_this_process(folder, "make-data", place.data_config(parts=["train", "score", "eval"], num_examples=2))
    assert made.code == 0, made.err
    place = Place(folder, world, place.store, made.facts["run_id"], "")
    tuned = in_this_process(folder, "finetune", place.model_config(world / "model"))
    assert tuned.code == 0, tuned.err
    return Place(folder, world, place.store, place.data, tuned.facts["run_id"])


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    finished = {run.run_id for run in place.store.find_runs(status="FINISHED")}
    yield Here(place.folder, monkeypatch, capsys)
    assert not place.store.find_runs(status="RUNNING")
    assert finished <= {run.run_id for run in place.store.find_runs(status="FINISHED")}


def changed_row(place: Place, **changes: Any) -> str:
    """The train file with one row changed, as a file of its own."""
    rows = [person(number) for number in range(60)]
    rows[7] = {**rows[7], **changes}
    return str(write_rows(place.folder / "changed.jsonl", rows))


def torn_file(place: Place) -> str:
    path = place.folder / "torn.jsonl"
    path.write_text(json.dumps(person(0)) + '\n{"question": "who\n')
    return str(path)


def twice_named(place: Place) -> str:
    values = {"recipes": ["real"], "custom_recipes": [{"name": "also_real"}], "data": data_values(place.world)}
    return str(write_config(place.folder / "twice.toml", values))


def same_rows(place: Place) -> str:
    """Detect and evaluate on the rows of one part, as an analysis of one arm."""
    model = place.model_config(place.world / "model", checkpoint=place.checkpoint)
    runs = {}
    for stage, size in (("detect", "--scoring.num-examples"), ("evaluate", "--answering.num-examples")):
        outcome = in_this_process(place.folder, stage, model, "--part", "eval", size, "2")
        assert outcome.code == 0, outcome.err
        runs[stage] = outcome.facts["run_id"]
    path = place.folder / "same-rows.toml"
    path.write_text(f'[[arms]]\ndetect = "{runs["detect"]}"\nevaluate = "{runs["evaluate"]}"\n')
    return str(path)


def bad_toml(place: Place, text: str) -> str:
    path = place.folder / "bad.toml"
    path.write_text(text)
    return str(path)


def broken_model(place: Place, name: str, **files: bytes) -> str:
    """The world's model with files replaced or added; arguments of a detect on it."""
    folder = place.folder / name
    shutil.copytree(place.world / "model", folder, dirs_exist_ok=True)
    for stem, content in files.items():
        suffix = {"model": ".safetensors", "code": ".py"}.get(stem, ".json")
        (folder / f"{stem}{suffix}").write_bytes(content)
    return place.model_config(folder)


REMOTE = json.dumps(
    {"model_type": "planted", "auto_map": {"AutoConfig": "code.Planted", "AutoModelForCausalLM": "code.Planted"}}
).encode()
INVENTED = {"name": "tight", "concept_expression": "symbolic", "context_diversity": "repeated_filler"}

Case = Callable[[Place], list[str]]
CASES: dict[str, tuple[Case, str]] = {
    "no command": (lambda at: [], "usage: rhstudy COMMAND"),
    "unknown command": (lambda at: ["detct"], r"command must be one of make-data, .* got 'detct'"),
    "missing config": (lambda at: ["study", "no.toml"], r"config must be an existing file, got 'no.toml'"),
    "config is a folder": (lambda at: ["study", "."], r"config must be a readable file, got '.'"),
    "not TOML": (lambda at: ["study", bad_toml(at, "name = = 3")], r"config must be valid TOML.*line 1"),
    "unknown TOML key": (
        lambda at: ["make-data", bad_toml(at, "[data]\nnum_token = 3")],
        r"data.num_token must be a known key.*bad.toml.*Did you mean num_tokens",
    ),
    "wrong type in TOML": (
        lambda at: ["make-data", bad_toml(at, '[data]\ntrain_file = "x"\nnum_tokens = "many"')],
        r"data.num_tokens must be of type int, got 'many'",
    ),
    "value out of range in TOML": (lambda at: ["make-data", at.data_config(num_tokens=3)], "data.num_tokens must be"),
    "unknown flag": (
        lambda at: ["make-data", at.data_config(), "--data.num-tokns", "300"],
        r"Unrecognized options: --data.num-tokns.*Perhaps you meant.*--data.num-tokens",
    ),
    "wrong type on the command line": (
        lambda at: ["make-data", at.data_config(), "--data.num-tokens", "many"],
        r"--data.num-tokens: invalid literal",
    ),
    "value out of range on the command line": (
        lambda at: ["make-data", at.data_config(), "--data.num-tokens", "3"],
        r"data.num_tokens must be at least 64, got 3",
    ),
    "required value missing": (lambda at: ["detect"], r"--data"),
    "missing data file": (
        lambda at: ["make-data", at.data_config(train_file="no.jsonl")],
        r"data.train_file must be an existing file, got 'no.jsonl'",
    ),
    "missing passages": (
        lambda at: ["make-data", at.data_config(passages_file="no.jsonl")],
        r"passages_file must be an existing file, got 'no.jsonl'",
    ),
    "unreadable JSON": (
        lambda at: ["make-data", at.data_config(train_file=torn_file(at))],
        r"data.train_file must hold one JSON object a line.*torn.jsonl, line 2",
    ),
    "a key missing in a row": (
        lambda at: ["make-data", at.data_config(train_file=changed_row(at, question=None))],
        r"question.*changed.jsonl, line 8",
    ),
    "gold answer not in its passage": (
        lambda at: ["make-data", at.data_config(train_file=changed_row(at, answers=["Atlantis"]))],
        r"gold_text must hold one of the row's answers at word boundaries, got \['Atlantis'\] \(row person-7.*line 8",
    ),
    "prompt shorter than the needle": (
        lambda at: ["make-data", at.data_config(num_tokens=80)],
        r"data.num_tokens must be longer than the needle, got <80 tokens, \d+ needed",
    ),
    "more examples than rows": (
        lambda at: ["make-data", at.data_config(parts=["score"], num_score=50)],
        r"data.num_score must be at most the rows of part score, got <50, with \d+ rows built",
    ),
    "too few passages": (
        lambda at: ["make-data", at.data_config(num_tokens=100000, parts=["score"])],
        r"data.passages_file must hold enough answer-free passages",
    ),
    "unknown recipe": (
        lambda at: ["make-data", at.data_config(recipe="symbolical")],
        r"data.recipe must be a known recipe, got 'symbolical'.*Did you mean symbolic",
    ),
    "unknown recipe of a study": (
        lambda at: ["study", at.data_config(), "--recipes", "real", "symbolical"],
        r"must be a known recipe, got 'symbolical'.*Did you mean symbolic",
    ),
    "unknown model": (
        lambda at: ["make-data", at.data_config(), "--model.name", "no/such-model"],
        r"model.name must be a known name, a local folder or a hub id that can be fetched, got 'no/such-model'",
    ),
    "model folder without weights": (
        lambda at: ["detect", at.model_config(at.world / "data")],
        r"model.name must hold safetensors or one GGUF file",
    ),
    "torn model config": (
        lambda at: ["detect", broken_model(at, "torn", config=b'{"model_type": ')],
        r"model.name must be a model that transformers loads, got '.*torn'",
    ),
    "torn weights": (
        lambda at: ["detect", broken_model(at, "cut", model=b"\x10\x00")],
        r"model.name must be a model that transformers loads, got '.*cut'",
    ),
    "a model that brings code": (
        lambda at: ["detect", broken_model(at, "remote", config=REMOTE, code=b"raise SystemExit('ran')")],
        r"model.name must be a model that transformers loads, got '.*remote'",
    ),
    "a device of another kind": (
        lambda at: ["detect", at.model_config(at.world / "model"), "--model.device", "meta"],
        r"model.device must be auto, cpu or cuda\[:N\], got 'meta'",
    ),
    "invented needles that never fit": (
        lambda at: ["make-data", at.data_config(knobs=INVENTED, num_tokens=64, on_bad_row="skip")],
        r"data.num_tokens must be",
    ),
    "a recipe called like a baseline": (
        lambda at: ["make-data", at.data_config(knobs={"name": "untuned"})],
        r"knobs.name must not be one of untuned, untuned_native",
    ),
    "one recipe under two names": (
        lambda at: ["study", twice_named(at)],
        r"recipes must differ in more than their names, got \['real', 'also_real'\]",
    ),
    "head scores and F1 on the same rows": (
        lambda at: ["analyze", same_rows(at)],
        r"arms must be scored and evaluated on different rows, got <2 shared rows>",
    ),
    "unknown device": (
        lambda at: ["detect", at.model_config(at.world / "model"), "--model.device", "abacus"],
        r"model.device must be auto, cpu or cuda\[:N\], got 'abacus'",
    ),
    "model without heads": (
        lambda at: ["detect", at.model_config(at.folder / "mamba")],
        r"model must have observable attention heads, got 'MambaForCausalLM'",
    ),
    "model with sinks": (
        lambda at: ["detect", at.model_config(at.folder / "gpt-oss")],
        r"model must use plain softmax attention, got <GptOssForCausalLM with attention sinks>",
    ),
    "run id that does not exist": (
        lambda at: ["detect", "--data", "0" * 32, "--model.name", str(at.world / "model")],
        r"must be the id of a recorded run or the path of an artifact folder, got '0{32}'",
    ),
    "a run of another stage": (
        lambda at: ["detect", "--data", at.checkpoint, "--model.name", str(at.world / "model")],
        r"data must come from make-data, got 'finetune'",
    ),
    "a part that was not built": (
        lambda at: ["detect", at.model_config(at.world / "model"), "--part", "dev"],
        r"must exist, got 'dev.parquet'.*hold .*score.parquet",
    ),
    "checkpoint of another base": (
        lambda at: ["detect", at.model_config(at.folder / "other", checkpoint=at.checkpoint)],
        r"checkpoint must be of this base model, got 'model'",
    ),
    "checkpoint with another RoPE": (
        lambda at: [
            "evaluate",
            at.model_config(at.world / "model", checkpoint=at.checkpoint, context={"rope_theta": 5e5}),
        ],
        r"context.rope_theta must be 0.0 as in training, got 500000.0",
    ),
    "no arms to analyze": (lambda at: ["analyze"], r"arms must name at least one arm"),
    "heads without a file": (lambda at: ["heads", "show", "no.json"], r"got 'no.json'"),
    "heads compare of one": (lambda at: ["heads", "compare", "a"], r"heads must be followed by show A or compare A B"),
    "heads export of two": (
        lambda at: ["heads", "export", "a", "b", "--format", "qrhead", "--output", "out"],
        r"heads must be followed by show A or compare A B or export A",
    ),
    "import of no folder": (lambda at: ["import-runs", "nowhere"], r"nowhere"),
    "unreachable tracking server": (
        lambda at: ["detect", at.model_config(at.world / "model"), "--tracking.uri", "http://127.0.0.1:9"],
        r"tracking.uri must be an MLflow store that opens, got 'http://127.0.0.1:9'",
    ),
}  # fmt: skip


def flat(text: str) -> str:
    """Messages without the frames and line breaks that tyro draws around them."""
    return re.sub(r"\s+", " ", re.sub(r"[│─╭╮╰╯]", " ", text))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_exits_2_and_says_what_to_do(place: Place, run: Here, case: str) -> None:
    arguments, wanted = CASES[case]
    outcome = run(*arguments(place))
    assert outcome.code == 2, outcome.err
    assert re.search(wanted, flat(outcome.err)), flat(outcome.err)
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_a_refused_stage_is_recorded_as_failed_with_its_message(place: Place, run: Here) -> None:
    run("detect", place.model_config(place.folder / "gpt-oss"), "--seed", "5")
    newest = max(place.store.find_runs(), key=lambda record: record.start_time_s)
    assert newest.status == "FAILED"
    assert newest.tags["rhstudy.exit_code"] == "2"
    assert "attention sinks" in newest.tags["rhstudy.error"]


def test_a_full_disk_is_a_failure_that_names_the_folder(
    place: Place, run: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from rhstudy.stages import make_data

    def full(path: Path, examples: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(make_data, "write_examples", full)
    outcome = run("make-data", place.data_config(seed=9))
    assert outcome.code == 1
    assert re.search(r"disk must have free space, got <\d+ bytes free> \(/.*Free some space", flat(outcome.err))
    newest = max(place.store.find_runs(), key=lambda record: record.start_time_s)
    assert (newest.status, newest.tags["rhstudy.exit_code"]) == ("FAILED", "1")


def test_an_unwritable_work_folder_is_named(place: Place, run: Here) -> None:
    blocked = place.folder / "blocked"
    blocked.write_text("a file where a folder should be")
    outcome = run("make-data", place.data_config(seed=10), "--tracking.work-dir", str(blocked / "work"))
    assert outcome.code == 2
    assert "tracking.work_dir must be a folder to write in" in flat(outcome.err)


def test_a_changed_artifact_is_noticed(place: Place, run: Here) -> None:
    made = run("make-data", place.data_config(seed=11))
    copied = place.folder / "copied"
    shutil.copytree(made.facts["artifact_dir"], copied)
    (copied / "train.parquet").open("ab").write(b"\n")
    outcome = run("finetune", "--data", str(copied), "--model.name", str(place.world / "model"))
    assert outcome.code == 2
    assert re.search(r"artifact file train.parquet must have sha256", flat(outcome.err))


def test_a_failing_arm_does_not_stop_the_others(place: Place, run: Here, tmp_path: Path) -> None:
    rows = write_data(tmp_path / "data")
    values = data_values(tmp_path, num_examples=2, num_score=2, num_eval=2)
    assert rows.is_dir()
    study = {
        "recipes": ["real", "symbolic"],
        "custom_recipes": [{"name": "nobody_asks", "question_words": ["whence"]}],
        "ceiling_seeds": [],
        "baselines": [],
        "data": values,
        "model": {"name": str(place.world / "model"), "device": "cpu"},
    }
    outcome = run("study", str(write_config(place.folder / "study.toml", study)))
    assert outcome.code == 2
    wanted = r"arms must all finish \(3\), got <1 failed: nobody_asks/seed0>.*leave at least one row"
    assert re.search(wanted, flat(outcome.err)), flat(outcome.err)
    arms = {run.name: run for run in place.store.find_runs() if run.tags["rhstudy.stage"] == "arm"}
    found = {name: run.status for name, run in arms.items()}
    assert found == {"real/seed0": "FINISHED", "symbolic/seed0": "FINISHED", "nobody_asks/seed0": "FAILED"}
    assert "head_recall" in arms["symbolic/seed0"].metrics, "the finished arms are analyzed"
