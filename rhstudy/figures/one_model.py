"""Plots of one model: its retrieval heads, its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.figures.canvas import canvas, legend_beside
from rhstudy.heads.sets import MASS_MODES
from rhstudy.shapes import Float
from rhstudy.types import HeadSet


def head_map(mean: Float[np.ndarray, "layers heads"], heads: HeadSet, mode: str = "") -> Any:
    """Mean score of every head, layers down and heads across; the heads of `heads` are ringed.

    Retrieval scores are shares and shown on 0-1; attention may be negative and is shown around 0.

    Args:
        mean: mean score per head, NaN where a layer has no such head.
        heads: the retrieval heads; its rule is in the title.
        mode: what was measured, as `HeadScores.mode` names it.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        InputError: a head of `heads` lies outside `mean`.
    """
    found = np.abs(mean[np.isfinite(mean)])
    if mode in MASS_MODES:
        top = float(found.max(initial=0.0)) or 1.0
        scale: dict[str, Any] = {"cmap": "PuOr", "vmin": -top, "vmax": top}
        label = "mean attention mass on the needle because of the question"
    else:
        scale, label = {"cmap": "viridis", "vmin": 0, "vmax": max(1.0, found.max(initial=0.0))}, "mean retrieval score"
    title = f"{heads.model}\n{len(heads)} of {heads.num_total} heads with {heads.rule}"
    return heads_image(mean, heads, label=label, title=title, scale=scale)


def heads_image(
    values: Float[np.ndarray, "layers heads"], heads: HeadSet, *, label: str, title: str, scale: Mapping[str, Any]
) -> Any:
    """A value of every head in colour, layers down and heads across; the heads of `heads` are ringed.

    Args:
        values: NaN is left blank.
        heads: the retrieval heads.
        label: of the colour bar.
        title: above the figure.
        scale: colours and their ends, as `matplotlib.axes.Axes.imshow` takes them.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        InputError: a head of `heads` lies outside `values`.
    """
    from matplotlib.ticker import MaxNLocator

    layers, width = values.shape
    outside = [head for head in heads.ordered() if head[0] >= layers or head[1] >= width]
    require(not outside, "heads", f"lie within {layers} layers x {width} heads", outside[:1], "Pass one model's values")
    cell = 0.3 if width <= 16 else 0.2
    figure, axes = canvas(max(4.5, 2.2 + cell * width), max(3.5, 1.6 + cell * layers))
    image = axes.imshow(values, aspect="equal", interpolation="nearest", **scale)
    figure.colorbar(image, ax=axes, label=label, fraction=0.05)
    if len(heads):
        rows, columns = np.transpose(heads.ordered())
        axes.scatter(columns, rows, s=(cell * 46) ** 2, facecolors="none", edgecolors="#ff3b30", linewidths=1.4)
    axes.set(xlabel="query head", ylabel="layer")
    axes.set_title(title, fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    return figure


def training_loss_curve(steps: Sequence[int], losses: Mapping[str, Sequence[float]]) -> Any:
    """Training loss against optimizer steps, a line per name.

    Args:
        steps: optimizer steps, rising.
        losses: line name -> loss in nats per token, one per step.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        InputError: a line that has not one loss per step.
    """
    figure, axes = canvas(6.5, 4.0)
    for name, values in losses.items():
        must = f"have one loss for each of {len(steps)} steps"
        require(len(values) == len(steps), f"losses[{name}]", must, f"<{len(values)} losses>", "Log every step")
        axes.plot(steps, values, lw=1.4, marker="o" if len(steps) < 30 else "", ms=3, label=name)
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per answer token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    if len(losses) > 1:
        legend_beside(axes)
    return figure
