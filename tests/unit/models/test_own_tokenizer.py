"""The byte-level BPE of pretrained models: nothing is lost, and a word has one reading behind a space."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rhstudy.errors import InputError
from rhstudy.models.tokenizer import END_TOKEN, NUM_BYTES, train_tokenizer

TEXTS = [
    f"Salt and {word} came down the river to the harbour in {year}." for word in ("tin", "wool") for year in (1, 2)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 280, 256)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_the_end_token_is_one_token_and_pads(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ids(tokenizer, f"salt{END_TOKEN}")[-1:] == ids(tokenizer, END_TOKEN) == [tokenizer.eos_token_id]
    assert tokenizer.pad_token == tokenizer.eos_token == END_TOKEN
    assert tokenizer.bos_token is None
    assert tokenizer.chat_template is None
    assert (len(tokenizer), tokenizer.model_max_length) == (280, 256)


@pytest.mark.parametrize("word", ["harbour", "Zürich", "1000", "unheard-of"])
def test_a_word_has_the_same_tokens_behind_answer_and_in_running_text(
    tokenizer: PreTrainedTokenizerFast, word: str
) -> None:
    answer = ids(tokenizer, f" {word}")
    for before in ("Answer:", "They saw the", "known.", "7"):
        assert ids(tokenizer, f"{before} {word}") == ids(tokenizer, before) + answer
    assert ids(tokenizer, f" {word}{END_TOKEN}") == [*answer, tokenizer.eos_token_id]


def test_the_same_text_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train_tokenizer(iter(TEXTS), 280, 256).save_pretrained(tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second"))
    assert first == second
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert ids(loaded, TEXTS[0]) == ids(train_tokenizer(TEXTS, 280, 256), TEXTS[0])


@pytest.mark.parametrize("size", [0, NUM_BYTES + 1])
def test_the_vocabulary_must_leave_room_for_a_merge(size: int) -> None:
    with pytest.raises(InputError, match=rf"vocabulary_size must be more than 257, got {size}\. Use about 4,096"):
        train_tokenizer(TEXTS, size, 256)
