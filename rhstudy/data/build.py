"""A data set from a config: sources, splits, recipe, examples, checks, card.

`train` follows the recipe and the study's seed. `score`, `dev` and `eval` are always the real recipe and depend on
`split_seed` alone, so that every model of a study sees the same rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rhstudy.configs import digest_view
from rhstudy.data.assemble import TOLERANCE
from rhstudy.data.budget import distinct_counts
from rhstudy.data.card import card_of, check_answer_share, library_versions
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import Corpus, load_corpus
from rhstudy.data.draws import Draws
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, LeftOutRowError, UnbuildableRowError
from rhstudy.data.knobs import REAL, Knobs
from rhstudy.data.prompts import Made, Makers, OneByOne, PromptMaker, Wanted
from rhstudy.data.recipes import finite_rows
from rhstudy.data.relevance import recipe_digest, settled
from rhstudy.data.workers import Workers, num_workers_for
from rhstudy.errors import InputError, message
from rhstudy.keeping import kept
from rhstudy.seeding import generator
from rhstudy.types import Example, Tokenizer

__all__ = ["DataConfig", "Dataset", "Progress", "build_dataset", "num_distinct_of"]

MAX_INVENTED_TRIES = 100
"""Invented facts tried for one example before the recipe is given up."""
ROW_MARGIN, CITING_MARGIN = 1.25, 3.0
"""So many rows an example are enough without a look: few cannot be built, but many of those that cite."""

Progress = Callable[[str, int, int], None]
"""Called with (part, examples done, examples wanted)."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What was built.

    Attributes:
        parts: part name -> examples.
        card: plain values for a JSON file; see `rhstudy.data.card`.
    """

    parts: dict[str, list[Example]]
    card: dict[str, Any] = field(default_factory=dict)


def build_dataset(config: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None) -> Dataset:
    """Build the parts that `config` asks for, in memory; see `Build` for one example at a time.

    The same config, sources and tokenizer give the same examples on any machine and in any process.

    Args:
        config: what to build.
        tokenizer: the model's fast tokenizer.
        progress: called after each example.

    Raises:
        InputError: a source cannot be read, a row cannot be built (with `on_bad_row = "error"`), too few rows, or too
            few answer tokens occur in the needles.
        StudyError: a built prompt leaks its answer.
    """
    with contextlib.closing(Build(config, tokenizer, progress)) as build:
        parts: dict[str, list[Example]] = {part: list(build.examples(part)) for part in config.parts}
        return Dataset(parts, build.card())


class Build:
    """A data set being built, one example at a time: a prompt of 128k tokens is megabytes, and thousands are gigabytes.

    Args and errors as `build_dataset`. To be closed: other processes may be building for it.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None) -> None:
        self._config, self._tokenizer, self._progress = config, tokenizer, progress
        self._corpus = load_corpus(config)
        encoder = kept("encoder", cast(Hashable, tokenizer), lambda: Encoder(tokenizer))
        self._maker = PromptMaker(config, self._corpus, encoder)
        self._workers: Workers | None = None
        self._cards: dict[str, dict[str, Any]] = {}
        self._dropped: dict[str, dict[str, str]] = {}

    def examples(self, part: str) -> Iterator[Example]:
        """The examples of one part, each checked for leaks; the part's checks as a whole follow the last."""
        builder = _PartBuilder(self._config, self._corpus, self._maker, self._makers(part), part, self._progress)
        rows = []
        for made in builder.train() if part == "train" else builder.held_out():
            rows.append(made.summary)
            yield made.example
        self._dropped[part] = builder.dropped
        check_answer_share(part, rows, self._config.min_answer_in_needle_share)
        self._cards[part] = card_of(rows)

    def _makers(self, part: str) -> Makers:
        count = num_workers_for(self._config, self._config.num_wanted(part) or len(self._corpus.splits.parts[part]))
        if count == 1:
            return OneByOne(self._maker)
        self._workers = self._workers or Workers(self._config, self._tokenizer, count)
        return self._workers

    def card(self) -> dict[str, Any]:
        """The card of every part that was built to its end."""
        return _card(self._config, self._corpus, self._cards, self._dropped)

    def close(self) -> None:
        """Stop the processes that build for this one, if there are any."""
        if self._workers is not None:
            self._workers.close()


