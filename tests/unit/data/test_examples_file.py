from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rhstudy.configs import plain
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.examples_file import read_examples, write_examples
from rhstudy.errors import InputError
from rhstudy.types import Example

CHILD = """
import json, sys
from transformers import PreTrainedTokenizerFast
from rhstudy.configs import from_mapping
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.examples_file import write_examples
folder, target, configs = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
for name, values in json.loads(configs).items():
    parts = build_dataset(from_mapping(DataConfig, values), tokenizer).parts
    write_examples(f"{target}/{name}.jsonl", [example for part in parts.values() for example in part])
"""


@pytest.fixture(scope="module")
def examples(config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    return build_dataset(config(num_examples=4), chat_tokenizer).parts["train"]


def test_round_trip(tmp_path: Path, examples: list[Example], chat_tokenizer: PreTrainedTokenizerFast) -> None:
    write_examples(tmp_path / "x.jsonl", examples)
    assert read_examples(tmp_path / "x.jsonl", chat_tokenizer) == examples
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert "prompt_ids" not in row
    assert row["num_prompt_tokens"] == len(examples[0].prompt_ids)


def test_another_tokenizer_is_refused(tmp_path: Path, examples: list[Example], bpe: object) -> None:
    write_examples(tmp_path / "x.jsonl", examples)
    changed = PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template="{{ messages[0]['content'] }}")
    changed.add_tokens(["harbour"])
    with pytest.raises(
        InputError,
        match=r"prompt_ids_sha256 must be [0-9a-f]{12}\.\.\., got .*line 1\). These data were built with another",
    ):
        read_examples(tmp_path / "x.jsonl", changed)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda row: row.pop("needles"), "examples file must hold whole examples, got <KeyError: 'needles'>.*line 1"),
        (lambda row: row.update(needles=[{"char_span": [1]}]), "examples file must hold whole examples"),
        (lambda row: row.update(prompt=row["prompt"].replace("harbour", "port", 1)), "prompt_ids_sha256 must be"),
    ],
)
def test_damaged_files(
    tmp_path: Path,
    examples: list[Example],
    chat_tokenizer: PreTrainedTokenizerFast,
    change: Callable[[dict], None],
    match: str,
) -> None:
    write_examples(tmp_path / "x.jsonl", examples)
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    change(row)
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=match):
        read_examples(tmp_path / "x.jsonl", chat_tokenizer)


def test_two_processes_write_the_same_bytes(
    tmp_path: Path, config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    recipes = ("real", "templated_in_passages", "templated_in_filler", "symbolic")
    configs = {name: config(recipe=name, num_examples=3, seed=5, parts=("train", "score")) for name in recipes}
    chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    values = json.dumps(
        {name: {k: v for k, v in plain(item).items() if v is not None} for name, item in configs.items()}
    )
    command = [sys.executable, "-c", CHILD, str(tmp_path / "tokenizer"), str(tmp_path), values]
    subprocess.run(
        command, check=True, env={**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    for name, item in configs.items():
        parts = build_dataset(item, chat_tokenizer).parts
        write_examples(tmp_path / "here.jsonl", [example for part in parts.values() for example in part])
        assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes(), name
