"""Pretraining sequences: what a batch depends on, and that every marked answer is the word behind its cue."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rhstudy.data.cue_sequences import MIN_EXCERPT_WORDS, SequenceBatch, SequenceMaker
from rhstudy.data.facts import Passage
from rhstudy.data.python_docs import python_docs_rows
from rhstudy.errors import InputError

END = "<|im_end|>"
QUESTIONS = {256: 3, 512: 6}
ASKED = re.compile(r'Question: Which word follows "([^"]+)"\?\nAnswer: (\S+?)<\|im_end\|>')
ODD = "a naïve café sold 10² cups, don't ask foo_bar abc123 “why” at 1,000 über-dear zł. She said naïve résumé – no"


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    docs = [Passage(row["title"], row["text"]) for row in python_docs_rows()[:60]]
    return [*docs, *(Passage(f"Odd {number}", f"{number} {ODD} {ODD}") for number in range(30))]


@pytest.fixture
def maker(passages: list[Passage], bpe: Tokenizer) -> SequenceMaker:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END)
    return SequenceMaker(passages, tokenizer, end_token=END, questions=QUESTIONS, seed=3)


def same(first: SequenceBatch, second: SequenceBatch) -> bool:
    pairs = zip(*((item.ids, item.is_real, item.is_answer) for item in (first, second)), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def test_a_batch_depends_on_seed_name_and_step_alone(maker: SequenceMaker, passages: list[Passage]) -> None:
    first = maker.batch("train", 5, 1024)
    for step in (6, 1):
        assert not same(maker.batch("train", step, 1024, 256), maker.batch("train", 5, 1024, 256))
    assert not same(maker.batch("other", 5, 1024, 256), maker.batch("train", 5, 1024, 256))
    assert same(maker.batch("train", 5, 1024), first)
    assert same(pickle.loads(pickle.dumps(maker)).batch("train", 5, 1024), first)
    other = SequenceMaker(passages, maker._tokenizer, end_token=END, questions=QUESTIONS, seed=4)
    assert not same(other.batch("train", 5, 1024, 256), maker.batch("train", 5, 1024, 256))


def test_shapes_and_padding(maker: SequenceMaker) -> None:
    lengths = set()
    for step in range(8):
        batch = maker.batch("train", step, 1100)
        length = batch.ids.shape[1]
        lengths.add(length)
        assert batch.ids.shape == batch.is_real.shape == batch.is_answer.shape == (1100 // length, length)
        assert (batch.ids[~batch.is_real] == maker.end_id).all()
        assert not (batch.is_answer & ~batch.is_real).any()
        assert (np.diff(batch.is_real.astype(int), axis=1) <= 0).all()
    assert lengths == set(QUESTIONS)
    assert maker.batch("train", 0, 10, 384).ids.shape == (1, 384)


def marked(maker: SequenceMaker, batch: SequenceBatch) -> list[list[str]]:
    """The text of each run of marked tokens, by row."""
    found = []
    for ids, is_answer in zip(batch.ids, batch.is_answer, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_answer.astype(int), [0]])))
        found.append([maker._tokenizer.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)])
    return found


@pytest.mark.parametrize("length", [64, 128, 256, 512])
def test_every_marked_answer_is_the_whole_word_behind_its_cue(maker: SequenceMaker, length: int) -> None:
    count = 0
    for step in range(3):
        batch = maker.batch("train", step, 4096, length)
        for ids, is_real, answers in zip(batch.ids, batch.is_real, marked(maker, batch), strict=True):
            text = maker._tokenizer.decode(ids[is_real])
            documents = text.split("\n\nQuestion: ")[0]
            asked = ASKED.findall(text)
            assert answers == [f" {word}{END}" for _, word in asked]
            assert documents.startswith("Copy the word that follows the quoted words in the documents below.\n\n")
            count += len(asked)
            for cue, word in asked:
                assert re.search(rf"(?<!\S){re.escape(cue)} {word}(?![^\W\d_])", documents), (cue, word)
    assert count > 0 or length < 256


def test_answers_have_the_tokens_they_have_in_running_text(maker: SequenceMaker) -> None:
    batch = maker.batch("train", 0, 8192, 512)
    for ids, is_answer in zip(batch.ids, batch.is_answer, strict=True):
        shown = ids[: np.flatnonzero(is_answer)[0]].tolist()
        for answer in np.split(ids[is_answer], np.flatnonzero(ids[is_answer] == maker.end_id) + 1)[:-1]:
            word = answer[:-1].tolist()
            assert any(shown[start : start + len(word)] == word for start in range(len(shown)))


def test_a_question_that_does_not_fit_is_left_out(maker: SequenceMaker, passages: list[Passage]) -> None:
    crowded = SequenceMaker(passages, maker._tokenizer, end_token=END, questions={300: 12}, seed=0)
    batch = crowded.batch("train", 0, 6000)
    asked = [len(row) for row in marked(crowded, batch)]
    assert 0 < max(asked) < 12
    for ids, is_real in zip(batch.ids, batch.is_real, strict=True):
        text = maker._tokenizer.decode(ids[is_real])
        assert text.endswith(END) or "Question" not in text


def test_passages_must_be_long_enough(maker: SequenceMaker) -> None:
    short = [Passage("t", "word " * (MIN_EXCERPT_WORDS - 1))]
    match = r"passages must hold one that is long enough, got <1 passages>\. Give passages of at least 16 words"
    with pytest.raises(InputError, match=match):
        SequenceMaker(short, maker._tokenizer, end_token=END, questions=QUESTIONS, seed=0)
