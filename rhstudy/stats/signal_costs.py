"""What a signal costs: seconds a row and a trial, and the seconds saved against a search on F1."""

from __future__ import annotations

import math

from rhstudy.stats.statistic import Statistic, undefined
from rhstudy.types import Estimate


def cost_at(rows: Statistic, seconds_a_row: Statistic) -> Statistic:
    """Seconds of a signal on `rows`: rows x seconds a row; the interval is that of the rows.

    Args:
        rows: how many it needs, with interval.
        seconds_a_row: mean over runs.

    Returns:
        NaN with a reason where one of the two is.
    """
    method = f"rows ({rows.method}) x {seconds_a_row.estimate:.4g} s a row"
    for part in (rows, seconds_a_row):
        if math.isnan(part.estimate):
            return undefined(part.reason, n=rows.n, method=method, seed=rows.seed)
    second = seconds_a_row.estimate
    return Statistic(
        estimate=rows.estimate * second,
        low=rows.low * second,
        high=rows.high * second,
        n=rows.n,
        method=method,
        seed=rows.seed,
        reason=rows.reason,
        warnings=rows.warnings,
    )


def saved_seconds(trial_s: float, other_trial_s: float, num_trials: int, once_s: float) -> Estimate:
    """Seconds that trials of `trial_s`, and `once_s` for a reference, save against as many of `other_trial_s`.

    Returns:
        other x trials - (this x trials + once): negative where it costs more. NaN with a reason where a cost is NaN.
    """
    for value, name in ((trial_s, "the signal"), (other_trial_s, "F1"), (once_s, "the reference")):
        if math.isnan(value):
            return Estimate.undefined(f"the cost of {name} is not known")
    return Estimate((other_trial_s - trial_s) * num_trials - once_s)
