"""What a data card shows beside its counts: histograms, wordings, similarity, and ten examples with the needle marked.

Examples are looked at one by one and not kept, so a data set never has to be in memory.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rhstudy.data.answers import leak_text
from rhstudy.data.layout import DOCUMENT_MARK
from rhstudy.types import Example

NUM_SHOWN = 10
NUM_BINS = 10
CONTEXT_CHARS = 160
"""Characters shown before and after a needle."""
MAX_DOCUMENTS = 32
"""Distractors of one example that similarity is measured on, evenly spaced."""
_STOP = frozenset(
    leak_text(
        "a an and are as at be by did do does for from had has have he her his how in is it its of on or she that the "
        "their they this to was were what when where which who whom whose why will with"
    ).split()
)
_NAME = re.compile(r"\b(?:[A-Z][\w'’-]*|\d[\w,.]*\d|\d|[a-z]{5}\d\d)\b")


class Portrait:
    """Facts on one part, gathered example by example."""

    def __init__(self) -> None:
        self._lengths: Counter[int] = Counter()
        self._needles: set[str] = set()
        self._patterns: Counter[str] = Counter()
        self._similarities: list[float] = []
        self._overlaps: list[float] = []
        self._shown: list[dict[str, Any]] = []

    def add(self, example: Example) -> Example:
        """Look at one example; returns it."""
        self._lengths[example.num_prompt_tokens] += 1
        texts = [example.prompt[slice(*needle.char_span)] for needle in example.needles]
        self._needles.update(texts)
        if example.metadata["origin"] != "real":
            self._patterns.update(map(pattern_of, texts))
        words = _content_words(example.question)
        if words:
            self._overlaps.append(_share(words, " ".join(texts)))
            documents = _sampled(_distractors(example))
            if documents:
                self._similarities.append(sum(_share(words, text) for text in documents) / len(documents))
        if len(self._shown) < NUM_SHOWN:
            self._shown.append(shown(example))
        return example

    def facts(self) -> dict[str, Any]:
        """Plain values for a card.

        ``question_words_in_distractors``: mean share of the question's content words that a distractor holds;
        ``question_words_in_needle``: the same for the needle. ``num_wordings``: needle texts that differ when names and
        numbers are left out, for invented needles.
        """
        return {
            "prompt_token_histogram": histogram(self._lengths),
            "num_distinct_needles": len(self._needles),
            "num_wordings": len(self._patterns),
            "wordings": [[text, count] for text, count in sorted(self._patterns.items(), key=_by_count)[:NUM_SHOWN]],
            "question_words_in_needle": _mean(self._overlaps),
            "question_words_in_distractors": _mean(self._similarities),
            "examples": self._shown,
        }


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def pattern_of(needle: str) -> str:
    """A needle with its names and numbers left out: "Alden Brisa was born in Rome." -> "_ was born in _."."""
    text = needle.partition(") ")[2] if ") " in needle.split(". ", maxsplit=1)[0] else needle
    return re.sub(r"_(?:[ ,&.-]+(?:and )?_)+", "_", _NAME.sub("_", text))


def _content_words(text: str) -> set[str]:
    return {word for word in leak_text(text).split() if word not in _STOP}


def _share(words: set[str], text: str) -> float:
    return len(words & set(leak_text(text).split())) / len(words)


def _distractors(example: Example) -> list[str]:
    """Passages of the haystack that are no needle."""
    start, end = example.metadata["haystack_char_span"]
    spans = sorted(needle.char_span for needle in example.needles)
    bounds = [start, *(edge for span in spans for edge in span), end]
    pieces = [example.prompt[low:high] for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
    lines = (DOCUMENT_MARK.sub("", line) for piece in pieces for line in piece.split("\n"))
    return [line for line in lines if len(line) > 1]


def _sampled(texts: Sequence[str]) -> list[str]:
    step = max(1, len(texts) // MAX_DOCUMENTS)
    return list(texts[::step][:MAX_DOCUMENTS])


def histogram(counts: Mapping[int, int]) -> list[list[int]]:
    """Up to `NUM_BINS` equal bins of whole numbers: rows of (first, last, how many)."""
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // NUM_BINS))
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[(value - low) // width] += count
    num_bins = -(-(high - low + 1) // width)
    return [[low + place * width, low + (place + 1) * width - 1, bins[place]] for place in range(num_bins)]


def shown(example: Example) -> dict[str, Any]:
    """An example as a card shows it: question, answer, and each needle with a little of what is around it.

    Returns:
        ``needles`` are lists (before, needle up to the answer, answer, rest of the needle, after).
    """
    return {
        "example_id": example.example_id,
        "question": example.question,
        "answer": example.answer.strip(),
        "num_prompt_tokens": example.num_prompt_tokens,
        "needles": [_pieces(example, index) for index in range(len(example.needles))],
    }


def _pieces(example: Example, index: int) -> list[str]:
    needle = example.needles[index]
    (start, end), (first, last) = needle.char_span, needle.answer_char_span
    if not start <= first <= last <= end:
        first = last = end
    before = max(start - CONTEXT_CHARS, 0)
    cuts = [before, start, first, last, end, min(end + CONTEXT_CHARS, len(example.prompt))]
    return [example.prompt[low:high] for low, high in itertools.pairwise(cuts)]
