"""What a signal costs: seconds of its rows and of a trial, and those saved against a search on F1, with intervals.

A cost is a sum of products of what is estimated: rows needed, seconds a row, seconds of a training. Its interval puts
the intervals of its parts together by their squares (variance estimates recovery: Zou and Donner 2008, Stat. Med.
27:1693), each part's end where it makes the sum least or most:

    x = Σ c_k x_k      low = x - sqrt( Σ c_k² (x_k - end_k)² ),   end_k the lower end of x_k for c_k > 0, else the upper

The parts must be independent. What is measured on the same models (seconds of training and of a row) is added up a
model first, and its mean is one part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rhstudy.stats.intervals import mean_interval
from rhstudy.stats.statistic import Statistic, undefined

Terms = Sequence[tuple[float, Statistic]]
"""Factors and what they multiply."""


def combination(terms: Terms, method: str, *, shift: float = 0.0, least: float = -math.inf) -> Statistic:
    """Σ factor x part + `shift`, with the interval of the module.

    Args:
        terms: independent parts.
        method: how the parts were made.
        shift: a constant.
        least: no end of the interval lies below.

    Returns:
        NaN with a reason where a part is undefined; a NaN end with its reason where a part lacks the end it needs.
    """
    seed = next((part.seed for _, part in terms if part.seed is not None), None)
    n = min(part.n for _, part in terms)
    for _, part in terms:
        if math.isnan(part.estimate):
            return undefined(part.reason, n=n, method=method, seed=seed)
    value = shift + sum(factor * part.estimate for factor, part in terms)
    below = [factor * (part.estimate - (part.low if factor > 0 else part.high)) for factor, part in terms if factor]
    above = [factor * ((part.high if factor > 0 else part.low) - part.estimate) for factor, part in terms if factor]
    low, high = value - math.hypot(*below), value + math.hypot(*above)
    lacking = "; ".join(dict.fromkeys(part.reason for _, part in terms if part.reason))
    return Statistic(
        estimate=value,
        low=low if math.isnan(low) else max(low, least),
        high=high,
        n=n,
        method=method,
        seed=seed,
        reason=lacking if math.isnan(low + high) else "",
        warnings=tuple(dict.fromkeys(text for _, part in terms for text in part.warnings)),
    )


def cost_at(
    rows: Statistic, seconds_a_row: Sequence[float], level: float, *, what: str, once: Sequence[float] = ()
) -> Statistic:
    """Mean over models of ``once + rows x seconds a row``: seconds of a signal, or with its training of a trial.

    Two independent parts: the models' seconds at the estimated rows (a t interval over models), and the rows at the
    mean seconds a row.

    Args:
        rows: how many are needed, with interval; `known_rows` have no error.
        seconds_a_row: of each model.
        level: coverage, 0-1.
        what: is measured on the rows, for people.
        once: further seconds of each model, in the same order; models that lack a number are left out.

    Returns:
        NaN with a reason where rows or seconds are not known; no end lies below 0.
    """
    pairs = zip(once or [0.0] * len(seconds_a_row), seconds_a_row, strict=True)
    both = [pair for pair in pairs if all(map(math.isfinite, pair))]
    method = f"{what}: rows ({rows.method}) x seconds a row{', with training' if once else ''}, t interval over models"
    if math.isnan(rows.estimate) or not both:
        reason = rows.reason or f"the cost of {what} is not known: no model has its seconds"
        return undefined(reason, n=rows.n, method=method, seed=rows.seed)
    timed = mean_interval([first + rows.estimate * second for first, second in both], level)
    mean = float(np.mean([second for _, second in both]))
    return combination([(1.0, timed), (mean, rows)], method, shift=-mean * rows.estimate, least=0.0)


def known_rows(count: int) -> Statistic:
    """A number of rows that was chosen, as a part of a sum."""
    return Statistic(estimate=float(count), low=float(count), high=float(count), n=count, method="as many as were used")


def saved_seconds(
    cost: Statistic, other_cost: Statistic, once: Statistic | None, num_trials: int, num_seeds: int
) -> Statistic:
    """Seconds that a search saves by one signal against the same search by another; both train the same models.

    Args:
        cost: of the signal, a model.
        other_cost: of the other.
        once: of a reference that only the first needs.
        num_trials: of the search.
        num_seeds: models a trial.

    Returns:
        (other - cost) x models - once: below 0 where it costs more.
    """
    models = float(num_trials * num_seeds)
    terms = [(models, other_cost), (-models, cost), *([(-1.0, once)] if once else [])]
    return combination(terms, "cost by F1 minus cost by the signal, over all models of the search")
