"""Names beside marks: each at the nearest place where it hits no other name and no mark."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINK = {"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkA": 0, "shrinkB": 3}


def label_points(
    axes: Axes,
    centres: Sequence[tuple[str, float, float]],
    others: Sequence[tuple[float, float]] = (),
    path: Sequence[tuple[float, float]] = (),
) -> None:
    """Name each mark at the nearest place where the text hits no earlier text, no mark and no line.

    Args:
        axes: in their final layout: call it last.
        centres: name and place of each mark, in data coordinates.
        others: places of marks without a name.
        path: corners of a line that is drawn.
    """
    from matplotlib.transforms import Bbox

    figure: Any = axes.get_figure()
    figure.draw_without_rendering()  # fixes the layout, so that pixel positions are final
    named = [axes.transData.transform((x, y)) for _, x, y in centres]
    small = [axes.transData.transform(place) for place in others]
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in named]
    taken += [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in small]
    turns = [axes.transData.transform(place) for place in path]
    taken += [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in _along(turns)]
    steps = [(dx, dy) for dx in (1, -1, 0) for dy in (1, -1, 0) if dx or dy]
    places = [(reach * dx, reach * dy) for reach in (6, 14, 24, 36, 50) for dx, dy in steps]
    for name, x, y in centres:
        tried = (_label(axes, name, (x, y), place) for place in places)
        found = next((item for item in tried if _free(axes, item, taken)), None)
        text, box = found or _label(axes, name, (x, y), places[0])
        text.set_visible(True)
        taken.append(box)


def _along(corners: Sequence[Any]) -> list[Any]:
    """Points on a line, six pixels apart."""
    found: list[Any] = []
    for start, end in itertools.pairwise(corners):
        count = 2 + int(np.hypot(*np.subtract(end, start)) // 6)
        found += list(np.linspace(start, end, count))
    return found


def _label(axes: Axes, name: str, point: tuple[float, float], place: tuple[int, int]) -> tuple[Any, Any]:
    """A hidden label at `place` points from the mark, and its box in pixels."""
    side = ("center", "left", "right")[int(np.sign(place[0]))]
    level = ("center", "bottom", "top")[int(np.sign(place[1]))]
    text = axes.annotate(name, point, place, textcoords="offset points", fontsize=7, ha=side, va=level)
    canvas: Any = axes.get_figure().canvas  # type: ignore[union-attr]
    box = text.get_window_extent(canvas.get_renderer())
    text.set_visible(False)
    return text, box


def _free(axes: Axes, labelled: tuple[Any, Any], taken: Sequence[Any]) -> bool:
    """Whether the label's box is free and inside the axes; removed if not, tied to its mark if far from it."""
    text, box = labelled
    frame = axes.bbox
    inside = bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
    free = inside and not any(box.overlaps(other) for other in taken)
    if not free:
        text.remove()
    elif max(map(abs, text.get_position())) > 10:
        axes.annotate("", text.xy, text.get_position(), textcoords="offset points", arrowprops=_LINK)
    return free
