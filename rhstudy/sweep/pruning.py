"""When a trial is given up: on what it shows after parts of its training, or after some of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rhstudy.errors import require
from rhstudy.sweep.objectives import SCORED, Objective

if TYPE_CHECKING:
    import optuna

PrunerName = Literal["none", "hyperband", "successive_halving", "median", "wilcoxon"]
WHOLE = 100
"""The step of a trial that is done: steps are per cent of its training, that of all seeds together."""
KEPT_SHARE = 2
"""Successive halving goes on with one of so many."""
LEAST_SEEDS = 5
"""Wilcoxon's test on four pairs gives p = 1/16 at the least, on three never less than the 0.1 that ends a trial."""


def steps_of(report_at: Sequence[float], num_seeds: int) -> list[list[int]]:
    """Steps at which each seed reports: at its checkpoints, then at its end."""
    return [[round(WHOLE * (seed + share) / num_seeds) for share in (*report_at, 1.0)] for seed in range(num_seeds)]


def require_pruner(
    pruner: PrunerName, report_at: Sequence[float], seeds: Sequence[int], goals: Sequence[Objective], num_processes: int
) -> None:
    """Check that a pruner has something to go by.

    Raises:
        InputError: shares out of order or range, a pruner without reports, or with objectives that it cannot judge.
    """
    inside = all(0 < share < 1 for share in report_at)
    require(inside, "report_at", "be shares of the training, above 0 and below 1", report_at, "Use 0.25, 0.5, 0.75")
    steps = [step for seed in steps_of(report_at, len(seeds)) for step in seed]
    rising = all(one < other for one, other in zip([0, *steps], steps, strict=False))
    remedy = "Sort them, and leave at least 1 % of all seeds' training between two"
    require(rising, "report_at", "rise by steps that count", report_at, remedy)
    here = not report_at or num_processes == 1
    must = "be empty where several processes train"
    require(here, "report_at", must, report_at, "Set training.num_processes to 1, or report after seeds alone")
    if pruner == "none":
        return
    one = len(goals) == 1 and goals[0] in SCORED
    remedy = "Set pruner to none: Optuna prunes by one objective, and here that must be known in mid-training"
    require(one, "pruner", f"go with one objective of {', '.join(SCORED)}", f"<{pruner}, {', '.join(goals)}>", remedy)
    if pruner == "wilcoxon":
        require(not report_at, "report_at", "be empty for wilcoxon", report_at, "It compares seeds, not checkpoints")
        enough = len(seeds) >= LEAST_SEEDS
        must = f"be at least {LEAST_SEEDS} for wilcoxon"
        require(enough, "seeds", must, seeds, "With fewer no difference is significant at 0.1")
    some = bool(report_at) or len(seeds) > 1
    require(some, "report_at", f"be given for {pruner} with one seed", report_at, "Use report_at = [0.25, 0.5, 0.75]")


def make_pruner(name: PrunerName, report_at: Sequence[float], num_seeds: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner; halving begins at the first report."""
    import optuna

    from rhstudy.sweep.halving import Halving, Hyperband

    first = steps_of(report_at, num_seeds)[0][0]
    if name == "hyperband":
        return Hyperband(min_resource=first, max_resource=WHOLE, reduction_factor=KEPT_SHARE)
    if name == "successive_halving":
        return Halving(min_resource=first, reduction_factor=KEPT_SHARE)
    if name == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.WilcoxonPruner() if name == "wilcoxon" else optuna.pruners.NopPruner()
