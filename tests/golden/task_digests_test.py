"""The same seed gives the same bytes for tasks of several gold documents, in any process, with any number of workers.

When a change is meant, print the new digests with ``python tests/golden/task_digests_test.py`` and say in the commit
why the data changed.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from data_digests_test import byte_tokenizer
from task_worlds import hotpot_row, musique_row, own_row, topic, two_wiki_row, write_passages, write_rows

from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.examples_file import write_examples

DIGESTS = Path(__file__).with_name("task_digests.json")
ROWS = {"musique": musique_row, "two_wiki_multihop": two_wiki_row, "hotpotqa": hotpot_row, "own": own_row}


def configs(folder: Path) -> dict[str, DataConfig]:
    """Real recipes of every layout, and invented ones of the tasks."""
    passages = write_passages(folder / "passages.jsonl", 60)
    common: dict[str, Any] = {"num_examples": 4, "seed": 3}
    found = {}
    for name, make in ROWS.items():
        rows = write_rows(folder / f"{name}.jsonl", [make(number) for number in range(20)])
        found[name] = DataConfig(
            task="own" if name == "own" else "musique", train_file=rows, passages_file=passages, num_tokens=3500,
            parts=("train", "score", "dev", "eval"), num_score=2, num_dev=2, num_eval=2, **common,
        )  # fmt: skip
    topics = write_rows(folder / "topics.jsonl", [topic(number) for number in range(4)])
    found["summhay"] = DataConfig(
        task="summhay", train_file=topics, num_tokens=9000, parts=("train", "eval"), num_eval=4, **common
    )
    for recipe in ("templated_in_filler", "symbolic"):
        rows = str(folder / "musique.jsonl")
        found[f"musique {recipe}"] = DataConfig(
            task="musique", recipe=recipe, train_file=rows, passages_file=passages, num_tokens=3500, **common
        )
        found[f"summhay {recipe}"] = DataConfig(
            task="summhay", recipe=recipe, train_file=topics, num_tokens=9000, **common
        )
    return found


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """Name -> part -> sha256 of its rows as written."""
    found: dict[str, dict[str, str]] = {}
    for name, config in configs(folder).items():
        built = build_dataset(config, byte_tokenizer())
        found[name] = {part: write_examples(folder / "out.jsonl", rows) for part, rows in built.parts.items()}
    return found


def test_digests(tmp_path: Path) -> None:
    found, expected = digests(tmp_path), json.loads(DIGESTS.read_text(encoding="utf-8"))
    assert {name for name in found if found[name] != expected.get(name)} == set()
    assert set(found) == set(expected)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "3"},
    ],
)
def test_digests_of_other_processes_and_worker_counts(environment: dict[str, str]) -> None:
    command = [sys.executable, str(Path(__file__))]
    found = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    assert json.loads(found.stdout) == json.loads(DIGESTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump(digests(Path(place)), sys.stdout, indent=1)
