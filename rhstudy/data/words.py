"""Tokens of symbolic lines and of short documents, put together from those of their words, which are tokenised once.

A prompt of 32k tokens holds some 3,000 lines and 6,000 words, or 1,500 sentences of invented facts; a data set holds
millions of words, but few spellings. Tokenising a line takes several times as long as looking its words up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

_TEXTS = re.compile(r"(?:[a-z]+[0-9]+ =(?: [a-z]+[0-9]+)+\n)+|(?:(?: [a-z]+[0-9]+ = [a-z]+[0-9]+;)+\n\n)+")
_WORDS = re.compile(r" ?[a-z]+|[0-9]+| =|\n|;(?:\n\n)?")
_SAMPLES = ("kavot38 = dibog42 mudab17\nlerun90 = sofit21\n", ": kavot38 = dibog42; lerun90 = sofit21;\n\nD")
_PRINTED = r"!-,./0-;=?@A-Z\\^_`a-z~\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
"""Characters of sentences. Left out: brackets and strokes, which special tokens are spelled with; the hyphen."""
_SENTENCES = re.compile(rf"(?:(?: [{_PRINTED}]+(?:(?<=[^\W\d_])-(?=[^\W\d_])[{_PRINTED}]+)*)+\n\n)+")
_SENTENCE_WORDS = re.compile(r"[ -][^ -]+")
_SENTENCE_SAMPLE = " ".join(
    [
        "D",
        *(f"Ab{mark} c {mark}d {mark} 7{mark} 8 {mark}9 {mark}" for mark in "!\"#$%&'()*+,./:;=?@\\^_`~"),
        "Ab-Cd-e é-É ñ\n\nD",
    ]
)
MAX_WORDS = 1 << 18
"""Words kept; beyond them all are forgotten: symbols have some 140,000 spellings."""

Encode = Callable[[Sequence[str]], Sequence[Any]]
"""Tokens (ids, offsets) of each text as it stands among others, or None."""


def splits_at_words(pre_tokenizer: Any) -> bool:
    """Whether a tokenizer's own splitter cuts symbolic texts wherever their words begin.

    Splitters go by kinds of characters, which are the same in every such text, so one of each kind tells.
    """
    return all(_splits(pre_tokenizer, _WORDS, text) for text in _SAMPLES)


def splits_sentences(pre_tokenizer: Any, added: Iterable[Any]) -> bool:
    """Whether a splitter cuts sentences wherever their words begin, and no added token reaches over such a place."""
    whole = all(not (re.search(r"[\s-]", one.content) or one.lstrip or one.rstrip) for one in added if not one.special)
    return whole and _splits(pre_tokenizer, _SENTENCE_WORDS, _SENTENCE_SAMPLE)


def _splits(pre_tokenizer: Any, words: re.Pattern[str], text: str) -> bool:
    cuts = {at for _, (at, _) in pre_tokenizer.pre_tokenize_str(text)}
    return {match.start() for match in words.finditer(text)} <= cuts


class WordTokens:
    """Tokens of the words of symbolic texts.

    Args:
        encode: tokenises words.
        sentences: whether sentences may be put together too (`splits_sentences`).
    """

    def __init__(self, encode: Encode, sentences: bool = False) -> None:
        self._encode, self._sentences = encode, sentences
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._firsts: np.ndarray = np.empty(0, dtype=np.int64)
        self._lasts: np.ndarray = np.empty(0, dtype=np.int64)
        self._ids: np.ndarray = np.empty(0, dtype=np.int32)
        self._offsets: np.ndarray = np.empty((0, 2), dtype=np.int32)

    def is_sentence(self, text: str) -> bool:
        """Whether a text's tokens may be put together as those of sentences."""
        return self._sentences and _SENTENCES.fullmatch(text) is not None

    def of_texts(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Ids and offsets of each of `texts`, all lines, all documents of pairs or all of sentences; None where one is
        none of these or a word has no tokens of its own."""
        text = "".join(texts)
        if _TEXTS.fullmatch(text):
            words = _WORDS.findall(text)
        elif self._sentences and _SENTENCES.fullmatch(text):
            words = _SENTENCE_WORDS.findall(text)
        else:
            return None
        if not self._learn(words):
            return None
        numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        counts = self._lasts[numbers] - self._firsts[numbers]
        ends = np.cumsum(counts)
        taken = np.arange(ends[-1]) + np.repeat(self._firsts[numbers] - ends + counts, counts)
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        text_ends, word_ends = np.cumsum(sizes), np.cumsum(lengths)
        last_words = np.searchsorted(word_ends, text_ends)
        starts = word_ends - lengths - np.repeat(text_ends - sizes, np.diff(last_words, prepend=-1))
        ids = self._ids[taken]
        offsets = self._offsets[taken] + np.repeat(starts, counts).astype(np.int32)[:, None]
        bounds = [0, *ends[last_words].tolist()]
        return [(ids[low:high], offsets[low:high]) for low, high in itertools.pairwise(bounds)]

    def _learn(self, words: Sequence[str]) -> bool:
        """Tokenise those of `words` that are new; False where one has no tokens of its own."""
        if len(self._numbers) > MAX_WORDS:
            self._forget()
        new = [word for word in dict.fromkeys(words) if word not in self._numbers]
        if not new:
            return True
        found = self._encode(new)
        if any(one is None for one in found):
            return False
        self._numbers.update(zip(new, range(len(self._numbers), len(self._numbers) + len(new)), strict=True))
        lasts = np.cumsum([len(ids) for ids, _ in found]) + len(self._ids)
        self._firsts = np.concatenate([self._firsts, [len(self._ids)], lasts[:-1]])
        self._lasts = np.concatenate([self._lasts, lasts])
        self._ids = np.concatenate([self._ids, *(ids for ids, _ in found)])
        self._offsets = np.concatenate([self._offsets, *(offsets for _, offsets in found)])
        return True
