"""Every plot, one function each: head maps, F1 by arm and recall, loss, knockouts, patches, estimates of an analysis.

Plain values in, a matplotlib `Figure` out; `save_png` writes it with the same bytes for the same figure. No pyplot, so
no global state and no display; matplotlib is imported on the first plot.
"""

from rhstudy.figures.arms import ArmPoint, arm_bars, arm_points, recall_scatter
from rhstudy.figures.canvas import save_png
from rhstudy.figures.doses import DosePoint, dose_curve, dose_points, drop_map
from rhstudy.figures.one_model import head_map, training_loss_curve
from rhstudy.figures.patches import PatchPoint, patch_bars, patch_points
from rhstudy.figures.statistics import (
    ForestRow,
    ceiling_plot,
    correlation_rows,
    forest,
    forest_row,
    residual_plot,
    slope_rows,
)
from rhstudy.figures.validation import regret_bars, signal_scatter

__all__ = [
    "ArmPoint",
    "DosePoint",
    "ForestRow",
    "PatchPoint",
    "arm_bars",
    "arm_points",
    "ceiling_plot",
    "correlation_rows",
    "dose_curve",
    "dose_points",
    "drop_map",
    "forest",
    "forest_row",
    "head_map",
    "patch_bars",
    "patch_points",
    "recall_scatter",
    "regret_bars",
    "residual_plot",
    "save_png",
    "signal_scatter",
    "slope_rows",
    "training_loss_curve",
]
