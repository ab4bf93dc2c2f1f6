"""Which trials of a sweep are evaluated on the real task: the best by each signal, random ones, the paper's corners.

The choice sees what a search sees, never an eval row: F1 is no field of a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rhstudy.data.knobs import Knobs
from rhstudy.seeding import generator
from rhstudy.sweep.course import Budget
from rhstudy.types import Estimate

SIGNALS: Mapping[str, int] = {"head_recall": 1, "weighted_head_recall": 1, "real_nll": -1}
"""Signal -> sign with which higher is better: both recalls, and the equal-cost rival (same forward pass)."""

RECALLS = ("head_recall", "weighted_head_recall")
"""The signals that need a reference."""

RANDOM, CORNERS = "random", "corners"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A complete trial; equal recipes are one candidate.

    Attributes:
        number: of the trial.
        knobs: its recipe.
        budget: of its training data.
        corner: name of the paper's corner that it is; empty for others.
        signals: name -> value on the score rows, higher is better (`real_nll` with its sign changed); NaN with its
            reason.
        detect_runs: seed -> run of `detect`.
    """

    number: int
    knobs: Knobs
    budget: Budget
    corner: str = ""
    signals: Mapping[str, Estimate] = field(default_factory=dict)
    detect_runs: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Recipe and budget."""
        return f"{self.knobs.name} {self.budget.num_examples}x{self.budget.num_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one way of choosing names.

    Attributes:
        way: a signal, ``random`` or ``corners``.
        numbers: trials, the best first where the way has an order.
        num_chosen: so many of them, from the first, the way cannot tell apart: any of them might be its choice.
        note: what to know of it; why it is empty, or how many were tied.
    """

    way: str
    numbers: tuple[int, ...]
    num_chosen: int
    note: str = ""

    @property
    def chosen(self) -> tuple[int, ...]:
        """The trial that the way would use, or all that it might."""
        return self.numbers[: self.num_chosen]


def choose(candidates: Sequence[Candidate], *, top_k: int, num_random: int, seed: int) -> list[Choice]:
    """What every way of choosing names among `candidates`.

    Ties of a signal are put in random order. Random trials are drawn from all, those chosen by signals too.

    Args:
        candidates: complete trials with different recipes.
        top_k: trials by each signal.
        num_random: random trials.
        seed: root seed of the draws.
    """
    ordered = sorted(candidates, key=lambda item: item.number)
    drawn = generator(seed, "sweep-validate", "random").permutation(len(ordered))[:num_random]
    chance = tuple(ordered[index].number for index in sorted(drawn))
    corners = tuple(item.number for item in ordered if item.corner)
    return [
        *(_by_signal(ordered, name, top_k, seed) for name in SIGNALS),
        Choice(way=RANDOM, numbers=chance, num_chosen=len(chance), note="" if chance else "none was asked for"),
        Choice(way=CORNERS, numbers=corners, num_chosen=len(corners), note="" if corners else "no trial is one"),
    ]


def _by_signal(ordered: Sequence[Candidate], name: str, top_k: int, seed: int) -> Choice:
    known = [item for item in ordered if not item.signals[name].reason]
    if not known:
        reason = ordered[0].signals[name].reason if ordered else "there is no complete trial"
        return Choice(way=name, numbers=(), num_chosen=0, note=reason)
    shuffled = generator(seed, "sweep-validate", "ties", name).permutation(len(known))
    ranked = sorted((known[index] for index in shuffled), key=lambda item: -item.signals[name].value)
    best = ranked[0].signals[name].value
    tied = sum(item.signals[name].value == best for item in ranked)
    note = f"{tied} trials share the highest value" if tied > 1 else ""
    return Choice(way=name, numbers=tuple(item.number for item in ranked[:top_k]), num_chosen=tied, note=note)


def further_seeds(taken: Sequence[int], count: int) -> tuple[int, ...]:
    """The lowest `count` seeds that are not `taken`."""
    return tuple([seed for seed in range(count + len(taken)) if seed not in taken][:count])
