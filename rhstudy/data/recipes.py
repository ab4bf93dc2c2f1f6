"""A recipe opened on a corpus: where its facts come from, what surrounds them, how the prompt is laid out."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rhstudy.data.contexts import ByOrigin, HardHaystack, LooseHaystack, MixedHaystack, OnTopicHaystack
from rhstudy.data.corpus import Corpus
from rhstudy.data.facts import Fact, Passage
from rhstudy.data.haystack import FillerHaystack, Haystack, NeedleHaystack, PassageHaystack, SymbolHaystack
from rhstudy.data.insights import RewrittenInsights, insight_maker
from rhstudy.data.knobs import ConceptExpression, ContextDiversity, Knobs
from rhstudy.data.layout import Layout
from rhstudy.data.needles import FactMaker, TemplatedFacts, Templates, near_key, symbolic_chain, with_draw
from rhstudy.data.recorded_needles import read_rewritten, rewritten_path
from rhstudy.data.relations import ALL_RELATIONS
from rhstudy.data.relevance import CITING, LEAST_SHARE, MULTI_HOP, settled
from rhstudy.data.tasks.mdqa import first_word_in
from rhstudy.errors import StudyError, require
from rhstudy.seeding import generator


@dataclass(frozen=True, eq=False)
class Recipe:
    """What `Knobs` mean for one part of one corpus.

    Attributes:
        knobs: the recipe.
        layout: documents, or lines for symbolic needles among their own kind.
        open_haystack: makes `haystack`, which takes a while where it has an index of passages.
        rows: real facts, in the order of the split; empty for invented ones.
        makers: wording -> what draws invented facts; empty for real ones.
        written: what states each recorded fact of ``rewritten`` needles; they come to an end and are used again.
    """

    knobs: Knobs
    layout: Layout
    open_haystack: Callable[[], Haystack]
    rows: Sequence[Fact]
    makers: Mapping[ConceptExpression, FactMaker] = field(default_factory=dict)
    written: Sequence[FactMaker] = ()

    @functools.cached_property
    def haystack(self) -> Haystack:
        """Where distractors come from."""
        return self.open_haystack()

    @property
    def is_invented(self) -> bool:
        """Whether its facts never come to an end."""
        return bool(self.makers or self.written)

    def facts(self, seed: int, dropped: Collection[str], num_distinct: int = 0) -> Iterator[Fact]:
        """Facts for training, without end: invented ones, or the rows in a new order each time round.

        Args:
            seed: the study's seed.
            dropped: ids of rows found unusable so far; a live view. The stream ends when no row is left.
            num_distinct: use no more than so many facts, again and again; 0 sets no limit.
        """
        stream = self._invented(seed) if self.is_invented else _in_rounds(self.rows, seed, "rows", dropped)
        if not num_distinct:
            yield from stream
            return
        chosen: dict[str, Fact] = {}
        for fact in stream:
            yield fact
            if fact.fact_id not in dropped:
                chosen.setdefault(fact.fact_id, fact)
            if len(chosen) == num_distinct:
                break
        for draw in itertools.count(1):
            usable = [fact for fact in chosen.values() if fact.fact_id not in dropped]
            if not usable:
                return
            yield from (with_draw(fact, draw) for fact in usable)

    def _invented(self, seed: int) -> Iterator[Fact]:
        shares = {kind: share for kind, share in self.knobs.needle_shares.items() if share > 0}
        written = self._written(seed)
        kinds, bounds = list(shares), np.cumsum(list(shares.values()))
        for number in itertools.count():
            at = float(generator(seed, "wording", number).random()) * float(bounds[-1]) if len(kinds) > 1 else 0.0
            kind = kinds[min(int(np.searchsorted(bounds, at, side="right")), len(kinds) - 1)]
            if kind in self.makers:
                yield self.makers[kind](generator(seed, "needle", number), f"invented-{number:05d}")
            else:
                yield next(written)

    def _written(self, seed: int) -> Iterator[Fact]:
        """The recorded facts in a new order each time round."""
        for epoch in itertools.count():
            order = generator(seed, "rewritten", epoch).permutation(len(self.written)).tolist()
            for place, index in enumerate(order):
                yield with_draw(self.written[index](generator(seed, "rewritten", epoch, place), ""), epoch)

    def num_tokens(self, index: int, count: int, seed: int, num_tokens: int) -> int:
        """Length of example `index` of `count`: `num_tokens`, or spread evenly around it with the same mean."""
        spread = self.knobs.length_spread
        if not spread or count < 2:
            return num_tokens
        order = generator(seed, "length").permutation(count)
        return round(num_tokens * (1 + spread * (2 * int(order[index]) / (count - 1) - 1)))


def _in_rounds(rows: Sequence[Fact], seed: int, stream: str, dropped: Collection[str]) -> Iterator[Fact]:
    """The rows in a new order each time round; from the second round on each says how often it was used before."""
    for epoch in itertools.count():
        order = generator(seed, stream, epoch).permutation(len(rows)).tolist()
        usable = [rows[index] for index in order if rows[index].fact_id not in dropped]
        if not usable:
            return
        yield from (with_draw(fact, epoch) for fact in usable)


def open_recipe(knobs: Knobs, corpus: Corpus, part: str, rewritten_file: str = "") -> Recipe:
    """Bind `knobs` to the rows and passages that `part` may use.

    Args:
        knobs: the recipe.
        corpus: rows and passages.
        part: which part is built.
        rewritten_file: recording of rewritten needles; empty takes the task's own of this package.

    Raises:
        InputError: no row of the part is kept by `question_words` and `row_labels`; no recording of rewritten needles.
    """
    knobs = settled(knobs, corpus.task.name)
    lines = knobs.concept_expression == "symbolic" and knobs.context_diversity == "templated"
    lines = lines and len(_kinds(knobs)) == 1 and max(knobs.context_shares.values()) > 1 - LEAST_SHARE
    rows = _rows(knobs, corpus, part) if knobs.concept_expression == "real" else []
    invented = [kind for kind in _kinds(knobs) if kind != "real"]
    recording = rewritten_path(corpus.task.name, rewritten_file)
    return Recipe(
        knobs=knobs,
        layout=corpus.task.lines if lines and corpus.task.name not in CITING else corpus.task.documents,
        open_haystack=lambda: _haystack(knobs, corpus, part, recording),
        rows=rows,
        makers={kind: _maker(kind, knobs, corpus, recording) for kind in invented if kind != "rewritten"},
        written=_written(corpus, recording) if "rewritten" in invented else (),
    )


def _kinds(knobs: Knobs) -> list[ConceptExpression]:
    return [kind for kind, share in knobs.needle_shares.items() if share > LEAST_SHARE]


def _rows(knobs: Knobs, corpus: Corpus, part: str) -> list[Fact]:
    rows = [fact for fact in corpus.splits.parts[part] if first_word_in(fact, knobs.question_words)]
    remedy = "List words that questions start with, or leave it empty"
    require(bool(rows), "knobs.question_words", "leave at least one row", knobs.question_words, remedy)
    kept = [fact for fact in rows if not knobs.row_labels or set(knobs.row_labels) & set(fact.labels)]
    labels = sorted({label for fact in rows for label in fact.labels})
    remedy = f"Labels found: {', '.join(labels[:12]) or 'none'}"
    require(bool(kept), "knobs.row_labels", "leave at least one row", knobs.row_labels, remedy)
    return kept


def finite_rows(knobs: Knobs, corpus: Corpus, part: str, rewritten_file: str = "") -> list[Fact] | None:
    """The rows or recorded facts of a recipe that is made of these alone; None where it draws others without end."""
    if knobs.concept_expression == "real":
        return _rows(knobs, corpus, part)
    if _kinds(knobs) != ["rewritten"]:
        return None
    makers = _written(corpus, rewritten_path(corpus.task.name, rewritten_file))
    return [make(generator(0, "rewritten", place), "") for place, make in enumerate(makers)]


def _written(corpus: Corpus, recording: Path) -> list[FactMaker]:
    """The recorded facts as the task asks for them; those that it cannot ask for are left out."""
    if corpus.task.name in CITING:
        return RewrittenInsights(recording).each()
    asked: list[FactMaker] = []
    for fact in read_rewritten(recording).facts():
        with contextlib.suppress(StudyError):  # cues: no word before the answer, or it is in them
            asked.append(_Always(corpus.task.ask(_Always(fact))(generator(0), fact.fact_id)))
    must = f"hold a text that {corpus.task.name} can ask for"
    require(bool(asked), "rewritten needles", must, "<none>", "Give another recording", str(recording))
    return asked


@dataclass(frozen=True, slots=True)
class _Always:
    """A maker of one fact, for instance so that a task can ask for it in its own way."""

    fact: Fact

    def __call__(self, rng: np.random.Generator, fact_id: str) -> Fact:
        del rng, fact_id
        return self.fact


def _templates(kind: ConceptExpression, knobs: Knobs, *, asked: bool = False) -> Templates:
    """Templates of needles, or of passages around them, of which nothing is `asked`."""
    diverse = kind in ("templated_diverse", "rewritten")
    most = max(len(relation.wordings) for relation in ALL_RELATIONS)
    return Templates(
        origin="templated_diverse" if diverse else "templated",
        num_relations=knobs.num_relations,
        num_templates=knobs.num_templates or (most if diverse else 1),
        entity_source=knobs.entity_source,
        lexical_overlap=knobs.lexical_overlap if asked else 0.0,
        answer_words=knobs.answer_words,
    )


def _maker(kind: ConceptExpression, knobs: Knobs, corpus: Corpus, recording: Path) -> FactMaker:
    task = corpus.task.name
    if task in CITING:
        return insight_maker(kind, knobs.num_templates, knobs.entity_source, recording)
    if kind == "symbolic":
        hops = knobs.hops if task in MULTI_HOP else 1
        return corpus.task.ask(lambda rng, fact_id: symbolic_chain(rng, fact_id, hops, knobs.answer_words))
    facts = TemplatedFacts(_templates(kind, knobs, asked=True))
    if task in MULTI_HOP:
        return corpus.task.ask(lambda rng, fact_id: facts.chain(rng, fact_id, knobs.hops))
    return corpus.task.ask(facts)


def _haystack(knobs: Knobs, corpus: Corpus, part: str, recording: Path) -> Haystack:
    kinds = {kind: share for kind, share in knobs.context_shares.items() if share > LEAST_SHARE}
    shares = [(_of_kind(kind, knobs, corpus, part, recording), share) for kind, share in kinds.items()]
    haystack = shares[0][0] if len(shares) == 1 else MixedHaystack(shares)
    if not knobs.num_hard_distractors:
        return haystack
    alike = TemplatedFacts(_templates(knobs.concept_expression, knobs))

    def look_alike(fact: Fact, rng: np.random.Generator) -> Passage:
        return near_key(fact, rng) if fact.origin == "symbolic" else alike.similar(fact, rng).passage

    return HardHaystack(haystack, look_alike, knobs.num_hard_distractors)


def _of_kind(kind: ContextDiversity, knobs: Knobs, corpus: Corpus, part: str, recording: Path) -> Haystack:
    if kind == "repeated_filler":
        return FillerHaystack(knobs.filler)
    if kind == "templated":
        invented = knobs.concept_expression
        if corpus.task.name in CITING:
            same = "templated" if invented == "real" else invented
            insights = insight_maker(same, knobs.num_templates, knobs.entity_source, recording)
            return NeedleHaystack(lambda rng, count: [insights(rng, "").passage for _ in range(count)])
        facts = TemplatedFacts(_templates(invented, knobs) if invented != "real" else Templates())
        others = NeedleHaystack(facts.passages)
        return ByOrigin(SymbolHaystack(), others)
    passages = PassageHaystack(corpus.pool, corpus.held_out_from(part))
    if kind == "repeated_on_topic":
        return OnTopicHaystack(passages)
    return passages if knobs.distractor_similarity == 1 else LooseHaystack(passages, knobs.distractor_similarity)
