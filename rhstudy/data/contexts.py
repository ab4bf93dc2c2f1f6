"""Haystacks made of haystacks: one passage again and again, mixed kinds, looser similarity, look-alikes of the needle.

Each yields answer-free distractors like those of `rhstudy.data.haystack`, which it draws on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from rhstudy.data.answers import gives_away, leak_text
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.haystack import Haystack, PassageHaystack, secret_forms
from rhstudy.data.layout import document_text
from rhstudy.errors import message


def is_free(passage: Passage, fact: Fact) -> bool:
    """Whether `passage` has another title than every needle of `fact` and states none of its answers."""
    titles = {leak_text(gold.passage.title) for gold in fact.golds}
    return leak_text(passage.title) not in titles and not gives_away(document_text(passage), secret_forms(fact))


class OnTopicHaystack:
    """The best passage for each question, repeated for ever: as monotonous as filler, but about the matter."""

    def __init__(self, passages: PassageHaystack) -> None:
        self._passages = passages

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`.

        Raises:
            UnbuildableRowError: no passage is free of the answers, those of the hops among them.
        """
        best = self._passages.best(fact, rng)
        if best is None:
            remedy = "Give more passages, or leave such rows out with data.on_bad_row = skip"
            must, row = "hold an answer-free passage", f"row {fact.fact_id}"
            raise UnbuildableRowError(message("data.passages_file", must, "<none>", remedy, row))
        yield from itertools.repeat(best)


class LooseHaystack:
    """Passages of which only a share comes from the top of the ranking, the rest from all of it at random.

    Args:
        passages: ranked by the question; a fact without a question gets them in random order.
        similarity: the share, 0-1.
    """

    def __init__(self, passages: Haystack, similarity: float) -> None:
        self._passages, self._similarity = passages, similarity

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`; every passage comes once."""
        first, second, third = rng.spawn(3)
        near = self._passages.distractors(fact, first)
        far = self._passages.distractors(dataclasses.replace(fact, question="-", given=()), second)
        seen: set[Passage] = set()
        while True:
            streams = (near, far) if float(third.random()) < self._similarity else (far, near)
            found = next((item for item in itertools.chain(*streams) if item not in seen), None)
            if found is None:
                return
            seen.add(found)
            yield found


class MixedHaystack:
    """Distractors of several kinds, each drawn with its share.

    Args:
        shares: (haystack, share) pairs; the shares sum to 1. A kind that ends leaves its share to the others.
    """

    def __init__(self, shares: list[tuple[Haystack, float]]) -> None:
        self._shares = [(haystack, share) for haystack, share in shares if share > 0]

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`."""
        own, *rest = rng.spawn(1 + len(self._shares))
        streams = [haystack.distractors(fact, stream) for (haystack, _), stream in zip(self._shares, rest, strict=True)]
        weights = [share for _, share in self._shares]
        while streams:
            bounds = np.cumsum(weights) / sum(weights)
            chosen = min(int(np.searchsorted(bounds, float(own.random()), side="right")), len(streams) - 1)
            item = next(streams[chosen], None)
            if item is not None:
                yield item
            else:
                del streams[chosen], weights[chosen]


class ByOrigin:
    """Distractors of the needle's own kind: lines for symbolic needles, sentences for the others."""

    def __init__(self, symbolic: Haystack, others: Haystack) -> None:
        self._symbolic, self._others = symbolic, others

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`."""
        return (self._symbolic if fact.origin == "symbolic" else self._others).distractors(fact, rng)


class HardHaystack:
    """A few look-alikes of the needle before the distractors of another haystack.

    Args:
        haystack: what fills the rest.
        look_alike: draws one passage like the needle from a stream, perhaps an unusable one.
        count: how many.
    """

    def __init__(
        self, haystack: Haystack, look_alike: Callable[[Fact, np.random.Generator], Passage], count: int
    ) -> None:
        self._haystack, self._look_alike, self._count = haystack, look_alike, count

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`."""
        own, rest = rng.spawn(2)
        titles: set[str] = set()
        while len(titles) < self._count:
            passage = self._look_alike(fact, own)
            if is_free(passage, fact) and passage.title not in titles:
                titles.add(passage.title)
                yield passage
        yield from self._haystack.distractors(fact, rest)
