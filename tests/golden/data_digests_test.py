"""The same seed gives the same bytes on every machine and in every version: digests of small data sets, written down.

A tokenizer of single bytes keeps other libraries out of it. When a change of recipe is meant, print the new digests
with ``python tests/golden/data_digests_test.py`` and say in the commit why the data changed.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rhstudy.data.build import DataConfig, build_dataset

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


@pytest.mark.parametrize("recipe", ["real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic"])
def test_digests(recipe: str, tmp_path: Path) -> None:
    expected = json.loads(DIGESTS.read_text(encoding="utf-8"))
    faker = importlib.metadata.version("Faker")
    if recipe.startswith("templated") and faker != expected["faker"]:
        pytest.skip(f"digests of templated needles were taken with Faker {expected['faker']}, here is {faker}")
    assert digest_of(recipe, tmp_path) == expected["digests"][recipe]


if __name__ == "__main__":
    found = {}
    for name in ("real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic"):
        with tempfile.TemporaryDirectory() as place:
            found[name] = digest_of(name, Path(place))
    json.dump({"faker": importlib.metadata.version("Faker"), "digests": found}, sys.stdout, indent=1)
