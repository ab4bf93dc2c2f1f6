"""An interval of a rank correlation over recipes, of values that come from rows: recipes and rows are both samples.

Notation: r the correlation, z = artanh r, z_i without recipe i of R, z_g without group g of the rows in G groups.

    V = (R - 1)/R Σ_i (z_i - mean z_i)²  +  (G - 1)/G Σ_g (z_g - mean z_g)²      jackknife (Tukey 1958), both ways
    interval = tanh( R z - (R - 1) mean z_i  ±  t_{R-1} sqrt V )

Recipes alone are not enough: rows that tell recipes apart do so for all recipes at once, so that studies with other
rows differ by more than resampled recipes show. What only a recipe and a row have in common is counted in both sums,
which makes the interval a little long: sweeps/statistics/RESULTS.md says how often it covers, beside a bootstrap over
recipes alone.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t as student_t

from rhstudy.shapes import Float
from rhstudy.stats.intervals import Bounds

_LARGEST = 1 - 1e-6  # artanh of a correlation of 1 is infinite
_SAME = 1e-20


def two_way_bounds(
    every: float,
    without_recipe: Float[np.ndarray, " recipes"],
    without_rows: Float[np.ndarray, " groups"],
    level: float,
) -> Bounds:
    """The interval of the module.

    Args:
        every: r.
        without_recipe: r without each recipe.
        without_rows: r without each group of rows.
        level: coverage, 0-1.

    Returns:
        NaN with a reason where an r is undefined, or none differs from another.
    """
    nan = math.nan
    if np.isnan(without_recipe).any() or np.isnan(without_rows).any():
        return Bounds(nan, nan, "it is undefined when a recipe or some rows are left out")
    z, recipes, rows = (np.arctanh(np.clip(r, -_LARGEST, _LARGEST)) for r in (every, without_recipe, without_rows))
    variance = sum((len(side) - 1) * float(side.var()) for side in (recipes, rows))
    if variance < _SAME:
        return Bounds(nan, nan, "no recipe and no row that is left out changes it")
    num = len(recipes)
    middle = num * float(z) - (num - 1) * float(recipes.mean())
    half = float(student_t.isf((1 - level) / 2, num - 1)) * math.sqrt(variance)
    return Bounds(math.tanh(middle - half), math.tanh(middle + half))
