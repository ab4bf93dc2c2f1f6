"""A recipe opened on a corpus: where its facts come from, what surrounds them, how the prompt is laid out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rhstudy.data.corpus import Corpus
from rhstudy.data.facts import Fact
from rhstudy.data.haystack import FillerHaystack, Haystack, NeedleHaystack, PassageHaystack, SymbolHaystack
from rhstudy.data.knobs import Knobs
from rhstudy.data.layout import Layout
from rhstudy.data.needles import FactMaker, symbolic_fact, templated_facts
from rhstudy.data.tasks.mdqa import first_word_in
from rhstudy.errors import require
from rhstudy.seeding import generator


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What `Knobs` mean for one part of one corpus.

    Attributes:
        layout: documents, or lines for symbolic needles among their own kind.
        haystack: where distractors come from.
        rows: real facts, in the order of the split; empty for invented ones.
        make: draws invented facts; None for real ones.
    """

    layout: Layout
    haystack: Haystack
    rows: Sequence[Fact]
    make: FactMaker | None

    def facts(self, seed: int, dropped: Collection[str]) -> Iterator[Fact]:
        """Facts for training, without end: invented ones, or the rows in a new order each time round.

        Args:
            seed: the study's seed.
            dropped: ids of rows found unusable so far; a live view. The stream ends when no row is left.
        """
        if self.make is not None:
            for number in itertools.count():
                yield self.make(generator(seed, "needle", number), f"invented-{number:05d}")
        for epoch in itertools.count():
            order = generator(seed, "rows", epoch).permutation(len(self.rows)).tolist()
            usable = [self.rows[index] for index in order if self.rows[index].fact_id not in dropped]
            if not usable:
                return
            yield from (dataclasses.replace(fact, draw=epoch) for fact in usable)


def open_recipe(knobs: Knobs, corpus: Corpus, part: str) -> Recipe:
    """Bind `knobs` to the rows and passages that `part` may use.

    Raises:
        InputError: no row of the part starts with one of `question_words`.
    """
    lines = knobs.concept_expression == "symbolic" and knobs.context_diversity == "templated"
    rows: list[Fact] = []
    if knobs.concept_expression == "real":
        rows = [fact for fact in corpus.splits.parts[part] if first_word_in(fact, knobs.question_words)]
        remedy = "List words that questions start with, or leave it empty"
        require(bool(rows), "knobs.question_words", "leave at least one row", knobs.question_words, remedy)
    return Recipe(
        layout=corpus.task.lines if lines else corpus.task.documents,
        haystack=_haystack(knobs, corpus, part),
        rows=rows,
        make=_maker(knobs, corpus),
    )


def _maker(knobs: Knobs, corpus: Corpus) -> FactMaker | None:
    if knobs.concept_expression == "real":
        return None
    return corpus.task.ask(symbolic_fact if knobs.concept_expression == "symbolic" else templated_facts())


def _haystack(knobs: Knobs, corpus: Corpus, part: str) -> Haystack:
    if knobs.context_diversity == "real":
        return PassageHaystack(corpus.pool, corpus.held_out_from(part))
    if knobs.context_diversity == "repeated_filler":
        return FillerHaystack(knobs.filler)
    return SymbolHaystack() if knobs.concept_expression == "symbolic" else NeedleHaystack(templated_facts())
