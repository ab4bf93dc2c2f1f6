"""What every plot begins with and ends in: an empty figure of the house, its colours, and a PNG without stamps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#c2571a", "#7a7a7a"
_DPI = 150


def save_png(figure: Any, path: Path) -> None:
    """Write `figure` as a PNG of 150 dots per inch without time or version stamps.

    Raises:
        OSError: the disk is full or the folder does not exist.
    """
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one pair of axes, laid out so that nothing is cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def number(value: float | None) -> float:
    """A value of a JSON record for plotting: null is NaN."""
    return float("nan") if value is None else float(value)
