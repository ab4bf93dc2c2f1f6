"""The conditions of a knockout experiment: nothing, the top k heads, matched controls, for every dose, mode and scope.

A dose that cannot be given, or has no controls, stays in the plan with its reason: it is reported as undefined. Every
mode and scope knocks out the same sets, so that they can be compared draw by draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rhstudy.configs import require_at_least
from rhstudy.errors import require
from rhstudy.heads.sets import RETRIEVAL_THRESHOLD, SCORE_DECIMALS, retrieval_heads, top_k_set
from rhstudy.interventions.controls import Borrowed, Controls, lowest_heads, matched_draws
from rhstudy.interventions.knockout import KnockoutMode, KnockoutScope, require_mode
from rhstudy.seeding import generator
from rhstudy.types import Head, HeadScores, HeadSet

Kind = Literal["baseline", "top", "random", "lowest", "all_heads", "single"]
Behaviour = Literal["short_qa", "text"]
BASELINE = "baseline"
NEEDLE_MODE: KnockoutMode = "block_needle"
MEAN_MODE: KnockoutMode = "mean_output"
_NO_WAY: tuple[KnockoutMode, KnockoutScope] = ("block_needle", "prefill_and_decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutSettings:
    """Which heads are knocked out, how, and against which controls.

    Attributes:
        doses: numbers of heads; the k heads with the highest mean score are knocked out.
        include_all_retrieval_heads: add the dose of all retrieval heads, |H|.
        num_draws: sets of layer-matched random heads per dose; 20 allow no p below 0.048.
        primary_dose: the dose of the claim, where it is among the doses.
        num_primary_draws: sets of random heads at that dose; 199 let p fall to 0.005.
        lowest: also knock out as many heads of the lowest mean score.
        single_heads: also knock out, one at a time, this many heads of the highest mean score, in the first mode and
            scope; all heads where the model has fewer.
        modes: what a knocked-out head puts out instead (`rhstudy.interventions.knockout`); ``block_needle`` is also
            given all heads at once, and is left out of the scope prefill_and_decode.
        scopes: from which row on: ``decode`` from the last prompt token on, ``prefill_and_decode`` everywhere,
            ``published_decode`` behind the last prompt token.
        behaviours: what else is measured at the primary dose, to tell a model that cannot retrieve from one that is
            broken: ``short_qa`` (the questions with their gold passages alone), ``text`` (loss on plain text).
        num_behaviour_draws: the first this many random sets are measured so too.
        num_text_tokens: most tokens of the plain text of an example.
        threshold: mean score from which a head is a retrieval head; controls hold none of those.
        top_k: 0, or take this many heads of highest mean score instead; needed for attention mass.
        level: coverage of intervals.
    """

    doses: tuple[int, ...] = (1, 2, 5, 10, 20)
    include_all_retrieval_heads: bool = True
    num_draws: int = 20
    primary_dose: int = 10
    num_primary_draws: int = 199
    lowest: bool = True
    single_heads: int = 0
    modes: tuple[KnockoutMode, ...] = ("zero_output",)
    scopes: tuple[KnockoutScope, ...] = ("decode",)
    behaviours: tuple[Behaviour, ...] = ("short_qa", "text")
    num_behaviour_draws: int = 20
    num_text_tokens: int = 256
    threshold: float = RETRIEVAL_THRESHOLD
    top_k: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        remedy = "Dose 0, the baseline, is always measured; list doses such as 1 2 5 10"
        require(all(dose >= 1 for dose in self.doses), "knockout.doses", "all be at least 1", self.doses, remedy)
        some = bool(self.doses) or self.include_all_retrieval_heads
        require(some, "knockout.doses", "name a dose", self.doses, remedy)
        require_at_least(self, "knockout", num_draws=1, primary_dose=1, num_primary_draws=1)
        require_at_least(self, "knockout", single_heads=0, num_behaviour_draws=0, num_text_tokens=2)
        for name, example in (("modes", "zero_output"), ("scopes", "decode")):
            given = getattr(self, name)
            once = 0 < len(given) == len(set(given))
            require(once, f"knockout.{name}", "name one or more, each once", given, f"List for instance {example}")
        for variant in self.variants or (Variant(mode=NEEDLE_MODE, scope="prefill_and_decode"),):
            require_mode(variant.mode, variant.scope)
        require(0 < self.threshold <= 1, "knockout.threshold", "lie in (0, 1]", self.threshold, "The field uses 0.1")
        require(self.top_k >= 0, "knockout.top_k", "be at least 0", self.top_k, "0 = by threshold")
        require(0 < self.level < 1, "knockout.level", "be between 0 and 1", self.level, "The default is 0.95")

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every mode in every scope, in the order given; the needle is hidden from the answer's rows alone."""
        ways = itertools.product(self.modes, self.scopes)
        return tuple(Variant(mode=mode, scope=scope) for mode, scope in ways if (mode, scope) != _NO_WAY)

    def draws_at(self, dose: int) -> int:
        """How many sets of random heads are wanted."""
        return self.num_primary_draws if dose == self.primary_dose else self.num_draws

    def shows_behaviour(self, condition: Condition) -> bool:
        """Whether the control behaviours are measured under `condition`."""
        if condition.kind == "baseline":
            return bool(self.behaviours)
        few = condition.kind == "random" and (condition.draw or 0) < self.num_behaviour_draws
        chosen = condition.kind == "top" or few
        return bool(self.behaviours) and condition.dose == self.primary_dose and chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to knock heads out.

    Attributes:
        mode: what a knocked-out head puts out instead.
        scope: from which row on.
    """

    mode: KnockoutMode
    scope: KnockoutScope

    @property
    def prefix(self) -> str:
        """Before names of conditions and numbers: nothing for zero_output in decode scope, else ``mode/scope/``."""
        return "" if (self.mode, self.scope) == ("zero_output", "decode") else f"{self.mode}/{self.scope}/"

    @property
    def label(self) -> str:
        """For people."""
        return f"mode {self.mode}, scope {self.scope}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One set of heads to knock out, in one way.

    Attributes:
        condition_id: ``baseline``, ``top10``, ``random10_0``, ``lowest10``, ``all_heads``, ``single_3_1`` (layer 3,
            head 1); behind ``mode/scope/`` unless that is zero_output in decode scope.
        kind: which of these.
        mode: what a knocked-out head puts out instead; means nothing for the baseline.
        scope: from which row on; likewise.
        dose: number of heads; 0 for the baseline.
        draw: which draw of random heads; None for the others.
        heads: what is knocked out, sorted.
    """

    condition_id: str
    kind: Kind
    mode: KnockoutMode = "zero_output"
    scope: KnockoutScope = "decode"
    dose: int
    draw: int | None = None
    heads: tuple[Head, ...] = ()

    def names(self) -> dict[str, Any]:
        """What a row about this condition says of it, JSON-ready; the baseline has no mode and no scope."""
        way = (None, None) if self.kind == "baseline" else (self.mode, self.scope)
        return {
            "condition": self.condition_id,
            "kind": self.kind,
            "mode": way[0],
            "scope": way[1],
            "dose": self.dose,
            "draw": self.draw,
        }

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        named = self.names()
        return {"id": named.pop("condition"), **named, "heads": [list(head) for head in self.heads]}


