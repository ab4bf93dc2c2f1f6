"""Examples as Parquet: what is read is what was written, the rows have one digest, `datasets` reads the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rhstudy.data import parquet_file
from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.examples_file import read_examples, write_examples
from rhstudy.errors import InputError
from rhstudy.types import Example


@pytest.fixture(scope="module")
def examples(config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    return build_dataset(config(num_examples=7), chat_tokenizer).parts["train"]


def test_rows_survive_and_have_one_digest_in_both_formats(
    examples: list[Example], chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "ROWS_PER_GROUP", 3)
    digests = {write_examples(tmp_path / f"a.{suffix}", iter(examples)) for suffix in ("parquet", "jsonl")}
    assert len(digests) == 1
    assert read_examples(tmp_path / "a.parquet", chat_tokenizer) == examples
    assert read_examples(tmp_path / "a.jsonl", chat_tokenizer) == examples
    assert write_examples(tmp_path / "b.parquet", examples[:6]) not in digests
    again = tmp_path / "c.parquet"
    write_examples(again, examples)
    assert again.read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_datasets_reads_the_file(examples: list[Example], tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "train.parquet"
    write_examples(path, examples)
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["prompt"] == [example.prompt for example in examples]
    assert loaded[0]["needles"][0]["char_span"] == list(examples[0].needles[0].char_span)
    assert loaded.features["answers"].feature.dtype == "large_string"


@pytest.mark.parametrize("content", [b"", b"no parquet at all", b"PAR1" * 20])
def test_other_files_are_refused(content: bytes, tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"examples file must be a Parquet file of examples.*Build it again"):
        read_examples(path, chat_tokenizer)


def test_a_missing_file_is_named(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"examples file must be a Parquet file.*none\.parquet"):
        read_examples(tmp_path / "none.parquet", chat_tokenizer)


def test_a_table_of_something_else_is_refused(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="examples file must be a Parquet file of examples"):
        read_examples(tmp_path / "a.parquet", chat_tokenizer)
