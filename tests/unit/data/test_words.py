"""Symbolic lines put together from their words have the tokens of the lines themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rhstudy.data.words
from rhstudy.data.encode import Encoder
from rhstudy.data.needles import key_value, symbols
from rhstudy.data.words import WordTokens, splits_at_words, splits_sentences
from rhstudy.seeding import generator

LLAMA_3 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "single digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "Llama 3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(LLAMA_3, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}
WORD = st.from_regex("[a-z]{1,6}[0-9]{1,3}", fullmatch=True)
LINES = st.lists(st.builds("{} = {}\n".format, WORD, WORD), min_size=2, max_size=9)
PAIRS = st.lists(st.builds(" {} = {}; {} = {};\n\n".format, WORD, WORD, WORD, WORD), min_size=2, max_size=4)

NAME = st.from_regex(r"[A-Za-zé]{1,7}([-'][A-Z][a-zü]{1,4})?[,.]?|[0-9]{1,4}", fullmatch=True)
SENTENCES = st.lists(
    st.builds(" {}) {}.\n\n".format, NAME, st.lists(NAME, min_size=1, max_size=6).map(" ".join)), min_size=2, max_size=4
)


def split_by(bpe: Tokenizer, splitter: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(bpe.to_str())
    backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("name", SPLITTERS)
@settings(max_examples=15, deadline=None)
@given(texts=LINES | PAIRS | SENTENCES)
def test_texts_from_words_have_the_tokens_of_the_texts(bpe: Tokenizer, name: str, texts: list[str]) -> None:
    tokenizer = split_by(bpe, SPLITTERS[name])
    encoder = Encoder(tokenizer)
    assert encoder._words is not None
    assert encoder._words.of_texts(texts) is not None
    encoder.counts(texts)
    for text in texts:
        plain = tokenizer(f"{text}D", add_special_tokens=False, return_offsets_mapping=True)
        found = encoder._pieces[text]
        assert found is not None
        assert found.ids.tolist() == plain["input_ids"][:-1]
        assert found.offsets.tolist() == [list(pair) for pair in plain["offset_mapping"][:-1]]


def test_a_prompt_of_lines_is_that_of_its_text(bpe: Tokenizer) -> None:
    encoder = Encoder(split_by(bpe, SPLITTERS["single digits"]))
    words = symbols(generator(0, "words"), 4000)
    lines = [f"{key_value(key, value).text}\n" for key, value in zip(words[::2], words[1::2], strict=True)]
    pieces = ["Each line below.\n\n", *lines, f"Question: What is the value of {words[0]}?\nAnswer:"]
    encoder._num_to_compare = 0
    found, (ids, offsets) = encoder.joined(pieces), encoder.prompt("".join(pieces))
    assert found.ids.tolist() == ids
    assert np.array_equal(found.offsets, offsets)


def test_splitters_that_keep_letters_and_digits_together_are_told_apart() -> None:
    assert all(map(splits_at_words, SPLITTERS.values()))
    assert not splits_at_words(pre_tokenizers.WhitespaceSplit())
    assert not splits_at_words(pre_tokenizers.Whitespace())
    together = Tokenizer(models.WordLevel({"kavot38": 0, "=": 1, "?": 2}, unk_token="?"))
    together.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Encoder(PreTrainedTokenizerFast(tokenizer_object=together))._words is None


def test_other_lines_and_words_without_tokens_are_left_to_the_tokenizer() -> None:
    tokens = WordTokens(
        lambda words: [None if "x" in word else (np.zeros(1, int), np.zeros((1, 2), int)) for word in words]
    )
    assert tokens.of_texts(["ab1 = cd2\n", "Ab1 = cd2\n"]) is None
    assert tokens.of_texts(["ab1 = cd2\n", "ax1 = cd2\n"]) is None
    assert tokens.of_texts(["ab1 = cd2\n", "ab1 = cd2 ef3\n"]) is not None


def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer) -> None:
    lines = [[f"{key} = {value}\n" for key, value in (("ab1", "cd2"), (f"e{letter}3", "gh4"))] for letter in "xyz"]
    encoder = Encoder(split_by(bpe, SPLITTERS["GPT-2"]))
    expected = [encoder._words and encoder._words.of_texts(group) for group in lines]
    monkeypatch.setattr(rhstudy.data.words, "MAX_WORDS", 3)
    forgetful = Encoder(split_by(bpe, SPLITTERS["GPT-2"]))._words
    assert forgetful is not None
    for group, known in zip(lines, expected, strict=True):
        found = forgetful.of_texts(group)
        assert known
        assert found
        for one, other in zip(found, known, strict=True):
            assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    assert len(forgetful._numbers) <= 10


def test_sentences_are_left_whole_where_a_token_may_reach_over_their_words(bpe: Tokenizer) -> None:
    splitter = SPLITTERS["GPT-2"]
    assert all(splits_sentences(each, []) for each in SPLITTERS.values())
    assert not splits_sentences(pre_tokenizers.WhitespaceSplit(), [])
    sentences = [" Ann Hill) Ann Hill lives in New York.\n\n", " Bo Li) Bo Li lives in Rome.\n\n"]
    tokenizer = split_by(bpe, splitter)
    tokenizer.add_tokens([AddedToken("New York"), AddedToken("Hill", rstrip=True)])
    encoder = Encoder(tokenizer)
    assert encoder._words is not None
    assert encoder._words.of_texts(sentences) is None
    assert encoder._words.of_texts(["ab1 = cd2\n"]) is not None
    whole = tokenizer([f"{text}D" for text in sentences], add_special_tokens=False)["input_ids"]
    assert encoder.counts(sentences) == [len(ids) - 1 for ids in whole]


def test_documents_with_signs_of_special_tokens_are_left_to_the_tokenizer(bpe: Tokenizer) -> None:
    words = Encoder(split_by(bpe, SPLITTERS["GPT-2"]))._words
    assert words is not None
    assert words.of_texts([" Ann) Ann lives.\n\n"]) is not None
    for text in (" A) <end> b.\n\n", " A)  b.\n\n", " A) b -c.\n\n", " A) b\u0301.\n\n", " A) b\nc.\n\n"):
        assert words.of_texts([text]) is None


@pytest.mark.parametrize("name", SPLITTERS)
def test_one_odd_document_leaves_the_others_to_their_words(
    bpe: Tokenizer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [f" Ann {number}) Ann {number} lives in Rome.\n\n" for number in range(6)]
    texts = [*plain[:2], " Nunes - ME) Nunes - ME lives in São Paulo.\n\n", *plain[2:], " A) b\u0301.\n\n"]
    tokenizer = split_by(bpe, SPLITTERS[name])
    encoder = Encoder(tokenizer)
    whole: list[str] = []
    each = Encoder._encode_each

    def watched(self: Encoder, wanted: Any, special: bool) -> Any:
        whole.extend(text for text in wanted if text in texts)
        return each(self, wanted, special)

    monkeypatch.setattr(Encoder, "_encode_each", watched)
    encoder.counts(texts)
    assert whole == [texts[2], texts[-1]]
    for text in texts:
        expected = tokenizer(f"{text}D", add_special_tokens=False, return_offsets_mapping=True)
        found = encoder._pieces[text]
        assert found is not None
        assert found.ids.tolist() == expected["input_ids"][:-1]
        assert found.offsets.tolist() == [list(pair) for pair in expected["offset_mapping"][:-1]]
