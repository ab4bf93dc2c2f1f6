"""What varies between recipes of training data: how the fact is worded, and what surrounds it.

The paper's corners are `corners(task)`. Budgets (examples, tokens) are no knobs: they are equal for every recipe of a
study and stand in `DataConfig`. Every knob that a search may turn says so in its field (`search_space`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from rhstudy.configs import digest, digest_view
from rhstudy.data.entities import EntitySource
from rhstudy.data.positions import POSITION_LAWS, PositionLaw
from rhstudy.errors import InputError, message, require

ConceptExpression = Literal["real", "rewritten", "templated_diverse", "templated", "symbolic"]
ContextDiversity = Literal["real", "repeated_filler", "templated", "repeated_on_topic"]
INVENTED: tuple[ConceptExpression, ...] = ("rewritten", "templated_diverse", "templated", "symbolic")
TEMPLATED: tuple[ConceptExpression, ...] = ("templated_diverse", "templated")

RESERVED_NAMES = ("untuned", "untuned_native")
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
FIRST_FIELDS = ("concept_expression", "context_diversity", "question_words", "real_fraction", "filler")
"""Fields that every digest holds; later ones count where they are not at their default, so old digests stay."""


def _knob(default: Any, low: float, high: float, *, log: bool = False, when: Mapping[str, Any] | None = None) -> Any:
    """A field that a search may turn, from `low` to `high`; `when` says for which values of other fields it matters."""
    return field(default=default, metadata={"low": low, "high": high, "log": log, "when": dict(when or {})})


def _choice(default: Any, choices: tuple[str, ...], when: Mapping[str, Any] | None = None) -> Any:
    return field(default=default, metadata={"choices": choices, "when": dict(when or {})})


_TEMPLATED_ONLY = {"concept_expression": TEMPLATED}
_INVENTED_ONLY = {"concept_expression": INVENTED}
_ANSWERED = ("mdqa", "musique", "own", "cue_retrieval")
"""Tasks whose answer is a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """One recipe.

    Attributes:
        name: label in tables and run names; not part of `digest`, so a renamed recipe is the same recipe.
        concept_expression: ``real`` rows of the task; sentences about invented people and companies: ``rewritten`` by a
            language model, ``templated_diverse`` (over 40 wordings a relation) or ``templated`` (one wording a
            relation); or ``symbolic`` lines ``key = value``.
        context_diversity: ``real`` passages found by BM25, one ``repeated_filler``, ``templated``: other needles
            of the same kind (``key = value`` lines when symbolic, sentences otherwise), or ``repeated_on_topic``: the
            best BM25 passage again and again.
        question_words: keep real rows whose question starts with one of these words, case ignored; empty keeps all.
        real_fraction: share of examples drawn from the real recipe instead, 0-1.
        filler: the text that ``repeated_filler`` repeats.
        row_labels: keep real rows one of whose labels is among these (MuSiQue: relations of its decomposition;
            SummHay: topic, or its subtopics as ``subtopic 1``...); empty keeps all.
        rewritten_share: share of the other examples whose needle is ``rewritten`` instead of `concept_expression`; so
            the next three.
        templated_diverse_share: as `rewritten_share`, for ``templated_diverse``.
        templated_share: as `rewritten_share`, for ``templated``.
        symbolic_share: as `rewritten_share`, for ``symbolic``.
        passages_context_share: share of distractors that are real passages instead of `context_diversity`; so the
            next three.
        templated_context_share: as `passages_context_share`, for ``templated``.
        on_topic_context_share: as `passages_context_share`, for ``repeated_on_topic``.
        filler_context_share: as `passages_context_share`, for ``repeated_filler``.
        num_relations: relations that templated needles are drawn from, the first so many; those beyond ten lead on
            from places and pupils and make longer chains.
        num_templates: wordings a relation; 0 is 1 for ``templated`` and all for ``templated_diverse``.
        entity_source: names of people, companies, places: ``faker`` (American), ``faker_world`` (ten other
            languages) or ``nonce`` (no word that a model has met).
        lexical_overlap: share of templated examples whose question repeats the needle's words around the gap ("Ann
            Hill was born in which place?") instead of asking in its own.
        answer_words: words of an invented answer, as near as the source of names gives them; 0 takes what comes.
        distractor_similarity: share of real passages taken from the top of the BM25 ranking; the rest come from all of
            it, in random order.
        num_hard_distractors: distractors that state the needle's own relation about somebody else (symbolic: whose key
            differs from the needle's in one letter), placed among the others.
        needle_position: law of the needle's place among the documents (`rhstudy.data.positions`).
        hops: facts of an invented chain, for multi-hop tasks; 0 draws 2 to 4.
        length_spread: prompt lengths are spread evenly over ``num_tokens`` times 1 - spread to 1 + spread, with the
            same mean, instead of being all alike.
        distinct_share: share of distinct facts among the examples; each is repeated in new haystacks to fill the
            budget, which is equal for all recipes.
    """

    name: str
    concept_expression: ConceptExpression = _choice("real", ("real", *INVENTED))
    context_diversity: ContextDiversity = _choice("real", ("real", "templated", "repeated_on_topic", "repeated_filler"))
    question_words: tuple[str, ...] = ()
    real_fraction: float = _knob(0.0, 0.0, 0.5, when=_INVENTED_ONLY)
    filler: str = FILLER
    row_labels: tuple[str, ...] = ()
    rewritten_share: float = _knob(0.0, 0.0, 1.0, when=_INVENTED_ONLY)
    templated_diverse_share: float = _knob(0.0, 0.0, 1.0, when=_INVENTED_ONLY)
    templated_share: float = _knob(0.0, 0.0, 1.0, when=_INVENTED_ONLY)
    symbolic_share: float = _knob(0.0, 0.0, 1.0, when=_INVENTED_ONLY)
    passages_context_share: float = _knob(0.0, 0.0, 1.0)
    templated_context_share: float = _knob(0.0, 0.0, 1.0)
    on_topic_context_share: float = _knob(0.0, 0.0, 1.0)
    filler_context_share: float = _knob(0.0, 0.0, 1.0)
    num_relations: int = _knob(10, 1, 12, log=True, when={**_TEMPLATED_ONLY, "task": ("mdqa", "own", "cue_retrieval")})
    num_templates: int = _knob(0, 1, 42, log=True, when=_TEMPLATED_ONLY)
    entity_source: EntitySource = _choice("faker", ("faker", "faker_world", "nonce"), when=_TEMPLATED_ONLY)
    lexical_overlap: float = _knob(0.0, 0.0, 1.0, when={**_TEMPLATED_ONLY, "task": ("mdqa", "own")})
    answer_words: int = _knob(0, 1, 4, when={"concept_expression": (*TEMPLATED, "symbolic"), "task": _ANSWERED})
    distractor_similarity: float = _knob(1.0, 0.0, 1.0, when={"context_diversity": ("real",)})
    num_hard_distractors: int = _knob(0, 0, 20, when={"concept_expression": (*TEMPLATED, "symbolic")})
    needle_position: PositionLaw = _choice("uniform", POSITION_LAWS)
    hops: int = _knob(0, 2, 4, when={"concept_expression": INVENTED, "task": ("musique",)})
    length_spread: float = _knob(0.0, 0.0, 0.9)
    distinct_share: float = _knob(1.0, 0.05, 1.0, log=True)

    def __post_init__(self) -> None:
        require(bool(self.name), "knobs.name", "be a label", self.name, "Name the recipe")
        taken = self.name in RESERVED_NAMES
        require(not taken, "knobs.name", f"not be one of {', '.join(RESERVED_NAMES)}", self.name, "These are baselines")
        require(0 <= self.real_fraction <= 1, "knobs.real_fraction", "be in [0, 1]", self.real_fraction, "Give a share")
        require(bool(self.filler.split()), "knobs.filler", "hold at least one word", self.filler, "Give a sentence")
        for key in ("question_words", "row_labels"):
            allowed = self.concept_expression == "real" or not getattr(self, key)
            must = f"be empty for {self.concept_expression} needles"
            require(allowed, f"knobs.{key}", must, getattr(self, key), "It limits the rows of real needles only")
        self._check_ranges()
        self._check_shares()

    def _check_ranges(self) -> None:
        """Numbers stay in the range that a search has; 0 stays allowed where it means the level's own."""
        for item in dataclasses.fields(self):
            if "low" not in item.metadata or item.name == "real_fraction":
                continue
            value, low, high = getattr(self, item.name), item.metadata["low"], item.metadata["high"]
            must = f"be in [{low:g}, {high:g}]" + (f" or {item.default:g}" if item.default < low else "")
            valid = low <= value <= high or value == item.default
            require(valid, f"knobs.{item.name}", must, value, "Choose a value of the range")

    def _check_shares(self) -> None:
        for key, shares in (("needle", self.needle_shares), ("context", self.context_shares)):
            total = sum(shares.values())
            require(min(shares.values()) > -1e-9, f"knobs: {key} shares", "sum to at most 1", dict(shares),
                    f"Lower some: those besides the main level take {total:g}")  # fmt: skip
        others = [kind for kind, share in self.needle_shares.items() if share > 0 and kind != "real"]
        real_alone = self.concept_expression != "real" or not others
        remedy = "Make one of them concept_expression and set real_fraction"
        require(real_alone, "knobs.concept_expression", "not be real beside other needles", others, remedy)

    @property
    def needle_shares(self) -> Mapping[ConceptExpression, float]:
        """Wording -> share of the examples that are not drawn from the real recipe; they sum to 1."""
        others: dict[ConceptExpression, float] = {
            "rewritten": self.rewritten_share,
            "templated_diverse": self.templated_diverse_share,
            "templated": self.templated_share,
            "symbolic": self.symbolic_share,
        }
        return _with_main(self.concept_expression, others)

    @property
    def context_shares(self) -> Mapping[ContextDiversity, float]:
        """Kind of distractor -> share of the distractors; they sum to 1."""
        others: dict[ContextDiversity, float] = {
            "real": self.passages_context_share,
            "templated": self.templated_context_share,
            "repeated_on_topic": self.on_topic_context_share,
            "repeated_filler": self.filler_context_share,
        }
        return _with_main(self.context_diversity, others)

    @property
    def contains_real(self) -> bool:
        """Whether any training example states a real row of the task: such arms are flagged in every correlation."""
        return contains_real(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe without its label, as it stands; see `rhstudy.data.relevance.recipe_digest`."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        view = digest_view(self)
        later = {key: value for key, value in view.items() if key not in (*FIRST_FIELDS, "name")}
        changed = {key: value for key, value in later.items() if getattr(self, key) != defaults[key]}
        return digest("recipe", {**{key: view[key] for key in FIRST_FIELDS}, **changed})


def _with_main(main: Any, others: Mapping[Any, float]) -> dict[Any, float]:
    shares = {main: 1.0 - sum(others.values())}
    for kind, share in others.items():
        shares[kind] = shares.get(kind, 0.0) + share
    return shares


def contains_real(knobs: Knobs) -> bool:
    """Whether any training example of `knobs` states a real row of the task, whatever surrounds it."""
    return knobs.concept_expression == "real" or knobs.real_fraction > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One knob of a search.

    Attributes:
        name: field of `Knobs`.
        kind: ``float``, ``int`` or ``categorical``.
        default: where it stands when it is not searched.
        low: lowest value, for numbers.
        high: highest value, for numbers.
        log: whether steps are multiplicative.
        choices: values of a categorical knob.
        when: field (or ``task``) -> values under which the knob matters; empty: always.
        doc: what it means.
    """

    name: str
    kind: Literal["float", "int", "categorical"]
    default: Any
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    doc: str = ""

    def matters(self, values: Mapping[str, Any]) -> bool:
        """Whether the knob changes anything beside `values`; a field they leave out stands at its default.

        Where they name no ``task``, any that the knob matters for is meant. `rhstudy.data.relevance` is exact.
        """
        known = {item.name: item.default for item in dataclasses.fields(Knobs)} | dict(values)
        return all(known[key] in allowed for key, allowed in self.when.items() if key in known)


def search_space() -> tuple[Dimension, ...]:
    """Every knob that a search may turn, in the order of `Knobs`."""
    return tuple(_dimension(item) for item in dataclasses.fields(Knobs) if "when" in item.metadata)


def _dimension(item: dataclasses.Field[Any]) -> Dimension:
    given = item.metadata
    doc = _docs()[item.name]
    if "choices" in given:
        return Dimension(name=item.name, kind="categorical", default=item.default, choices=given["choices"],
                         when=given["when"], doc=doc)  # fmt: skip
    return Dimension(
        name=item.name,
        kind="int" if isinstance(item.default, int) else "float",
        default=item.default,
        low=given["low"],
        high=given["high"],
        log=given["log"],
        when=given["when"],
        doc=doc,
    )


def _docs() -> dict[str, str]:
    """Field -> its sentence in the docstring of `Knobs`."""
    found: dict[str, str] = {}
    names = {item.name for item in dataclasses.fields(Knobs)}
    name = ""
    for line in (Knobs.__doc__ or "").splitlines():
        key, colon, rest = line.strip().partition(":")
        if colon and key in names:
            name, found[key] = key, rest.strip()
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


REAL = Knobs(name="real")
_LIMITED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "musique": {"row_labels": ("performer", "place of birth", "spouse", "country")},
    "summhay": {"row_labels": ("subtopic 1", "subtopic 2", "subtopic 3", "subtopic 4")},
}
"""What `real_limited` keeps: relations of MuSiQue's decompositions, the first subtopics of SummHay's topics (parts are
cut by topic, so that a named topic may be in none or all of `train`); else questions with *who*."""


def _presets(task: str) -> dict[str, Knobs]:
    limited: Mapping[str, tuple[str, ...]] = _LIMITED.get(task, {"question_words": ("who",)})
    named = [
        REAL,
        Knobs(name="real_limited", **limited),  # type: ignore[arg-type]
        Knobs(name="templated_in_passages", concept_expression="templated"),
        Knobs(name="templated_in_filler", concept_expression="templated", context_diversity="repeated_filler"),
        Knobs(name="symbolic", concept_expression="symbolic", context_diversity="templated"),
    ]
    levels: tuple[tuple[str, ConceptExpression], ...] = (
        ("high", "rewritten"), ("diverse", "templated_diverse"), ("low", "templated"),
    )  # fmt: skip
    contexts: tuple[tuple[str, ContextDiversity], ...] = (
        ("high", "real"), ("low", "repeated_filler"), ("on_topic", "repeated_on_topic"),
    )  # fmt: skip
    for (level, needle), (context, haystack) in itertools.product(levels, contexts):
        named.append(Knobs(name=f"{level}_{context}", concept_expression=needle, context_diversity=haystack))
    return {knobs.name: knobs for knobs in named}


PRESETS: Mapping[str, Knobs] = MappingProxyType(_presets("mdqa"))
"""Recipes by name: real full and limited, symbolic, and {high, diverse, low} concept expression with {high, low,
on_topic} context: ``high_low`` is a rewritten needle in repeated filler. ``low_high`` and ``low_low`` are the recipes
``templated_in_passages`` and ``templated_in_filler`` under the paper's names."""
CORNERS = ("real", "real_limited", "high_high", "high_low", "low_high", "low_low", "symbolic")


def corners(task: str) -> Mapping[str, Knobs]:
    """The paper's seven recipes for a task, under its names."""
    return {name: preset(name, task) for name in CORNERS}


def preset(name: str, task: str = "mdqa") -> Knobs:
    """The recipe called `name`; only ``real_limited`` differs between tasks.

    Raises:
        InputError: no preset has that name; the nearest one is named.
    """
    presets = _presets(task)
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.3)
        remedy = f"Did you mean {near[0]}? Known: {', '.join(presets)}" if near else f"Known: {', '.join(presets)}"
        raise InputError(message("data.recipe", "be a known recipe", name, remedy))
    return presets[name]
