"""What the check of a sweep's signals on the real task is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from rhstudy.configs import require_at_least
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.stats.statistic import StatisticsSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """What `rhstudy sweep-validate` evaluates and how it judges; `rhstudy sweep` reads none of it.

    Attributes:
        top_k: so many best recipes by each signal are evaluated.
        num_random: so many recipes drawn at random from all complete trials; as many as there are trials: all.
        num_further_seeds: train and evaluate each selected recipe with so many seeds more than the sweep's.
        reference_sizes: make references of so many distinct real training rows, with the budget of examples of the
            whole one; 0 = of the untuned model.
        reliability: rank reliability at which the rows and the cost of each signal are compared.
        answering: how answers are generated, on the ``eval`` part.
        statistics: levels and draws.
        seed: of random recipes, splits and resamples.
    """

    top_k: int = 3
    num_random: int = 3
    num_further_seeds: int = 1
    reference_sizes: tuple[int, ...] = (0, 10, 25, 50, 100)
    reliability: float = 0.9
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, "validation", top_k=1, num_random=0, num_further_seeds=0, seed=0)
        sizes = self.reference_sizes
        once = len(set(sizes)) == len(sizes) and min(sizes, default=0) >= 0
        remedy = "0 is the untuned model"
        require(once, "validation.reference_sizes", "be different numbers of 0 or more", sizes, remedy)
        valid = 0 < self.reliability < 1
        require(valid, "validation.reliability", "be in (0, 1)", self.reliability, "The default is 0.9")
