"""What surrounds the needle: real passages by BM25, one text repeated, or other needles of the same kind.

A haystack yields distractors for one fact in the order in which they should be used. Each is free of every gold
answer and differs from the needle in its title, by construction; `rhstudy.data.leaks` checks the finished prompts.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rhstudy.data.answers import any_gives_away, gives_away, leak_forms, leak_text
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.layout import document_text
from rhstudy.data.needles import key_value, symbols
from rhstudy.data.runs import RunIndex, ngrams
from rhstudy.errors import message, require
from rhstudy.shapes import Float

_DRAWN_AT_ONCE = 32
"""Invented passages looked at together, which costs a fifth of looking at each."""
FILLER_WORDS = 75
"""Least words of a filler document: about the length of a Wikipedia passage."""


def _bm25s() -> Any:
    """The library bm25s, kept from jax and from its own log handler.

    Where jax is installed, bm25s runs it at import, which takes most of a GPU's memory for a selection we do not use.
    """
    known = {name: sys.modules.get(name) for name in ("jax", "jax.lax")}
    sys.modules.update(dict.fromkeys(known, None))  # type: ignore[arg-type]
    try:
        import bm25s
    finally:
        for name, module in known.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


@runtime_checkable
class Haystack(Protocol):
    """A source of distractors."""

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """Distractors for `fact`, best first; may end."""


class PassagePool:
    """Passages with a BM25 index (bm25s: Lucene's BM25, k1 = 1.5, b = 0.75, English stop words, no stemming).

    The original MDQA distractors came from Contriever; these do not, and the data card says so.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        bm25s = _bm25s()

        require(len(passages) > 0, "data.passages_file", "hold passages", "<none>", "Give a file of passages")
        self.passages = passages
        self._titles = [leak_text(passage.title) for passage in passages]
        self._runs = RunIndex([passage.text for passage in passages])
        self._plain: list[str | None] = [None] * len(passages)
        self._tokenize = bm25s.tokenize
        self._index: Any = bm25s.BM25()
        corpus = [f"{passage.title} {passage.text}" for passage in passages]
        self._index.index(bm25s.tokenize(corpus, show_progress=False), show_progress=False)

    def scores(self, query: str) -> Float[np.ndarray, " passages"]:
        """BM25 of `query` against every passage, rounded to 1e-4 so that ties are ties on every machine."""
        words = self._tokenize([query], return_ids=False, show_progress=False, allow_empty=True)[0]
        if not words:
            return np.zeros(len(self.passages))
        return np.round(np.asarray(self._index.get_scores(list(words)), dtype=np.float64), 4)

    def ranked(self, query: str, rng: np.random.Generator) -> Iterator[int]:
        """Passage indices by falling score, ties by index; those without a word in common in the order of `rng`."""
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")
        matching = int((scores > 0).sum())
        yield from order[:matching].tolist()
        yield from rng.permutation(order[matching:]).tolist()

    def title(self, index: int) -> str:
        """Normalised title of passage `index`."""
        return self._titles[index]

    def gives_away(self, index: int, forms: Sequence[str]) -> bool:
        """Whether title and text of passage `index` state one of the answers behind `forms`."""
        plain = self._plain[index]
        if plain is None:
            plain = self._plain[index] = leak_text(document_text(self.passages[index]))
        return any(form in plain for form in forms)

    def near_duplicates(self, texts: Iterable[str]) -> set[int]:
        """Indices of passages that share a run of `rhstudy.data.runs.NGRAM` words with one of `texts`."""
        return self._runs.sharing(texts)


class PassageHaystack:
    """Real passages: a row's own distractors, then BM25 of its question.

    None holds the final answer, has a gold passage's title, or is a near-duplicate of one. What comes from the pool
    (padding) states no hop's answer either. Own distractors may: their authors chose them to mislead.

    Args:
        pool: where passages come from.
        held_out: facts whose passages, titles and near-duplicates never appear (those of the other parts).
    """

    def __init__(self, pool: PassagePool, held_out: Collection[Fact] = ()) -> None:
        golds = list(dict.fromkeys(gold.passage for fact in held_out for gold in fact.golds))
        topics = {passage.title for fact in held_out if fact.cites for passage in fact.given}
        self._pool = pool
        self._banned_titles = {leak_text(title) for title in (*(passage.title for passage in golds), *topics)}
        self._banned_runs: set[str] = set().union(*(ngrams(passage.text) for passage in golds))
        self._banned = pool.near_duplicates(passage.text for passage in golds)

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`; ends when the pool does."""
        titles = {leak_text(gold.passage.title) for gold in fact.golds}
        used = set()
        for passage in self._own(fact, titles, rng):
            used.add(passage.text)
            yield passage
        yield from self._padding(fact, titles, used, rng)

    def best(self, fact: Fact, rng: np.random.Generator) -> Passage | None:
        """The passage nearest to the question (BM25) that states no answer, of any hop; None where there is none.

        Looked for among the row's own distractors and the pool's nearest; for a row that was used before, in a random
        half of them first.
        """
        titles = {leak_text(gold.passage.title) for gold in fact.golds}
        forms, padding = secret_forms(fact), next(self._padding(fact, titles, (), rng), None)
        own = [passage for passage in self._own(fact, titles, rng) if not gives_away(document_text(passage), forms)]
        found = list(dict.fromkeys([*own, *([padding] if padding else [])]))
        if not own:
            return padding
        ranked = PassagePool(found).ranked(fact.question, rng)
        left: list[int] = []
        order = itertools.chain(_some(ranked, left, rng), left) if fact.draw else ranked
        return found[next(iter(order))]

    def _padding(
        self, fact: Fact, titles: Collection[str], used: Collection[str], rng: np.random.Generator
    ) -> Iterator[Passage]:
        """Passages of the pool that may stand beside `fact`, best first, but those whose text was `used`."""
        if fact.cites:  # whatever of the row's topic was not used before is not to come back as padding
            titles = {*titles, *(leak_text(passage.title) for passage in fact.given)}
        forms = secret_forms(fact)
        closed = self._pool.near_duplicates(gold.passage.text for gold in fact.golds) | self._banned
        for index in self._order(fact, rng):
            title = self._pool.title(index)
            if (
                index not in closed
                and title not in titles
                and title not in self._banned_titles
                and not self._pool.gives_away(index, forms)
                and self._pool.passages[index].text not in used
            ):
                yield self._pool.passages[index]

    def _order(self, fact: Fact, rng: np.random.Generator) -> Iterator[int]:
        """Best first; for a row that was used before, a random half of them first, so that its padding is another."""
        if not fact.draw:
            return self._pool.ranked(fact.question, rng)
        left: list[int] = []
        return itertools.chain(_some(self._pool.ranked(fact.question, rng), left, rng), left)

    def _own(self, fact: Fact, titles: Collection[str], rng: np.random.Generator) -> Iterator[Passage]:
        """The row's own distractors that no held-out row forbids; documents of a topic in random order."""
        if fact.cites:
            order = rng.permutation(len(fact.given)).tolist()
            own = (fact.given[index] for index in order)
            yield from (passage for passage in own if leak_text(passage.title) not in titles)
            return
        forms = leak_forms(fact.answers)
        for passage in fact.given:
            title = leak_text(passage.title)
            if (
                title not in titles
                and title not in self._banned_titles
                and not gives_away(document_text(passage), forms)
                and self._banned_runs.isdisjoint(ngrams(passage.text))
            ):
                yield passage


def secret_forms(fact: Fact) -> tuple[str, ...]:
    """What no padding may state, as `gives_away` looks for it: answers (numbers of documents are none), hops' answers,
    the insight asked for."""
    return leak_forms((*(() if fact.cites else fact.answers), *fact.hop_answers))


def _some(indices: Iterator[int], left: list[int], rng: np.random.Generator) -> Iterator[int]:
    """Each of `indices` with probability 1/2; the others are added to `left`."""
    for index in indices:
        if rng.random() < 1 / 2:
            yield index
        else:
            left.append(index)


class FillerHaystack:
    """One text repeated in every document, for ever."""

    def __init__(self, filler: str) -> None:
        repeats = -(-FILLER_WORDS // len(filler.split()))
        self._document = Passage("Filler", " ".join([" ".join(filler.split())] * repeats))

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`.

        Raises:
            UnbuildableRowError: the filler itself holds an answer.
        """
        del rng
        if gives_away(document_text(self._document), secret_forms(fact)):
            remedy = "Change the filler, or leave such rows out with data.on_bad_row = skip"
            got = f"<answers {list(fact.answers)}>"
            raise UnbuildableRowError(message("knobs.filler", "hold no answer", got, remedy, f"row {fact.fact_id}"))
        yield from itertools.repeat(self._document)


class NeedleHaystack:
    """Other invented facts, for ever; none shares the subject or gives the answer away.

    Args:
        draw: the passages of so many facts; equal streams give equal passages.
    """

    def __init__(self, draw: Callable[[np.random.Generator, int], list[Passage]]) -> None:
        self._draw = draw

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`."""
        forms, seen = secret_forms(fact), {leak_text(gold.passage.title) for gold in fact.golds}
        while True:
            drawn = self._draw(rng, _DRAWN_AT_ONCE)
            leaky = any_gives_away([document_text(passage) for passage in drawn], forms)
            for passage in drawn:
                title = leak_text(passage.title)
                if title not in seen and not (leaky and gives_away(document_text(passage), forms)):
                    seen.add(title)
                    yield passage


class SymbolHaystack:
    """Other ``key = value`` lines, for ever, all words distinct within a prompt."""

    def distractors(self, fact: Fact, rng: np.random.Generator) -> Iterator[Passage]:
        """See `Haystack`."""
        seen = {*(gold.passage.title for gold in fact.golds), *fact.answers, *fact.hop_answers}
        while True:
            drawn = symbols(rng, 256)
            for key, value in zip(drawn[::2], drawn[1::2], strict=True):
                if key != value and seen.isdisjoint((key, value)):
                    seen.update((key, value))
                    yield key_value(key, value)