def num_distinct_of(config: DataConfig, recipes: Sequence[Knobs], tokenizer: Tokenizer) -> int:
    """Most distinct rows, up to `num_examples`, that every one of `recipes` can be made of.

    Rows are built once to see that they can be, where there are few of them beside the examples, and no more of them
    than it takes: the recipe of fewest rows comes first, and of others it is enough that they have as many as it has.
    Invented facts have no end; recorded ones have.

    Args:
        config: sources and budget of the recipes.
        recipes: of a study.
        tokenizer: the model's fast tokenizer.

    Raises:
        InputError: a source cannot be read.
    """
    corpus, found = load_corpus(config), config.num_examples
    encoder = kept("encoder", cast(Hashable, tokenizer), lambda: Encoder(tokenizer))
    for source, count, rows in sorted(_few_rows(config, corpus, recipes), key=lambda few: len(few[2]) / few[1]):
        asked = dataclasses.replace(config, recipe="", knobs=source, on_bad_row="skip")
        enough = -(-found * count // config.num_examples)
        usable = _num_usable(PromptMaker(asked, corpus, encoder), rows, _room(config), enough)
        found = min(found, config.num_examples * min(usable or count, count) // count)
    return max(1, found)


def _few_rows(config: DataConfig, corpus: Corpus, recipes: Sequence[Knobs]) -> Iterator[tuple[Knobs, int, list[Fact]]]:
    """What of the recipes is made of so few rows that some may be missed: (recipe, rows wanted, rows there are)."""
    for knobs in recipes:
        own = settled(knobs, config.task)
        for source, count in zip((own, REAL), distinct_counts(own, config.num_examples), strict=True):
            rows: list[Fact] | None = None
            with contextlib.suppress(InputError):  # a recipe without rows is no measure for others: its arm says so
                rows = finite_rows(source, corpus, "train", config.rewritten_file) if count else None
            if rows is not None and len(rows) < count * (CITING_MARGIN if rows[0].cites else ROW_MARGIN):
                yield source, count, rows


def _room(config: DataConfig) -> int:
    """Tokens of a prompt."""
    return config.num_tokens - config.num_reserved_tokens


def _num_usable(maker: PromptMaker, rows: Sequence[Fact], num_tokens: int, most: int) -> int:
    """How many of `rows` become examples of `maker`'s own recipe; `most` where more do."""
    usable = 0
    for fact in rows:
        if usable == most:
            break
        stream = ("train", fact.fact_id)
        wanted = Wanted(part="train", real=False, fact=fact, example_id="", stream=stream, num_tokens=num_tokens)
        with contextlib.suppress(UnbuildableRowError):
            maker.example(wanted)
            usable += 1
    return usable


@dataclass(slots=True)
class _PartBuilder:
    """Builds one part and remembers which rows could not become examples, and why."""

    config: DataConfig
    corpus: Corpus
    maker: PromptMaker
    makers: Makers
    part: str
    progress: Progress | None
    dropped: dict[str, str] = field(default_factory=dict)

    def train(self) -> Iterator[Made]:
        """`num_examples` examples; a seeded choice of `real_fraction` of them follows the real recipe instead."""
        knobs, seed, wanted = self.config.resolved_knobs, self.config.seed, self.config.num_examples
        real = set(generator(seed, "mix").permutation(wanted)[: round(knobs.real_fraction * wanted)].tolist())
        own = self.maker.recipe(self.part, real=False) if len(real) < wanted else None
        draws, begun = Draws(lambda dropped: self._streams(len(real), dropped)), deque[Fact]()
        done = tried = 0
        while done < wanted:
            while len(begun) < self.makers.room and (index := done + len(begun)) < wanted:
                fact = draws.draw(index in real)
                if fact is None:
                    break
                length = own.num_tokens(index, wanted, seed, _room(self.config)) if own else _room(self.config)
                begun.append(fact)
                self._begin(fact, index in real, f"train-{index:05d}-", ("train", index), length)
            if not begun:
                raise self._too_few(wanted, done)
            fact, tried = begun.popleft(), tried + 1
            made = self._take(fact, tried, invented=self.maker.recipe(self.part, done in real).is_invented)
            draws.settle("" if made else fact.fact_id)
            if made is None:
                begun.clear()
                self.makers.forget()
                continue
            done, tried = done + 1, 0
            self._report(done, wanted)
            yield made

    def _streams(self, num_real: int, dropped: Collection[str]) -> dict[bool, Iterator[Fact]]:
        """Facts of the recipe itself (False) and of the real one (True), as far as examples follow them."""
        knobs, wanted = self.config.resolved_knobs, self.config.num_examples
        counts = distinct_counts(knobs, wanted, self.config.num_distinct)
        limited = knobs.distinct_share < 1 or self.config.num_distinct > 0
        shares = ((False, wanted - num_real), (True, num_real))
        return {
            real: self.maker.recipe(self.part, real).facts(self.config.seed, dropped, count if limited else 0)
            for (real, share), count in zip(shares, counts, strict=True)
            if share and count
        }

    def held_out(self) -> Iterator[Made]:
        """The first rows of the part, each once, in the order of the split; a task's further draws of them follow."""
        recipe = self.maker.recipe(self.part, real=True)
        draws = zip(*map(self.corpus.task.held_out, recipe.rows), strict=True)
        rows, wanted = (fact for draw in draws for fact in draw), self.config.num_wanted(self.part)
        done, begun = 0, deque[Fact]()
        while not wanted or done < wanted:
            room = min(self.makers.room, wanted - done) if wanted else self.makers.room
            for fact in itertools.islice(rows, room - len(begun)):
                begun.append(fact)
                self._begin(fact, True, f"{self.part}-", (self.part, fact.fact_id), _room(self.config))
            if not begun:
                break
            made = self._take(begun.popleft())
            if made is not None:
                done += 1
                self._report(done, wanted or len(recipe.rows))
                yield made
        if done < max(wanted, 1):
            raise self._too_few(max(wanted, 1), done)

    def _begin(self, fact: Fact, real: bool, prefix: str, stream: tuple[str | int, ...], num_tokens: int) -> None:
        example_id = prefix + fact.fact_id
        self.makers.begin(Wanted(part=self.part, real=real, fact=fact, example_id=example_id, stream=stream,
                                 num_tokens=num_tokens))  # fmt: skip

    def _take(self, fact: Fact, tried: int = 1, invented: bool = False) -> Made | None:
        """What became of `fact`, the `tried`-th for its example; None where it was dropped."""
        try:
            return self.makers.take()
        except UnbuildableRowError as error:
            # Rows come to an end, invented facts never do: what fails so often fails for all of them.
            hopeless = invented and tried >= MAX_INVENTED_TRIES
            strict = self.config.on_bad_row == "error" and not isinstance(error, LeftOutRowError)
            if strict or hopeless:
                raise
            self.dropped[fact.fact_id] = str(error)
            return None

    def _report(self, done: int, wanted: int) -> None:
        if self.progress is not None:
            self.progress(self.part, done, wanted)

    def _too_few(self, wanted: int, found: int) -> InputError:
        name = f"data.num_{'examples' if self.part == 'train' else self.part}"
        got = f"<{wanted}, with {found} rows built and {len(self.dropped)} dropped>"
        remedy = "Lower it, or 0 for all rows"
        if self.dropped:
            remedy += f"; why the first was dropped: {next(iter(self.dropped.values()))}"
        return InputError(message(name, f"be at most the rows of part {self.part}", got, remedy))


def _card(
    config: DataConfig, corpus: Corpus, parts: dict[str, dict[str, Any]], dropped: dict[str, dict[str, str]]
) -> dict[str, Any]:
    knobs: Knobs = config.resolved_knobs
    return {
        "task": config.task,
        "recipe": {
            "name": knobs.name,
            "digest": recipe_digest(knobs, config.task),
            "contains_real": knobs.contains_real,
            "knobs": digest_view(knobs),
        },
        "num_tokens": config.num_tokens,
        "num_tokens_tolerance": TOLERANCE,
        "seed": config.seed,
        "split_seed": config.split_seed,
        "parts": parts,
        "num_rows_in_split": {name: len(facts) for name, facts in corpus.splits.parts.items()},
        "num_train_rows_dropped_for_overlap_with_eval": corpus.splits.num_dropped,
        "rejected_rows": {name: dict(rows) for name, rows in corpus.rejected.items()},
        "dropped_rows": dropped,
        "sources": dict(corpus.sources),
        "versions": library_versions(),
        "notes": [corpus.task.note],
    }
