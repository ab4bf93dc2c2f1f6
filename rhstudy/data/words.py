"""Tokens of symbolic lines and documents, put together from those of their words, which are tokenised once.

A prompt of 32k tokens holds some 3,000 lines and 6,000 words; a data set holds millions of words, but few spellings
of their letters. Tokenising a line takes several times as long as looking its words up.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_TEXTS = re.compile(r"(?:[a-z]+[0-9]+ =(?: [a-z]+[0-9]+)+\n)+|(?:(?: [a-z]+[0-9]+ = [a-z]+[0-9]+;)+\n\n)+")
_WORDS = re.compile(r" ?[a-z]+|[0-9]+| =|\n|;(?:\n\n)?")
_SAMPLES = ("kavot38 = dibog42 mudab17\nlerun90 = sofit21\n", ": kavot38 = dibog42; lerun90 = sofit21;\n\nD")
MAX_WORDS = 1 << 18
"""Words kept; beyond them all are forgotten: symbols have some 140,000 spellings."""

Encode = Callable[[Sequence[str]], Sequence[Any]]
"""Tokens (ids, offsets) of each text as it stands among others, or None."""


def splits_at_words(pre_tokenizer: Any) -> bool:
    """Whether a tokenizer's own splitter cuts symbolic texts wherever their words begin.

    Splitters go by kinds of characters, which are the same in every such text, so one of each kind tells.
    """
    return all(
        {match.start() for match in _WORDS.finditer(text)}
        <= {at for _, (at, _) in pre_tokenizer.pre_tokenize_str(text)}
        for text in _SAMPLES
    )


class WordTokens:
    """Tokens of the words of symbolic texts.

    Args:
        encode: tokenises words.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._firsts: np.ndarray = np.empty(0, dtype=np.int64)
        self._lasts: np.ndarray = np.empty(0, dtype=np.int64)
        self._ids: np.ndarray = np.empty(0, dtype=np.int32)
        self._offsets: np.ndarray = np.empty((0, 2), dtype=np.int32)

    def of_texts(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Ids and offsets of each of `texts`, all lines or all documents of pairs; None where one is neither or a word
        has no tokens of its own."""
        text = "".join(texts)
        if not _TEXTS.fullmatch(text):
            return None
        words = _WORDS.findall(text)
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
