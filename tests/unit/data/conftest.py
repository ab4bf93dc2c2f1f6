"""A small world (towns, their founders and years), and tokenizers trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from town_world import river_passage, town_row
from transformers import PreTrainedTokenizerFast

from rhstudy.data.config import DataConfig

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNICODE_TEXT = ["Zażółć gęślą jaźń", "naïve café – “quoted”", "日本語の文章です", "😀👩‍👩‍👧 emoji 🇩🇪", "Ёлка и ёжик"]
NUM_ROWS = 48


def write_jsonl(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of the small world's three files."""
    folder = tmp_path_factory.mktemp("world")
    rows = [town_row(number) for number in range(NUM_ROWS)]
    return {
        "train_file": write_jsonl(folder / "train.jsonl", rows[:36]),
        "eval_file": write_jsonl(folder / "eval.jsonl", rows[36:]),
        "passages_file": write_jsonl(folder / "passages.jsonl", [river_passage(number) for number in range(120)]),
    }


@pytest.fixture(scope="session")
def config(world: dict[str, str]) -> Callable[..., DataConfig]:
    """Makes a config of the small world; keywords override."""

    def make(**changes: Any) -> DataConfig:
        return DataConfig(**{**world, "num_tokens": 512, "num_examples": 6, **changes})

    return make


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A byte-level BPE of 900 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [json.dumps(town_row(number)) for number in range(200)]
    texts += [river_passage(number)["text"] for number in range(100)] + UNICODE_TEXT * 3
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>", "<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """The BPE with a ChatML template."""
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", chat_template=CHATML)


@pytest.fixture(scope="session")
def plain_tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """The BPE without a template."""
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Sentencepiece-like: a unigram model over words that carry their space, with a start token and no template."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = [json.dumps(town_row(number)) for number in range(200)] + [river_passage(n)["text"] for n in range(100)]
    special = ["<unk>", "<s>"]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*texts, "Document [1](Title: 1234567890) Question: Answer: lines = x\n"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
