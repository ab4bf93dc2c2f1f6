"""The conditions of a knockout experiment: nothing, the top k heads, and matched random heads, for every dose k.

A dose that cannot be given, or has no controls, stays in the plan with its reason: it is reported as undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rhstudy.configs import require_at_least
from rhstudy.errors import require
from rhstudy.heads.sets import RETRIEVAL_THRESHOLD, retrieval_heads, top_k_set
from rhstudy.interventions.controls import Controls, matched_draws
from rhstudy.interventions.knockout import KnockoutMode, KnockoutScope
from rhstudy.seeding import generator
from rhstudy.types import Head, HeadScores, HeadSet

Kind = Literal["baseline", "top", "random"]
BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutSettings:
    """Which heads are knocked out, how, and against which controls.

    Attributes:
        doses: numbers of heads; the k heads with the highest mean score are knocked out.
        include_all_retrieval_heads: add the dose of all retrieval heads, |H|.
        num_draws: sets of layer-matched random heads per dose; 20 allow no p below 0.048, 199 none below 0.005.
        threshold: mean score from which a head is a retrieval head; controls hold none of those.
        top_k: 0, or take this many heads of highest mean score instead; needed for attention mass.
        mode: what a knocked-out head puts out instead; see `rhstudy.interventions.knockout`.
        scope: where it is knocked out; ``decode``: from the last prompt token on.
        level: coverage of intervals.
    """

    doses: tuple[int, ...] = (1, 2, 5, 10)
    include_all_retrieval_heads: bool = True
    num_draws: int = 20
    threshold: float = RETRIEVAL_THRESHOLD
    top_k: int = 0
    mode: KnockoutMode = "zero_output"
    scope: KnockoutScope = "decode"
    level: float = 0.95

    def __post_init__(self) -> None:
        remedy = "Dose 0, the baseline, is always measured; list doses such as 1 2 5 10"
        require(all(dose >= 1 for dose in self.doses), "knockout.doses", "all be at least 1", self.doses, remedy)
        some = bool(self.doses) or self.include_all_retrieval_heads
        require(some, "knockout.doses", "name a dose", self.doses, remedy)
        require_at_least(self, "knockout", num_draws=1)
        require(0 < self.threshold <= 1, "knockout.threshold", "lie in (0, 1]", self.threshold, "The field uses 0.1")
        require(self.top_k >= 0, "knockout.top_k", "be at least 0", self.top_k, "0 = by threshold")
        require(0 < self.level < 1, "knockout.level", "be between 0 and 1", self.level, "The default is 0.95")


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One set of heads to knock out.

    Attributes:
        condition_id: ``baseline``, ``top10``, ``random10_0``.
        kind: which of the three.
        dose: number of heads; 0 for the baseline.
        draw: which draw of random heads; None for the others.
        heads: what is knocked out, sorted.
        mode: what they put out instead.
        scope: where they are out.
    """

    condition_id: str
    kind: Kind
    dose: int
    draw: int | None = None
    heads: tuple[Head, ...] = ()
    mode: KnockoutMode = "zero_output"
    scope: KnockoutScope = "decode"

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        heads = [list(head) for head in self.heads]
        return {"id": self.condition_id, "kind": self.kind, "dose": self.dose, "draw": self.draw, "heads": heads}


@dataclass(frozen=True, slots=True, kw_only=True)
class DosePlan:
    """One dose.

    Attributes:
        dose: number of heads.
        is_all_retrieval_heads: the dose is |H|.
        reason: why the dose cannot be given, else empty.
        controls: its random heads.
        notes: what a reader should know of the heads knocked out.
    """

    dose: int
    is_all_retrieval_heads: bool
    reason: str = ""
    controls: Controls = field(default_factory=Controls)
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        controls = self.controls
        borrowed = [
            {"layer": item.layer, "from_layer": item.from_layer, "count": item.count} for item in controls.borrowed
        ]
        return {
            "dose": self.dose,
            "is_all_retrieval_heads": self.is_all_retrieval_heads,
            "reason": self.reason,
            "num_draws": len(controls.draws),
            "num_distinct_draws": controls.num_distinct,
            "control_reason": controls.reason,
            "borrowed": borrowed,
            "notes": [*self.notes, *filter(None, [controls.note])],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutPlan:
    """Every condition, in the order in which they are measured, and every dose that was asked for.

    Attributes:
        retrieval_heads: H of the scores.
        doses: rising.
        conditions: the baseline, then per dose the top heads and the draws.
    """

    retrieval_heads: HeadSet
    doses: tuple[DosePlan, ...]
    conditions: tuple[Condition, ...]


def plan_knockout(scores: HeadScores, settings: KnockoutSettings, seed: int) -> KnockoutPlan:
    """Choose the heads of every condition.

    Args:
        scores: of the model whose retrieval heads are meant.
        settings: doses and draws.
        seed: root seed of the draws; each dose has a stream of its own, so adding a dose changes no other's draws.

    Raises:
        InputError: no example was scored.
    """
    retrieval = retrieval_heads(scores, settings.threshold, settings.top_k)
    wanted = set(settings.doses) | ({len(retrieval)} if settings.include_all_retrieval_heads else set())
    doses, conditions = [], [Condition(condition_id=BASELINE, kind="baseline", dose=0)]
    for dose in sorted(wanted):
        plan, heads = _plan_dose(scores, retrieval, dose, settings.num_draws, seed)
        doses.append(plan)
        if not plan.reason:
            conditions.append(Condition(condition_id=f"top{dose}", kind="top", dose=dose, heads=heads))
        conditions += _random_conditions(dose, plan.controls.draws)
    done = tuple(replace(condition, mode=settings.mode, scope=settings.scope) for condition in conditions)
    return KnockoutPlan(retrieval_heads=retrieval, doses=tuple(doses), conditions=done)


def _random_conditions(dose: int, draws: Sequence[tuple[Head, ...]]) -> list[Condition]:
    return [
        Condition(condition_id=f"random{dose}_{number}", kind="random", dose=dose, draw=number, heads=heads)
        for number, heads in enumerate(draws)
    ]


def _plan_dose(
    scores: HeadScores, retrieval: HeadSet, dose: int, num_draws: int, seed: int
) -> tuple[DosePlan, tuple[Head, ...]]:
    is_all = dose == len(retrieval)
    if not 1 <= dose <= retrieval.num_total:
        none = f"no head with {retrieval.rule}"
        reason = f"the model has {retrieval.num_total} heads" if dose else none
        missing = Controls(reason="the dose cannot be given")
        return DosePlan(dose=dose, is_all_retrieval_heads=is_all, reason=reason, controls=missing), ()
    heads = tuple(top_k_set(scores, dose).ordered())
    controls = matched_draws(
        heads,
        retrieval.heads,
        retrieval.heads_per_layer,
        num_draws=num_draws,
        draws=generator(seed, "knockout controls", dose),
    )
    mean = scores.mean()
    unscored = sum(mean[head] == 0 for head in heads)
    few = sum(head not in retrieval.heads for head in heads)
    notes = [f"below the threshold ({retrieval.rule}): {few} of {dose} heads"] if few else []
    notes += [f"mean score 0, rank arbitrary: {unscored} of {dose} heads"] if unscored else []
    return DosePlan(dose=dose, is_all_retrieval_heads=is_all, controls=controls, notes=tuple(notes)), heads