@dataclass(frozen=True, slots=True, kw_only=True)
class DosePlan:
    """One dose.

    Attributes:
        dose: number of heads.
        is_all_retrieval_heads: the dose is |H|.
        reason: why the dose cannot be given, else empty.
        controls: its random heads.
        lowest: as many heads of the lowest score, as a single draw.
        notes: what a reader should know of the heads knocked out.
    """

    dose: int
    is_all_retrieval_heads: bool
    reason: str = ""
    controls: Controls = field(default_factory=Controls)
    lowest: Controls = field(default_factory=Controls)
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        controls, lowest = self.controls, self.lowest
        return {
            "dose": self.dose,
            "is_all_retrieval_heads": self.is_all_retrieval_heads,
            "reason": self.reason,
            "num_draws": len(controls.draws),
            "num_distinct_draws": controls.num_distinct,
            "control_reason": controls.reason,
            "borrowed": _moves(controls.borrowed),
            "lowest_reason": lowest.reason,
            "lowest_borrowed": _moves(lowest.borrowed),
            "lowest_note": lowest.note,
            "notes": [*self.notes, *filter(None, [controls.note])],
        }


def _moves(borrowed: Sequence[Borrowed]) -> list[dict[str, int]]:
    return [{"layer": item.layer, "from_layer": item.from_layer, "count": item.count} for item in borrowed]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutPlan:
    """Every condition, in the order in which they are measured, and every dose that was asked for.

    Attributes:
        retrieval_heads: H of the scores.
        doses: rising.
        variants: modes and scopes; each has every dose.
        conditions: the baseline; then per mode and scope, per dose the top heads, the draws and the lowest heads, and
            behind these all heads and single ones.
    """

    retrieval_heads: HeadSet
    doses: tuple[DosePlan, ...]
    variants: tuple[Variant, ...]
    conditions: tuple[Condition, ...]


