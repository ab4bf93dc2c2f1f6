"""A data set from a config: sources, splits, recipe, examples, checks, card.

`train` follows the recipe and the study's seed. `score`, `dev` and `eval` are always the real recipe and depend on
`split_seed` alone, so that every model of a study sees the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rhstudy.configs import digest_view
from rhstudy.data.assemble import TOLERANCE, Label, assemble
from rhstudy.data.card import check_answer_share, library_versions, part_card
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import Corpus, load_corpus
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, UnbuildableRowError
from rhstudy.data.knobs import REAL, Knobs
from rhstudy.data.leaks import check_leaks
from rhstudy.data.recipes import Recipe, open_recipe
from rhstudy.errors import InputError, message
from rhstudy.seeding import generator
from rhstudy.types import Example, Tokenizer

__all__ = ["DataConfig", "Dataset", "Progress", "build_dataset"]

MAX_INVENTED_TRIES = 100
"""Invented facts tried for one example before the recipe is given up."""

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
    """Build the parts that `config` asks for.

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
    corpus = load_corpus(config)
    encoder = Encoder(tokenizer)
    parts: dict[str, list[Example]] = {}
    dropped: dict[str, dict[str, str]] = {}
    for part in config.parts:
        builder = _PartBuilder(config, encoder, part, progress)
        parts[part] = builder.train(corpus) if part == "train" else builder.held_out(corpus)
        dropped[part] = builder.dropped
        check_leaks(parts[part])
        check_answer_share(part, parts[part], config.min_answer_in_needle_share)
    return Dataset(parts, _card(config, corpus, parts, dropped))


@dataclass(slots=True)
class _PartBuilder:
    """Builds one part and remembers which rows could not become examples, and why."""

    config: DataConfig
    encoder: Encoder
    part: str
    progress: Progress | None
    dropped: dict[str, str] = field(default_factory=dict)

    def train(self, corpus: Corpus) -> list[Example]:
        """`num_examples` examples; a seeded choice of `real_fraction` of them follows the real recipe instead."""
        knobs, seed, wanted = self.config.resolved_knobs, self.config.seed, self.config.num_examples
        order = generator(seed, "mix").permutation(wanted)
        real = set(order[: round(knobs.real_fraction * wanted)].tolist())
        rewritten = self.config.rewritten_file
        own = open_recipe(knobs, corpus, self.part, rewritten) if len(real) < wanted else None
        mixed = open_recipe(REAL, corpus, self.part) if real else own
        distinct = (
            {own: wanted - len(real)} if own is mixed or not real else {own: wanted - len(real), mixed: len(real)}
        )
        streams = {
            recipe: recipe.facts(seed, self.dropped, self._num_distinct(count))
            for recipe, count in distinct.items()
            if recipe is not None
        }
        examples: list[Example] = []
        for index in range(wanted):
            recipe = mixed if index in real else own
            length = own.num_tokens(index, wanted, seed, self._room) if own else self._room
            stream = ("train", index)
            example = self._next(recipe, streams[recipe], f"train-{index:05d}-", stream, length) if recipe else None
            if example is None:
                raise self._too_few(wanted, len(examples))
            examples.append(example)
            self._report(len(examples), wanted)
        return examples

    @property
    def _room(self) -> int:
        """Tokens of a prompt."""
        return self.config.num_tokens - self.config.num_reserved_tokens

    def _num_distinct(self, count: int) -> int:
        """Facts that `count` examples may use; 0: no limit."""
        share = self.config.resolved_knobs.distinct_share
        return 0 if share == 1 else max(1, round(share * count))

    def held_out(self, corpus: Corpus) -> list[Example]:
        """The first rows of the part, each once, in the order of the split."""
        recipe = open_recipe(REAL, corpus, self.part)
        rows, wanted = iter(recipe.rows), self.config.num_wanted(self.part)
        examples: list[Example] = []
        while not wanted or len(examples) < wanted:
            example = self._next(recipe, rows, f"{self.part}-", (self.part,), self._room)
            if example is None:
                break
            examples.append(example)
            self._report(len(examples), wanted or len(recipe.rows))
        if len(examples) < max(wanted, 1):
            raise self._too_few(max(wanted, 1), len(examples))
        return examples

    def _next(
        self, recipe: Recipe, facts: Iterator[Fact], prefix: str, stream: tuple[str | int, ...], num_tokens: int
    ) -> Example | None:
        """The next fact that becomes an example; None when there is none left."""
        train = self.part == "train"
        label = self.config.resolved_knobs.name if train else REAL.name
        for tried, fact in enumerate(facts, 1):
            names = stream if train else (*stream, fact.fact_id)
            rng = generator(self.config.seed if train else self.config.split_seed, *names)
            try:
                return assemble(
                    fact,
                    recipe.haystack.distractors(fact, rng.spawn(1)[0]),
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
                if self.config.on_bad_row == "error" or hopeless:
                    raise
                self.dropped[fact.fact_id] = str(error)
        return None

    def _report(self, done: int, wanted: int) -> None:
        if self.progress is not None:
            self.progress(self.part, done, wanted)

    def _too_few(self, wanted: int, found: int) -> InputError:
        name = f"data.num_{'examples' if self.part == 'train' else self.part}"
        got = f"<{wanted}, with {found} rows built and {len(self.dropped)} dropped>"
        return InputError(message(name, f"be at most the rows of part {self.part}", got, "Lower it, or 0 for all rows"))


def _card(
    config: DataConfig, corpus: Corpus, parts: dict[str, list[Example]], dropped: dict[str, dict[str, str]]
) -> dict[str, Any]:
    knobs: Knobs = config.resolved_knobs
    return {
        "task": config.task,
        "recipe": {
            "name": knobs.name,
            "digest": knobs.digest,
            "contains_real": knobs.contains_real,
            "knobs": digest_view(knobs),
        },
        "num_tokens": config.num_tokens,
        "num_tokens_tolerance": TOLERANCE,
        "seed": config.seed,
        "split_seed": config.split_seed,
        "parts": {name: part_card(examples) for name, examples in parts.items()},
        "num_rows_in_split": {name: len(facts) for name, facts in corpus.splits.parts.items()},
        "num_train_rows_dropped_for_overlap_with_eval": corpus.splits.num_dropped,
        "rejected_rows": {name: dict(rows) for name, rows in corpus.rejected.items()},
        "dropped_rows": dropped,
        "sources": dict(corpus.sources),
        "versions": library_versions(),
        "notes": [corpus.task.note],
    }
