"""Every plot, one function each: head maps, recall against F1, F1 by arm, loss, knockout doses and heads, patches.

Plain values in, a matplotlib `Figure` out; `save_png` writes it with the same bytes for the same figure. No pyplot, so
no global state and no display; matplotlib is imported on the first plot.
"""

from rhstudy.figures.arms import ArmPoint, arm_bars, arm_points, recall_scatter
from rhstudy.figures.canvas import save_png
from rhstudy.figures.doses import DosePoint, dose_curve, dose_points, drop_map
from rhstudy.figures.one_model import head_map, training_loss_curve
from rhstudy.figures.patches import PatchPoint, patch_bars, patch_points

__all__ = [
    "ArmPoint",
    "DosePoint",
    "PatchPoint",
    "arm_bars",
    "arm_points",
    "dose_curve",
    "dose_points",
    "drop_map",
    "head_map",
    "patch_bars",
    "patch_points",
    "recall_scatter",
    "save_png",
    "training_loss_curve",
]
