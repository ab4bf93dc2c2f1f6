"""One example from one fact: what each is made of, and making it in this process, one after another."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from rhstudy.data.assemble import Label, assemble
from rhstudy.data.card import ExampleSummary, summary_of
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import Corpus
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact
from rhstudy.data.knobs import REAL
from rhstudy.data.leaks import check_leaks
from rhstudy.data.recipes import Recipe, open_recipe
from rhstudy.seeding import generator
from rhstudy.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one example is made of; equal ones give equal examples in any process.

    Attributes:
        part: of the data set.
        real: whether it follows the real recipe instead of the config's own.
        fact: its needle and question.
        example_id: its id.
        stream: names of its random stream.
        num_tokens: length of its prompt.
    """

    part: str
    real: bool
    fact: Fact
    example_id: str
    stream: tuple[str | int, ...]
    num_tokens: int


class Made(NamedTuple):
    """An example, checked for leaks, and what the card needs of it."""

    example: Example
    summary: ExampleSummary


class PromptMaker:
    """Makes examples of one data set.

    Args:
        config: of the data set.
        corpus: its rows and passages.
        encoder: the model's tokenizer.
    """

    def __init__(self, config: DataConfig, corpus: Corpus, encoder: Encoder) -> None:
        self._config, self._corpus, self._encoder = config, corpus, encoder
        self._recipes: dict[tuple[str, bool], Recipe] = {}

    def recipe(self, part: str, real: bool) -> Recipe:
        """The config's own recipe, or the real one, opened for a part; errors as `open_recipe`."""
        if (part, real) not in self._recipes:
            knobs, rewritten = (REAL, "") if real else (self._config.resolved_knobs, self._config.rewritten_file)
            self._recipes[part, real] = open_recipe(knobs, self._corpus, part, rewritten)
        return self._recipes[part, real]

    def made(self, wanted: Wanted) -> Made:
        """The example, checked for leaks.

        Raises:
            UnbuildableRowError: its row cannot become one.
            StudyError: it leaks its answer.
        """
        example = self.example(wanted)
        check_leaks([example])
        return Made(example, summary_of(example))

    def example(self, wanted: Wanted) -> Example:
        """The example; errors as `rhstudy.data.assemble.assemble`."""
        config, recipe, train = self._config, self.recipe(wanted.part, wanted.real), wanted.part == "train"
        rng = generator(config.seed if train else config.split_seed, *wanted.stream)
        stream = recipe.haystack.distractors(wanted.fact, rng.spawn(1)[0])
        fact, distractors = self._corpus.task.fit(wanted.fact, stream, wanted.num_tokens, self._encoder)
        return assemble(
            fact,
            distractors,
            recipe.layout,
            self._encoder,
            wanted.num_tokens,
            rng,
            Label(
                example_id=wanted.example_id,
                task=config.task,
                recipe=config.resolved_knobs.name if train else REAL.name,
            ),
            recipe.knobs.needle_position if train else "uniform",
        )


@runtime_checkable
class Makers(Protocol):
    """What makes examples: this process or several."""

    @property
    def room(self) -> int:
        """How many may be begun and not taken."""

    def begin(self, wanted: Wanted) -> None:
        """Have an example made, after those begun before."""

    def take(self) -> Made:
        """The oldest that was begun; raises what making it raised."""

    def forget(self) -> None:
        """Whatever was begun and not taken is not wanted any more."""


class OneByOne:
    """Makes each example when it is taken."""

    room = 1

    def __init__(self, maker: PromptMaker) -> None:
        self._maker = maker
        self._begun: deque[Wanted] = deque()

    def begin(self, wanted: Wanted) -> None:
        """See `Makers`."""
        self._begun.append(wanted)

    def take(self) -> Made:
        """See `Makers`."""
        return self._maker.made(self._begun.popleft())

    def forget(self) -> None:
        """See `Makers`."""
        self._begun.clear()
