"""How reliable F1 and recall of a recipe are, and so how high their correlation can come at best.

With k_c seeds in recipe c, mean squares between and within recipes (one-way analysis of variance) give

    reliability of a recipe's mean = 1 - MS_within / MS_between        1 - 1 / F, interval from F's quantiles

(Shrout and Fleiss 1979, ICC(1, k)); two measures whose reliabilities are r_x and r_y correlate by at most
sqrt(r_x r_y) (Spearman 1904).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution

from rhstudy.stats.statistic import Statistic, null, undefined


def reliability(arms: pd.DataFrame, column: str, level: float) -> Statistic:
    """Reliability of recipe means of `column` over seeds, within task and model.

    Args:
        arms: from `rhstudy.stats.cells.point_arms`.
        column: what was measured on each arm.
        level: coverage of the interval.

    Returns:
        NaN with a reason where no recipe has two seeds or seeds do not differ; negative estimates are 0 (the means
        differ no more than seeds do).
    """
    method = f"1 - 1/F of recipe means of {column} within task and model, F interval"
    known = arms[arms[column].notna()]
    cells = known.groupby(["group", "cluster"])[column]
    num_cells, num_groups = cells.ngroups, known["group"].nunique()
    free, between = len(known) - num_cells, num_cells - num_groups
    if free < 1 or between < 1:
        reason = "no recipe has two seeds" if free < 1 else "one recipe has no variance between recipes"
        return undefined(reason, n=num_cells, method=method)
    means = cells.transform("mean")
    inside = float(((known[column] - means) ** 2).sum()) / free
    grand = means.groupby(known["group"]).transform("mean")
    outside = float(((means - grand) ** 2).sum()) / between
    if inside <= 1e-24 or outside <= 1e-24:
        reason = f"{column} does not differ between {'seeds' if inside <= 1e-24 else 'recipes'}"
        return undefined(reason, n=num_cells, method=method)
    ratio = outside / inside
    ends = (f_distribution.isf(q, between, free) for q in ((1 - level) / 2, (1 + level) / 2))
    low, high = (float(np.clip(1 - end / ratio, 0, 1)) for end in ends)
    return Statistic(estimate=max(0.0, 1 - 1 / ratio), low=low, high=high, n=num_cells, method=method)


def attainable(arms: pd.DataFrame, predictor: str, level: float) -> dict[str, Any]:
    """``f1`` and ``predictor`` reliabilities and ``highest_correlation``, the square root of their product."""
    found = {"f1": reliability(arms, "f1", level), "predictor": reliability(arms, predictor, level)}
    product = found["f1"].estimate * found["predictor"].estimate
    highest = null(math.sqrt(product) if not math.isnan(product) else math.nan)
    reasons: Mapping[str, str] = (
        {} if highest is not None else {"highest_correlation": found["f1"].reason or found["predictor"].reason}
    )
    return {**{name: item.json() for name, item in found.items()}, "highest_correlation": highest, "reasons": reasons}
