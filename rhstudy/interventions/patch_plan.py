"""The conditions of a patching experiment: which heads of a donor go into a recipient, and at which rows.

With H_real the retrieval heads of the real-data model and H_synth those of the other one:

    intersection     H_synth and H_real
    complement       H_real without H_synth
    retrieval        H_real
    all_heads        every head of the model

and beside each of the first three random sets of the same size in the same layers, disjoint from H_real and H_synth.
The real-data model is the donor, or in the reverse direction the recipient. A set that cannot be given (it is empty),
or has no random sets, stays in the plan with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rhstudy.configs import require_at_least
from rhstudy.errors import require
from rhstudy.heads.sets import RETRIEVAL_THRESHOLD
from rhstudy.interventions.controls import Controls, matched_draws
from rhstudy.interventions.patching import Positions
from rhstudy.seeding import generator
from rhstudy.types import Head, HeadSet

SetName = Literal["intersection", "complement", "retrieval", "all_heads"]
Role = Literal["donor", "recipient"]
PatchKind = Literal["recipient", "donor", "patched", "random"]
RECIPIENT, DONOR = "recipient", "donor"
_REASONS = {
    "intersection": "the two models share no retrieval head",
    "complement": "the other model has every retrieval head of the real-data model",
    "retrieval": "the real-data model has no retrieval head",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings:
    """Which heads are patched, where, and against which controls.

    Attributes:
        sets: ``intersection``, ``complement``, ``retrieval`` (all of the real-data model) and ``all_heads``.
        positions: ``all_positions`` and ``answer_rows`` (from the last prompt token on), each a claim of its own.
        real_model: which of the two is the real-data model: ``donor``, or in the reverse direction ``recipient``.
        num_draws: sets of layer-matched random heads beside each set but ``all_heads``; 0 = none.
        threshold: mean score from which a head is a retrieval head.
        top_k: 0, or take this many heads of highest mean score instead; needed for attention mass.
        level: coverage of intervals.
        num_resamples: bootstrap size of the interval of a share of the gap.
    """

    sets: tuple[SetName, ...] = ("intersection", "complement", "retrieval", "all_heads")
    positions: tuple[Positions, ...] = ("all_positions", "answer_rows")
    real_model: Role = "donor"
    num_draws: int = 5
    threshold: float = RETRIEVAL_THRESHOLD
    top_k: int = 0
    level: float = 0.95
    num_resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("sets", "positions"):
            given = getattr(self, name)
            once = bool(given) and len(set(given)) == len(given)
            require(once, f"patching.{name}", "name each once, at least one", given, "Leave it out for all of them")
        require_at_least(self, "patching", num_draws=0, top_k=0, num_resamples=100)
        require(0 < self.threshold <= 1, "patching.threshold", "lie in (0, 1]", self.threshold, "The field uses 0.1")
        require(0 < self.level < 1, "patching.level", "be between 0 and 1", self.level, "The default is 0.95")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchCondition:
    """One set of heads put into the recipient, or one of the models as it is.

    Attributes:
        condition_id: ``recipient``, ``donor``, ``answer_rows/intersection``, ``answer_rows/random_intersection_0``.
        kind: which of these.
        positions: rows that are patched; None for a model as it is.
        of_set: the set, or the one that random heads are matched to; empty for a model as it is.
        draw: which draw of random heads; None for the others.
        heads: what is put in, sorted.
    """

    condition_id: str
    kind: PatchKind
    positions: Positions | None = None
    of_set: str = ""
    draw: int | None = None
    heads: tuple[Head, ...] = ()

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        heads = [list(head) for head in self.heads]
        return {**self.labels(), "heads": heads}

    def labels(self) -> dict[str, Any]:
        """What tells its rows from others'."""
        return {
            "condition": self.condition_id,
            "kind": self.kind,
            "positions": self.positions,
            "of_set": self.of_set,
            "draw": self.draw,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSet:
    """One set of heads.

    Attributes:
        name: which.
        heads: sorted.
        reason: why it cannot be given, else empty.
        controls: its random sets.
    """

    name: SetName
    heads: tuple[Head, ...]
    reason: str
    controls: Controls = field(default_factory=Controls)

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        controls = self.controls
        borrowed = [
            {"layer": item.layer, "from_layer": item.from_layer, "count": item.count} for item in controls.borrowed
        ]
        return {
            "of_set": self.name,
            "num_heads": len(self.heads),
            "heads": [list(head) for head in self.heads],
            "reason": self.reason,
            "num_draws": len(controls.draws),
            "num_distinct_draws": controls.num_distinct,
            "control_reason": controls.reason,
            "borrowed": borrowed,
            "notes": list(filter(None, [controls.note])),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPlan:
    """Every condition in the order in which it is measured, and every set that was asked for."""

    sets: tuple[PlannedSet, ...]
    conditions: tuple[PatchCondition, ...]

    @property
    def heads(self) -> list[Head]:
        """Every head that some condition patches."""
        return sorted({head for condition in self.conditions for head in condition.heads})


def plan_patches(real: HeadSet, synth: HeadSet, settings: PatchSettings, seed: int) -> PatchPlan:
    """Choose the heads of every condition.

    Args:
        real: retrieval heads of the real-data model.
        synth: of the other model.
        settings: sets, rows and draws.
        seed: root seed of the draws; equal sets have equal draws, whatever they are called.

    Raises:
        InputError: head sets of models of different shapes.
    """
    shapes = real.heads_per_layer, synth.heads_per_layer
    remedy = "Patch between models of one base"
    require(shapes[0] == shapes[1], "head sets", f"be of models with heads {shapes[0]} a layer", shapes[1], remedy)
    sets = tuple(_planned(name, real, synth, settings.num_draws, seed) for name in settings.sets)
    conditions = [
        PatchCondition(condition_id=RECIPIENT, kind="recipient"),
        PatchCondition(condition_id=DONOR, kind="donor"),
    ]
    conditions += [
        condition
        for positions in settings.positions
        for planned in sets
        if not planned.reason
        for condition in _conditions(planned, positions)
    ]
    return PatchPlan(sets=sets, conditions=tuple(conditions))


def _planned(name: SetName, real: HeadSet, synth: HeadSet, num_draws: int, seed: int) -> PlannedSet:
    every = [(layer, head) for layer, count in enumerate(real.heads_per_layer) for head in range(count)]
    chosen: dict[str, Sequence[Head]] = {
        "intersection": sorted(real.heads & synth.heads),
        "complement": sorted(real.heads - synth.heads),
        "retrieval": real.ordered(),
        "all_heads": every,
    }
    heads = tuple(chosen[name])
    reason = "" if heads else _REASONS[name]
    if reason or name == "all_heads" or not num_draws:
        why = reason or ("every head is in the set" if name == "all_heads" else "none was asked for")
        return PlannedSet(name=name, heads=heads, reason=reason, controls=Controls(reason=why))
    draws = generator(seed, "patching controls", *(f"{layer}-{head}" for layer, head in heads))
    taken = real.heads | synth.heads
    controls = matched_draws(heads, taken, real.heads_per_layer, num_draws=num_draws, draws=draws)
    return PlannedSet(name=name, heads=heads, reason="", controls=controls)


def _conditions(planned: PlannedSet, positions: Positions) -> list[PatchCondition]:
    name = planned.name
    return [
        PatchCondition(
            condition_id=f"{positions}/{name}", kind="patched", positions=positions, of_set=name, heads=planned.heads
        ),
        *(
            PatchCondition(
                condition_id=f"{positions}/random_{name}_{number}",
                kind="random",
                positions=positions,
                of_set=name,
                draw=number,
                heads=heads,
            )
            for number, heads in enumerate(planned.controls.draws)
        ),
    ]
