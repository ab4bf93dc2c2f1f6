"""The course of one trial: what it may train on, what it tells on its way, and that it is given up where need be."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rhstudy.data.config import DataConfig
from rhstudy.errors import PrunedTrialError, message
from rhstudy.sweep.objectives import Constraint
from rhstudy.sweep.pruning import WHOLE

if TYPE_CHECKING:
    import optuna

INFEASIBLE = "infeasible"
"""User attribute of a trial: which constraints it breaks, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much a recipe trains on.

    Attributes:
        num_examples: training examples.
        num_tokens: tokens of each prompt.
    """

    num_examples: int
    num_tokens: int

    def of(self, data: DataConfig) -> DataConfig:
        """`data` with this budget."""
        num_distinct = min(data.num_distinct, self.num_examples)
        return dataclasses.replace(
            data, num_examples=self.num_examples, num_tokens=self.num_tokens, num_distinct=num_distinct
        )


@runtime_checkable
class Course(Protocol):
    """A trial as what measures it sees it.

    Attributes:
        budget: of its training data.
        costs: part -> seconds spent so far, written as they are spent: a trial that is given up has them too.
    """

    budget: Budget
    costs: dict[str, float]

    def known(self, quantities: Mapping[str, float]) -> None:
        """Say what is known before the trial is measured; raises `PrunedTrialError` where a constraint forbids it."""

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Say what was found after `step` per cent of the training, in order; raises `PrunedTrialError` to give up."""


@dataclass(slots=True, kw_only=True)
class Unlimited:
    """The course of what is no trial: nothing is told, nothing forbidden."""

    budget: Budget
    costs: dict[str, float] = field(default_factory=dict)

    def known(self, quantities: Mapping[str, float]) -> None:
        """See `Course`."""

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """See `Course`."""


@contextlib.contextmanager
def spent(costs: dict[str, float], part: str) -> Iterator[None]:
    """Add the block's seconds to `part` of `costs`, however it ends."""
    began = time.monotonic()
    try:
        yield
    finally:
        costs[part] = costs.get(part, 0.0) + time.monotonic() - began


@dataclass(slots=True, kw_only=True)
class TrialCourse:
    """The course of a trial of Optuna.

    Attributes:
        trial: Optuna's.
        objective: which value decides on pruning; empty: none, values are only logged.
        log: logs metrics at a step of the trial's run.
        budget: see `Course`.
        constraints: the sweep's.
        skips_infeasible: give up what is known to be infeasible before it is measured; not where the sampler learns
            from measured trials alone.
        costs: see `Course`.
    """

    trial: optuna.Trial
    objective: str
    log: Callable[[Mapping[str, float], int], None]
    budget: Budget
    constraints: Sequence[Constraint] = ()
    skips_infeasible: bool = True
    costs: dict[str, float] = field(default_factory=dict)

    def known(self, quantities: Mapping[str, float]) -> None:
        """See `Course`."""
        broken = [item for item in self.constraints if item.quantity in quantities]
        text = _broken(broken, quantities)
        if text and self.skips_infeasible:
            self.judge(quantities)
            raise PrunedTrialError(message("recipe", "keep to the constraints", f"<{text}>", "It is not trained"))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """See `Course`."""
        self.log({f"checkpoint_{name}": value for name, value in values.items()}, step)
        value = values.get(self.objective, math.nan)
        if math.isnan(value):
            return
        from rhstudy.sweep.claims import while_mine

        with while_mine(self.trial):
            self.trial.report(value, step)
            hopeless = step < WHOLE and self.trial.should_prune()
        if hopeless:
            remedy = "The sweep goes on with the next trial"
            raise PrunedTrialError(message(self.objective, f"promise more at step {step}", value, remedy))

    def judge(self, quantities: Mapping[str, float]) -> None:
        """Write into the trial whether it keeps to the constraints on `quantities`; NaN breaks them."""
        known = [item for item in self.constraints if item.quantity in quantities]
        for item in known:
            excess = item.excess(quantities[item.quantity])
            self.trial.set_constraint(item.quantity, excess)
        if text := _broken(known, quantities):
            self.trial.set_user_attr(INFEASIBLE, text)


def _broken(constraints: Sequence[Constraint], quantities: Mapping[str, float]) -> str:
    """Which of `constraints` are broken, and by what; empty where none is."""
    broken = [item for item in constraints if item.excess(quantities[item.quantity]) > 0]
    return ", ".join(f"{item.quantity} {quantities[item.quantity]:.6g}" for item in broken)
