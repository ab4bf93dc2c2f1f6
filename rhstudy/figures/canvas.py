"""What every plot begins with and ends in: a figure of the house, its colours, frame and legend, a stampless PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#c2571a", "#7a7a7a"
METRIC_NAMES = {"f1": "F1", "exact_match": "exact match", "gold_logp": "log p of the gold answer, nats per token"}
"""Marks of an intervention as axes name them."""
_DPI = 150


def save_png(figure: Any, path: Path) -> None:
    """Write `figure` as a PNG of 150 dots per inch without time or version stamps.

    Raises:
        OSError: the disk is full or the folder does not exist.
    """
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one pair of axes, laid out so that nothing is cut off."""
    figure = empty_figure(width, height)
    return figure, figure.add_subplot()


def empty_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches without axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def open_frame(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Leave the frame open above and to the right, with a faint grid."""
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_beside(axes: Axes, handles: Sequence[Any] | None = None) -> None:
    """The legend outside the axes, at their upper right: it covers no mark."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, **_handles(handles))


def legend_below(figure: Figure, columns: int = 2, handles: Sequence[Any] | None = None) -> None:
    """The legend of all axes below them."""
    figure.legend(fontsize=8, loc="outside lower center", ncols=columns, frameon=False, **_handles(handles))


def _handles(given: Sequence[Any] | None) -> dict[str, Any]:
    return {} if given is None else {"handles": list(given)}


def interval_bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Any:
    """Lengths of the bars below and above each mark, as `matplotlib.axes.Axes.errorbar` takes them; NaN has none."""
    sides = np.array([np.subtract(middle, low), np.subtract(high, middle)])
    return np.clip(np.nan_to_num(sides), 0, None)


def number(value: float | None) -> float:
    """A value of a JSON record for plotting: null is NaN."""
    return float("nan") if value is None else float(value)
