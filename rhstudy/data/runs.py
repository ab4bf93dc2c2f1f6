"""Near-duplicates: texts that share a run of eight words, looked up in an index of all runs of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rhstudy.data.answers import leak_text

NGRAM = 8
"""Two passages are near-duplicates when they share a run of this many words."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Words of `text`, normalised as `leak_text` does."""
    return leak_text(text).split("\n")[0].split()


def ngrams(text: str) -> set[str]:
    """Every run of `NGRAM` words of `text`; one shorter run for a shorter text."""
    words = words_of(text)
    return {" ".join(words[start : start + NGRAM]) for start in range(max(1, len(words) - NGRAM + 1))}


class RunIndex:
    """Which of many texts share a run of words with a given one.

    Runs are compared by 64-bit numbers made from the words, equal in every process.

    Args:
        texts: the texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._numbers: dict[str, int] = {}
        runs = [self._runs(text, add=True) for text in texts]
        owners = np.repeat(np.arange(len(texts), dtype=np.int32), list(map(len, runs)))
        joined = np.concatenate(runs) if runs else np.empty(0, dtype=np.uint64)
        order = np.argsort(joined, kind="stable")
        self._sorted, self._owners = joined[order], owners[order]

    def sharing(self, texts: Iterable[str]) -> set[int]:
        """Positions of the indexed texts that share a run with one of `texts`."""
        runs = [self._runs(text, add=False) for text in texts]
        wanted = np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.uint64)
        first = np.searchsorted(self._sorted, wanted, side="left")
        last = np.searchsorted(self._sorted, wanted, side="right")
        pairs = zip(first.tolist(), last.tolist(), strict=True)
        return {owner for low, high in pairs if high > low for owner in self._owners[low:high].tolist()}

    def _runs(self, text: str, *, add: bool) -> np.ndarray:
        """A number for every run of `text`; unknown words count only where the text is being indexed."""
        words = words_of(text)
        known = self._numbers
        ranks = (
            [known.setdefault(word, len(known) + 1) for word in words]
            if add
            else [known.get(word, 0) for word in words]
        )
        numbers = np.array(ranks, dtype=np.uint64)
        length = min(NGRAM, len(numbers))
        found = np.zeros(max(1, len(numbers) - NGRAM + 1), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for step in range(length):
                found = (found ^ numbers[step : step + len(found)]) * _MULTIPLIER
                found ^= found >> np.uint64(29)
        if add:
            return found
        seen = np.ones(len(found), dtype=bool)
        for step in range(length):
            seen &= numbers[step : step + len(found)] > 0
        return found[seen]
