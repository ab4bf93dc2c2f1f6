"""The best of a sweep: one trial, or those that no other beats in every objective; and the studies that test them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rhstudy.configs import from_mapping, plain
from rhstudy.data.knobs import Knobs, preset
from rhstudy.data.relevance import recipe_digest
from rhstudy.plan import StudyConfig
from rhstudy.sweep.config import SweepConfig, budget_dimensions, dimensions
from rhstudy.sweep.course import INFEASIBLE, Budget
from rhstudy.sweep.space import suggest, suggest_budget
from rhstudy.tracking.config_files import toml_text

BEST = "best.toml"
WITHIN = 0.05


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The Pareto front of the trials that keep to the constraints, best by the first objective first.

    With one objective that is the best trial alone; none where no trial is complete and feasible.
    """
    sign = -1.0 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1.0
    front = sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))
    return front if len(study.directions) > 1 else front[:1]


def cheapest_within(study: optuna.Study, cost: str, share: float = WITHIN) -> FrozenTrial | None:
    """The complete, feasible trial of least cost among those within `share` of the best first objective.

    Args:
        study: the trials.
        cost: user attribute that is the cost; trials without it are left out.
        share: how much worse than the best, relative to it.

    Returns:
        The trial, of equal ones the better, then the earlier; None where no trial has that cost.
    """
    sign = -1.0 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1.0
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = [trial for trial in trials if cost in trial.user_attrs and INFEASIBLE not in trial.user_attrs]
    best = min((sign * trial.values[0] for trial in known), default=0.0)
    near = [trial for trial in known if sign * trial.values[0] <= best + share * abs(best)]
    return min(near, key=lambda one: (one.user_attrs[cost], sign * one.values[0], one.number), default=None)


def recipe_of(config: SweepConfig, values: Mapping[str, Any]) -> tuple[Knobs, Budget]:
    """The recipe and the budget that a trial of these `values` (`FrozenTrial.params`) trained on."""
    fixed = optuna.trial.FixedTrial(dict(values))
    knobs = suggest(fixed, dimensions(config), config.base, config.data.task)
    return knobs, suggest_budget(fixed, budget_dimensions(config), config.data)


def front_studies(config: SweepConfig, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """File name -> study of the recipes of `trials`, as TOML that `rhstudy study` takes as it is.

    All recipes of a study have one budget: there is a file for each, ``best.toml`` for that of the first trial.
    """
    groups: dict[Budget, list[Knobs]] = {}
    for trial in trials:
        knobs, budget = recipe_of(config, trial.params)
        groups.setdefault(budget, []).append(knobs)
    studies: dict[str, str] = {}
    for budget, recipes in groups.items():
        name = f"best_{budget.num_examples}x{budget.num_tokens}.toml" if studies else BEST
        studies[name] = best_study(config, recipes, budget)
    return studies


def best_study(config: SweepConfig, recipes: Sequence[Knobs], budget: Budget) -> str:
    """The study of the reference's recipe and `recipes`, each once.

    Data (but for the `budget`, which the real recipe is given too), model, training and scoring are the sweep's, with
    eval rows as `data.num_eval` says; the seeds are the sweep's.
    """
    task = config.data.task
    digests = {recipe_digest(knobs, task): plain(knobs) for knobs in recipes}
    digests.pop(recipe_digest(preset(config.reference_recipe, task), task), None)
    values: dict[str, Any] = {
        "name": f"{config.name}-best",
        "recipes": [config.reference_recipe],
        "custom_recipes": list(digests.values()),
        "reference_recipe": config.reference_recipe,
        "seeds": sorted({config.reference_seed, *config.seeds}),
        "ceiling_seeds": [],
        **{key: plain(getattr(config, key)) for key in ("model", "context", "training", "scoring")},
        "data": plain(budget.of(config.data)),
    }
    text = toml_text(values)
    from_mapping(StudyConfig, values, where=BEST)
    return text
