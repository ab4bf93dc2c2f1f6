"""A data set from a config: sources, splits, recipe, examples, checks, card.

`train` follows the recipe and the study's seed. `score`, `dev` and `eval` are always the real recipe and depend on
`split_seed` alone, so that every model of a study sees the same rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rhstudy.configs import digest_view
from rhstudy.data.assemble import TOLERANCE, Label, assemble
from rhstudy.data.budget import distinct_counts
from rhstudy.data.card import card_of, check_answer_share, library_versions, summary_of
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import Corpus, load_corpus
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, LeftOutRowError, UnbuildableRowError
from rhstudy.data.knobs import REAL, Knobs
from rhstudy.data.leaks import check_leaks
from rhstudy.data.recipes import Recipe, finite_rows, open_recipe
from rhstudy.data.relevance import recipe_digest, settled
from rhstudy.data.tasks.registry import Task
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
    build = Build(config, tokenizer, progress)
    parts: dict[str, list[Example]] = {part: list(build.examples(part)) for part in config.parts}
    return Dataset(parts, build.card())


class Build:
    """A data set being built, one example at a time: a prompt of 128k tokens is megabytes, and thousands are gigabytes.

    Args and errors as `build_dataset`.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None) -> None:
        self._config, self._progress = config, progress
        self._corpus = load_corpus(config)
        self._encoder = kept("encoder", cast(Hashable, tokenizer), lambda: Encoder(tokenizer))
        self._cards: dict[str, dict[str, Any]] = {}
        self._dropped: dict[str, dict[str, str]] = {}

    def examples(self, part: str) -> Iterator[Example]:
        """The examples of one part, each checked for leaks; the part's checks as a whole follow the last."""
        builder = _PartBuilder(self._config, self._corpus.task, self._encoder, part, self._progress)
        built = builder.train(self._corpus) if part == "train" else builder.held_out(self._corpus)
        rows = []
        for example in built:
            check_leaks([example])
            rows.append(summary_of(example))
            yield example
        self._dropped[part] = builder.dropped
        check_answer_share(part, rows, self._config.min_answer_in_needle_share)
        self._cards[part] = card_of(rows)

    def card(self) -> dict[str, Any]:
        """The card of every part that was built to its end."""
        return _card(self._config, self._corpus, self._cards, self._dropped)


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
        usable = _PartBuilder(asked, corpus.task, encoder, "train", None).num_usable(source, corpus, rows, enough)
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


@dataclass(slots=True)
class _PartBuilder:
    """Builds one part and remembers which rows could not become examples, and why."""

    config: DataConfig
    task: Task
    encoder: Encoder
    part: str
    progress: Progress | None
    dropped: dict[str, str] = field(default_factory=dict)

    def train(self, corpus: Corpus) -> Iterator[Example]:
        """`num_examples` examples; a seeded choice of `real_fraction` of them follows the real recipe instead."""
        knobs, seed, wanted = self.config.resolved_knobs, self.config.seed, self.config.num_examples
        order = generator(seed, "mix").permutation(wanted)
        real = set(order[: round(knobs.real_fraction * wanted)].tolist())
        rewritten = self.config.rewritten_file
        own = open_recipe(knobs, corpus, self.part, rewritten) if len(real) < wanted else None
        mixed = open_recipe(REAL, corpus, self.part) if real else own
        counts = distinct_counts(knobs, wanted, self.config.num_distinct)
        limited = knobs.distinct_share < 1 or self.config.num_distinct > 0
        streams = {
            recipe: recipe.facts(seed, self.dropped, count if limited else 0)
            for recipe, count in zip((own, mixed), counts, strict=True)
            if recipe is not None and count
        }
        for index in range(wanted):
            recipe = mixed if index in real else own
            length = own.num_tokens(index, wanted, seed, self._room) if own else self._room
            stream = ("train", index)
            example = self._next(recipe, streams[recipe], f"train-{index:05d}-", stream, length) if recipe else None
            if example is None:
                raise self._too_few(wanted, index)
            self._report(index + 1, wanted)
            yield example

    @property
    def _room(self) -> int:
        """Tokens of a prompt."""
        return self.config.num_tokens - self.config.num_reserved_tokens

    def num_usable(self, knobs: Knobs, corpus: Corpus, rows: Sequence[Fact], most: int) -> int:
        """How many of `rows` become examples of a recipe; `most` where more do."""
        recipe = open_recipe(knobs, corpus, self.part, self.config.rewritten_file)
        made = (self._next(recipe, iter([fact]), "", (self.part, fact.fact_id), self._room) for fact in rows)
        return sum(1 for _ in itertools.islice((example for example in made if example is not None), most))

    def held_out(self, corpus: Corpus) -> Iterator[Example]:
        """The first rows of the part, each once, in the order of the split; a task's further draws of them follow."""
        recipe = open_recipe(REAL, corpus, self.part)
        draws = zip(*map(self.task.held_out, recipe.rows), strict=True)
        rows, wanted = (fact for draw in draws for fact in draw), self.config.num_wanted(self.part)
        num_built = 0
        while not wanted or num_built < wanted:
            example = self._next(recipe, rows, f"{self.part}-", (self.part,), self._room)
            if example is None:
                break
            num_built += 1
            self._report(num_built, wanted or len(recipe.rows))
            yield example
        if num_built < max(wanted, 1):
            raise self._too_few(max(wanted, 1), num_built)

    def _next(
        self, recipe: Recipe, facts: Iterator[Fact], prefix: str, stream: tuple[str | int, ...], num_tokens: int
    ) -> Example | None:
        """The next fact that becomes an example; None when there is none left."""
        train = self.part == "train"
        label = self.config.resolved_knobs.name if train else REAL.name
        for tried, fact in enumerate(facts, 1):
            names = stream if train else (*stream, fact.fact_id)
            rng = generator(self.config.seed if train else self.config.split_seed, *names)
            stream_of = recipe.haystack.distractors(fact, rng.spawn(1)[0])
            try:
                fitted, distractors = self.task.fit(fact, stream_of, num_tokens, self.encoder)
                return assemble(
                    fitted,
                    distractors,
                    recipe.layout,
                    self.encoder,
                    num_tokens,
                    rng,
                    Label(example_id=prefix + fact.fact_id, task=self.config.task, recipe=label),
                    recipe.knobs.needle_position if train else "uniform",
                )
            except UnbuildableRowError as error:
                # Rows come to an end, invented facts never do: what fails so often fails for all of them.
                hopeless = recipe.is_invented and tried >= MAX_INVENTED_TRIES
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