def plan_knockout(scores: HeadScores, settings: KnockoutSettings, seed: int) -> KnockoutPlan:
    """Choose the heads of every condition.

    Args:
        scores: of the model whose retrieval heads are meant.
        settings: doses, draws, modes and scopes.
        seed: root seed of the draws; each dose has a stream of its own, so adding a dose changes no other's draws.

    Raises:
        InputError: no example was scored.
    """
    retrieval = retrieval_heads(scores, settings.threshold, settings.top_k)
    wanted = set(settings.doses) | ({len(retrieval)} if settings.include_all_retrieval_heads else set())
    doses, sets = [], list[Condition]()
    for dose in sorted(wanted):
        plan, heads = _plan_dose(scores, retrieval, dose, settings, seed)
        doses.append(plan)
        sets += _conditions_of(plan, heads)
    conditions = [Condition(condition_id=BASELINE, kind="baseline", dose=0)]
    for number, variant in enumerate(settings.variants):
        more = _single_heads(scores, settings.single_heads) if number == 0 else ()
        every = _all_heads(retrieval) if variant.mode == NEEDLE_MODE else ()
        conditions += [_in_variant(item, variant) for item in (*sets, *every, *more)]
    return KnockoutPlan(
        retrieval_heads=retrieval, doses=tuple(doses), variants=settings.variants, conditions=tuple(conditions)
    )


def _in_variant(condition: Condition, variant: Variant) -> Condition:
    name = f"{variant.prefix}{condition.condition_id}"
    return replace(condition, condition_id=name, mode=variant.mode, scope=variant.scope)


def _conditions_of(plan: DosePlan, heads: tuple[Head, ...]) -> Iterator[Condition]:
    dose = plan.dose
    if not plan.reason:
        yield Condition(condition_id=f"top{dose}", kind="top", dose=dose, heads=heads)
    for number, drawn in enumerate(plan.controls.draws):
        yield Condition(condition_id=f"random{dose}_{number}", kind="random", dose=dose, draw=number, heads=drawn)
    for lowest in plan.lowest.draws:
        yield Condition(condition_id=f"lowest{dose}", kind="lowest", dose=dose, heads=lowest)


def _all_heads(retrieval: HeadSet) -> Iterator[Condition]:
    heads = tuple((layer, head) for layer, size in enumerate(retrieval.heads_per_layer) for head in range(size))
    yield Condition(condition_id="all_heads", kind="all_heads", dose=len(heads), heads=heads)


def _single_heads(scores: HeadScores, count: int) -> Iterator[Condition]:
    total = int(np.isfinite(scores.mean()).sum())
    for layer, head in top_k_set(scores, min(count, total)).ordered() if count else ():
        yield Condition(condition_id=f"single_{layer}_{head}", kind="single", dose=1, heads=((layer, head),))


def _plan_dose(
    scores: HeadScores, retrieval: HeadSet, dose: int, settings: KnockoutSettings, seed: int
) -> tuple[DosePlan, tuple[Head, ...]]:
    is_all = dose == len(retrieval)
    if not 1 <= dose <= retrieval.num_total:
        none = f"no head with {retrieval.rule}"
        reason = f"the model has {retrieval.num_total} heads" if dose else none
        missing = Controls(reason="the dose cannot be given")
        return DosePlan(dose=dose, is_all_retrieval_heads=is_all, reason=reason, controls=missing, lowest=missing), ()
    heads = tuple(top_k_set(scores, dose).ordered())
    controls = matched_draws(
        heads,
        retrieval.heads,
        retrieval.heads_per_layer,
        num_draws=settings.draws_at(dose),
        draws=generator(seed, "knockout controls", dose),
    )
    mean = scores.mean()
    unscored = sum(mean[head] == 0 for head in heads)
    few = sum(head not in retrieval.heads for head in heads)
    notes = [f"below the threshold ({retrieval.rule}): {few} of {dose} heads"] if few else []
    notes += [f"mean score 0, rank arbitrary: {unscored} of {dose} heads"] if unscored else []
    lowest = (
        lowest_heads(heads, retrieval.heads, np.round(mean, SCORE_DECIMALS))
        if settings.lowest
        else Controls(reason="not asked for")
    )
    plan = DosePlan(dose=dose, is_all_retrieval_heads=is_all, controls=controls, lowest=lowest, notes=tuple(notes))
    return plan, heads
