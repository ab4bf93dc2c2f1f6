"""What varies between recipes of training data: how the fact is worded, and what surrounds it.

The paper's corners are `PRESETS`. Budgets (examples, tokens) are no knobs: they are equal for every recipe of a study
and stand in `DataConfig`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rhstudy.configs import digest, digest_view
from rhstudy.errors import InputError, message, require

ConceptExpression = Literal["real", "templated", "symbolic"]
ContextDiversity = Literal["real", "repeated_filler", "templated"]

RESERVED_NAMES = ("untuned", "untuned_native")
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """One recipe.

    Attributes:
        name: label in tables and run names; not part of `digest`, so a renamed recipe is the same recipe.
        concept_expression: ``real`` rows of the task, ``templated`` sentences about invented people and companies
            (one wording a relation), or ``symbolic`` lines ``key = value``.
        context_diversity: ``real`` passages found by BM25, one ``repeated_filler``, or ``templated``: other needles
            of the same kind (``key = value`` lines when symbolic, sentences otherwise).
        question_words: keep real rows whose question starts with one of these words, case ignored; empty keeps all.
        real_fraction: share of examples drawn from the real recipe instead, 0-1.
        filler: the text that ``repeated_filler`` repeats.
    """

    name: str
    concept_expression: ConceptExpression = "real"
    context_diversity: ContextDiversity = "real"
    question_words: tuple[str, ...] = ()
    real_fraction: float = 0.0
    filler: str = FILLER

    def __post_init__(self) -> None:
        require(bool(self.name), "knobs.name", "be a label", self.name, "Name the recipe")
        taken = self.name in RESERVED_NAMES
        require(not taken, "knobs.name", f"not be one of {', '.join(RESERVED_NAMES)}", self.name, "These are baselines")
        require(0 <= self.real_fraction <= 1, "knobs.real_fraction", "be in [0, 1]", self.real_fraction, "Give a share")
        require(bool(self.filler.split()), "knobs.filler", "hold at least one word", self.filler, "Give a sentence")
        require(
            self.concept_expression == "real" or not self.question_words,
            "knobs.question_words",
            f"be empty for {self.concept_expression} needles",
            self.question_words,
            "It limits the rows of real needles only",
        )

    @property
    def contains_real(self) -> bool:
        """Whether any training example states a real row of the task: such arms are flagged in every correlation."""
        return contains_real(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe without its label; recipes with equal digests are one cluster in the statistics."""
        return digest("recipe", {key: value for key, value in digest_view(self).items() if key != "name"})


def contains_real(knobs: Knobs) -> bool:
    """Whether any training example of `knobs` states a real row of the task, whatever surrounds it."""
    return knobs.concept_expression == "real" or knobs.real_fraction > 0


REAL = Knobs(name="real")

PRESETS: Mapping[str, Knobs] = MappingProxyType(
    {
        knobs.name: knobs
        for knobs in (
            REAL,
            Knobs(name="real_limited", question_words=("who",)),
            Knobs(name="templated_in_passages", concept_expression="templated"),
            Knobs(name="templated_in_filler", concept_expression="templated", context_diversity="repeated_filler"),
            Knobs(name="symbolic", concept_expression="symbolic", context_diversity="templated"),
        )
    }
)


def preset(name: str) -> Knobs:
    """The recipe called `name`.

    Raises:
        InputError: no preset has that name; the nearest one is named.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.3)
        remedy = f"Did you mean {near[0]}? Known: {', '.join(PRESETS)}" if near else f"Known: {', '.join(PRESETS)}"
        raise InputError(message("data.recipe", "be a known recipe", name, remedy))
    return PRESETS[name]
