"""The one shape of every statistic: estimate, interval, p, n, method, seed, warnings and the reason of each NaN."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from rhstudy.errors import require

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSettings:
    """Declared before a run: levels, draws and the verdict rule (SCIENCE.md section 7).

    Attributes:
        predictor: the column whose correlation with F1 is the claim.
        rivals: columns tested the same way, one at a time.
        level: coverage of intervals.
        alpha: significance level of tests and of the power calculation.
        power: power at which the smallest detectable correlation is given.
        num_permutations: Monte-Carlo permutations where enumeration is too large.
        num_resamples: bootstrap resamples of recipes.
        num_power_draws: simulated studies per power calculation.
        max_exact_n: most recipes at which every permutation is enumerated (n!), at most 9.
        min_bootstrap_n: fewest recipes at which a bootstrap interval is given.
        min_regression_n: fewest recipes at which the regression is fitted.
        supported_above: lower bound that Spearman's rho must exceed for "supported"; an upper bound below it is
            "not supported".
        slope_above: the same for the pooled slope, in F1 per unit of the predictor.
        necessity_dose: heads knocked out in the test of necessity.
        necessity_margin: F1 that the top heads must cost beyond matched random heads.
        equivalence_margin: F1 within which a patched model counts as equal to its donor, and a control behaviour's F1
            as unharmed.
        noninferiority_margin: relative increase of a loss that a control behaviour may show.
    """

    predictor: str = "head_recall"
    rivals: tuple[str, ...] = (
        "weighted_head_recall",
        "num_retrieval_heads",
        "cosine",
        "real_nll",
        "train_loss",
        "weight_change_norm",
    )
    level: float = 0.95
    alpha: float = 0.05
    power: float = 0.8
    num_permutations: int = 10_000
    num_resamples: int = 10_000
    num_power_draws: int = 4_000
    max_exact_n: int = 9
    min_bootstrap_n: int = 10
    min_regression_n: int = 5
    supported_above: float = 0.3
    slope_above: float = 0.0
    necessity_dose: int = 10
    necessity_margin: float = 0.05
    equivalence_margin: float = 0.05
    noninferiority_margin: float = 0.10

    def __post_init__(self) -> None:
        for name in ("level", "alpha", "power"):
            value = getattr(self, name)
            require(0 < value < 1, f"statistics.{name}", "be between 0 and 1", value, "Defaults: 0.95, 0.05, 0.8")
        for name in ("num_permutations", "num_resamples", "num_power_draws"):
            value = getattr(self, name)
            require(value >= 100, f"statistics.{name}", "be at least 100", value, "10,000 gives p to two digits")
        exact = self.max_exact_n
        require(3 <= exact <= 9, "statistics.max_exact_n", "be 3 to 9", exact, "10! is too many to enumerate")
        for name in ("min_bootstrap_n", "min_regression_n"):
            value = getattr(self, name)
            require(value >= 4, f"statistics.{name}", "be at least 4", value, "Fewer recipes carry no interval")
        bound = self.supported_above
        require(-1 <= bound < 1, "statistics.supported_above", "be in [-1, 1)", bound, "The default is 0.3")
        dose = self.necessity_dose
        require(dose >= 1, "statistics.necessity_dose", "be at least 1", dose, "The default is 10 heads")
        for name in ("necessity_margin", "equivalence_margin", "noninferiority_margin"):
            value = getattr(self, name)
            require(0 < value < 1, f"statistics.{name}", "be between 0 and 1", value, "The defaults are 0.05 and 0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """An estimate with what is needed to judge it.

    Attributes:
        estimate: the value; NaN when undefined.
        low: lower end of the interval; NaN when undefined.
        high: upper end.
        n: units behind it (recipes for correlations, examples for means).
        method: how estimate, interval and p were made.
        p: two-sided p; NaN when undefined, None when the statistic tests nothing.
        seed: root seed of what was drawn, None when nothing was.
        reason: why estimate, interval or p is NaN; empty when none is.
        warnings: whatever the computation or the data gave cause to.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str
    p: float | None = None
    seed: int | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.estimate, self.low, self.high, 0.0 if self.p is None else self.p)
        explained = bool(self.reason) or not any(math.isnan(part) for part in parts)
        require(explained, "Statistic.reason", "say why a value is NaN", self.reason, "Give the reason")

    def json(self) -> dict[str, Any]:
        """JSON values: NaN is null (see ``reason``), ``p`` is absent where nothing is tested."""
        values: dict[str, Any] = {"estimate": null(self.estimate), "low": null(self.low), "high": null(self.high)}
        if self.p is not None:
            values["p"] = null(self.p)
        rest = {"n": self.n, "method": self.method, "seed": self.seed, "reason": self.reason}
        return {**values, **rest, "warnings": list(self.warnings)}


def undefined(reason: str, *, n: int, method: str, tested: bool = False, seed: int | None = None) -> Statistic:
    """A statistic with no value because of `reason`; `tested` says that a p was wanted too."""
    nan = math.nan
    return Statistic(
        estimate=nan, low=nan, high=nan, n=n, method=method, p=nan if tested else None, seed=seed, reason=reason
    )


def null(value: float) -> float | None:
    """`value` as a JSON number, None for NaN."""
    return None if math.isnan(value) else float(value)


def recorded(call: Callable[[], Value]) -> tuple[Value, tuple[str, ...]]:
    """The result of `call` and the text of every Python warning it gave, each once, in order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call()
    return value, tuple(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in caught))
