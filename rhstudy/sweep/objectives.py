"""What a sweep wants more or less of, and within which limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rhstudy.errors import require

Objective = Literal["head_recall", "weighted_head_recall", "real_nll", "gpu_seconds", "train_tokens"]
Direction = Literal["maximize", "minimize"]

DIRECTIONS: Mapping[Objective, Direction] = {
    "head_recall": "maximize",
    "weighted_head_recall": "maximize",
    "real_nll": "minimize",
    "gpu_seconds": "minimize",
    "train_tokens": "minimize",
}
SCORED: tuple[Objective, ...] = ("head_recall", "weighted_head_recall", "real_nll")
"""What scoring the heads gives, in mid-training too; the others are costs."""
MOST_OF: Mapping[Objective, float] = {"head_recall": 1.0, "weighted_head_recall": 1.0}
"""Greatest value that a quantity can have, where it has one; none can be below 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What every recipe must keep to; a trial that does not is infeasible, whatever its value.

    Attributes:
        quantity: one of the objectives, or another that is none of this sweep's; a mean over the seeds.
        least: lowest value allowed.
        most: highest value allowed.
    """

    quantity: Objective
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        given = self.least is not None or self.most is not None
        require(given, "constraints.least", "be given where most is not", self.least, "Give one of the two, or both")
        ordered = self.least is None or self.most is None or self.least <= self.most
        require(ordered, "constraints.least", f"be at most most ({self.most})", self.least, "No value would do")
        highest = MOST_OF.get(self.quantity, math.inf)
        low, high = self.least, self.most
        reached = (low is None or low <= highest) and (high is None or high >= 0)
        must = f"leave values of {self.quantity} that it can have, 0 to {highest:g}"
        require(reached, "constraints", must, f"<least {low}, most {high}>", "Every trial would be infeasible")

    def excess(self, value: float) -> float:
        """By how much `value` breaks the constraint; 0 or less where it keeps to it, infinity for NaN."""
        if math.isnan(value):
            return math.inf
        below = -math.inf if self.least is None else self.least - value
        above = -math.inf if self.most is None else value - self.most
        return max(below, above)


def require_objectives(objectives: tuple[Objective, ...], constraints: tuple[Constraint, ...]) -> None:
    """Check that each is named once.

    Raises:
        InputError: one is named twice.
    """
    once = len(set(objectives)) == len(objectives)
    require(once, "objectives", "be different", objectives, "Name each once")
    quantities = [item.quantity for item in constraints]
    remedy = "Give least and most of a quantity in one [[constraints]]"
    require(len(set(quantities)) == len(quantities), "constraints", "each be of another quantity", quantities, remedy)
