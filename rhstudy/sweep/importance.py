"""How much each knob mattered to what a sweep wants, by two methods that ask different things.

PED-ANOVA (Watanabe et al. 2023) asks which knobs tell the best tenth of the trials from all of them, conditional knobs
too; one that the sampler settled early has little importance, since nearly all trials agree on it. fANOVA (Hutter et
al. 2014) asks how much of the variance of all trials each knob explains by itself and with others, in a random forest;
it knows only knobs that every trial has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.importance._base import BaseImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import TrialState

EVALUATORS = ("PED-ANOVA", "fANOVA")
LEAST_FOR_IMPORTANCE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Importance of the knobs for one objective by one method.

    Attributes:
        evaluator: the method.
        objective: for what.
        n: complete trials.
        shares: knob -> share, the greatest first; they sum to 1.
        reason: why there are none.
    """

    evaluator: str
    objective: str
    n: int
    shares: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def importances(study: optuna.Study, objectives: Sequence[str]) -> list[Importance]:
    """Importance for each objective by each method; with its reason where there is none.

    Args:
        study: the trials.
        objectives: their names, in the order of the trials' values.
    """
    n = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    return [
        _importance(study, evaluator, objective, place, n)
        for place, objective in enumerate(objectives)
        for evaluator in EVALUATORS
    ]


def _importance(study: optuna.Study, evaluator: str, objective: str, place: int, n: int) -> Importance:
    shares: dict[str, float] = {}
    reason = f"{n} complete trials, and it takes {LEAST_FOR_IMPORTANCE}"
    if n >= LEAST_FOR_IMPORTANCE:
        try:
            shares, reason = _shares(study, evaluator, place), ""
        except (ImportError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
        if not shares:
            reason = reason or "no knob is in every complete trial"
    return Importance(evaluator=evaluator, objective=objective, n=n, shares=shares, reason=reason)


def _shares(study: optuna.Study, evaluator: str, place: int) -> dict[str, float]:
    # With a target Optuna asks what makes it low, whatever the direction.
    sign = -1.0 if study.directions[place] == StudyDirection.MAXIMIZE else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method: BaseImportanceEvaluator = (
            FanovaImportanceEvaluator(seed=0) if evaluator == "fANOVA" else PedAnovaImportanceEvaluator()
        )
        found = get_param_importances(study, evaluator=method, target=lambda trial: sign * trial.values[place])
    return {knob: float(share) for knob, share in found.items()}


def importance_csv(importances: Sequence[Importance]) -> str:
    """A row a knob, method and objective."""
    lines = [
        f"{knob},{share!r},{one.evaluator},{one.n},{one.objective}\n"
        for one in importances
        for knob, share in one.shares.items()
    ]
    return "knob,importance,evaluator,n,objective\n" + "".join(lines)


def importance_line(one: Importance) -> str:
    """One method's importance of all knobs for one objective, for people."""
    shown = ", ".join(f"{knob} {share:.2f}" for knob, share in one.shares.items())
    return f"importance of knobs for {one.objective} ({one.evaluator}, n = {one.n}): {shown or f'none: {one.reason}'}"
