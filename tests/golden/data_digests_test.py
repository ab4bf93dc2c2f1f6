"""The same seed gives the same bytes on every machine and in every version: digests of small data sets, written down.

A tokenizer of single bytes keeps other libraries out of it. When a change of recipe is meant, print the new digests
with ``python tests/golden/data_digests_test.py`` and say in the commit why the data changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.entities import Entities, EntitySource
from rhstudy.data.knobs import PRESETS
from rhstudy.data.relations import Kind
from rhstudy.seeding import generator

DIGESTS = Path(__file__).with_name("data_digests.json")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def world(folder: Path) -> tuple[str, str]:
    """Forty rows and sixty passages that any reader can check by eye."""
    rows = [
        {
            "id": f"row-{number}",
            "question": f"{'who' if number % 3 else 'which keeper'} keeps lighthouse {number}",
            "answers": [f"Keeper K{number}x"],
            "title": f"Lighthouse {number}",
            "gold_text": f"Lighthouse {number} – on rock {number * 7} – is kept by Keeper K{number}x since spring.",
        }
        for number in range(40)
    ]
    passages = [
        {"title": f"Harbour {number}", "text": f"Harbour {number} has a lighthouse, {number * 3} boats and a café."}
        for number in range(60)
    ]
    for name, values in (("rows", rows), ("passages", passages)):
        text = "".join(json.dumps(value) + "\n" for value in values)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "rows.jsonl"), str(folder / "passages.jsonl")


def digest_of(recipe: str, folder: Path) -> dict[str, str]:
    rows, passages = world(folder)
    parts = ("train",) if recipe != "real" else ("train", "score", "dev", "eval")
    config = DataConfig(
        recipe=recipe, train_file=rows, passages_file=passages, parts=parts, num_tokens=1500, num_examples=5, seed=3
    )
    card = build_dataset(config, byte_tokenizer()).card
    return {part: values["content_sha256"] for part, values in card["parts"].items()}


def digest_of_names() -> dict[str, str]:
    """What Faker makes of equal seeds: `source kind` -> digest of 200 names."""
    found = {}
    for source, kind in itertools.product(get_args(EntitySource), get_args(Kind)):
        entities, names = Entities(source), []
        for number in range(200):
            entities.reseed(generator(0, "names", number))
            names.append(entities.draw(kind))
        found[f"{source} {kind}"] = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads(DIGESTS.read_text(encoding="utf-8")))


def test_every_recipe_has_digests(expected: dict[str, Any]) -> None:
    assert set(expected["digests"]) == set(PRESETS)


@pytest.mark.parametrize("recipe", PRESETS)
def test_digests(recipe: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert digest_of(recipe, tmp_path) == expected["digests"][recipe]


def test_names(expected: dict[str, Any]) -> None:
    """Fails when another version of Faker draws other names: then lower the bound in pyproject.toml."""
    found = digest_of_names()
    changed = [key for key in found if found[key] != expected["names"].get(key)]
    here = importlib.metadata.version("Faker")
    assert not changed, f"Faker {here} draws other names than {expected['faker']}: {changed}"


if __name__ == "__main__":
    digests = {}
    for name in PRESETS:
        with tempfile.TemporaryDirectory() as place:
            digests[name] = digest_of(name, Path(place))
    version = importlib.metadata.version("Faker")
    json.dump({"faker": version, "names": digest_of_names(), "digests": digests}, sys.stdout, indent=1)
