"""The figures of a knockout: a dose curve per metric, mode and scope, and a map of heads knocked out alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rhstudy.figures import dose_curve, dose_points, drop_map
from rhstudy.interventions.conditions import KnockoutPlan, Variant
from rhstudy.shapes import Float
from rhstudy.stages.outcomes import METRICS, mark_of, of_variant
from rhstudy.tracking.stage_run import StageRun


def log_figures(
    run: StageRun,
    doses: Sequence[Mapping[str, Any]],
    means: Sequence[Mapping[str, Any]],
    plan: KnockoutPlan,
    shape: tuple[int, int],
    title: str,
) -> None:
    """Draw everything.

    Args:
        run: gets ``dose_curve_METRIC.png``, with ``_MODE_SCOPE`` behind all but zero_output in decode scope, and
            ``single_heads_METRIC.png``.
        doses: of ``necessity.json``; empty where there are no statistics.
        means: of the conditions, the baseline first.
        plan: its conditions are those of `means`.
        shape: layers x heads of the model.
        title: which model, whose heads.
    """
    for way in plan.variants if doses else ():
        for metric in METRICS:
            name = f"dose_curve_{metric}{_suffix(way)}"
            run.log_figure(name, _curve(of_variant(doses, way), metric, f"{title}\n{way.label}"))
    for metric in METRICS:
        drops = single_drops(means, plan, shape, metric)
        if np.isfinite(drops).any():
            shown = f"{title}\none head at a time, {plan.variants[0].label}"
            run.log_figure(f"single_heads_{metric}", _map(drops, plan, metric, shown))


def single_drops(
    means: Sequence[Mapping[str, Any]], plan: KnockoutPlan, shape: tuple[int, int], metric: str
) -> Float[np.ndarray, "layers heads"]:
    """What knocking out each head alone takes from the mean of `metric`; NaN where it was not tried or has no mark."""
    drops, found = np.full(shape, np.nan), {row["condition"]: mark_of(row, metric) for row in means}
    before = found[plan.conditions[0].condition_id]
    for condition in plan.conditions:
        after = found[condition.condition_id]
        if condition.kind == "single" and before is not None and after is not None:
            drops[condition.heads[0]] = before - after
    return drops


def _suffix(way: Variant) -> str:
    return f"_{way.mode}_{way.scope}" if way.prefix else ""


def _curve(doses: Sequence[Mapping[str, Any]], metric: str, title: str) -> Callable[[], Any]:
    baseline = doses[0][metric]["baseline"]
    return lambda: dose_curve(dose_points(doses, metric), baseline=baseline, metric=metric, title=title)


def _map(drops: Float[np.ndarray, "layers heads"], plan: KnockoutPlan, metric: str, title: str) -> Callable[[], Any]:
    return lambda: drop_map(drops, plan.retrieval_heads, metric=metric, title=title)
