"""Are the heads necessary? What knocking the top k out costs, against knocking out matched random heads.

Notation, per dose and metric: m_i the mark of example i with nothing knocked out, t_i with the top k heads, r_di with
draw d = 1..D of matched random heads.

    drop     = mean_i (m_i - t_i)                        paired t interval over examples, or clusters of them
    drop_d   = mean_i (m_i - r_di)                       mean and range over draws
    excess   = drop - mean_d drop_d                      the same, given these draws
    p        = (1 + #{d : drop_d >= drop}) / (1 + D)     one-sided randomization test

p is exact under the hypothesis that the top heads are one more random draw, and never below 1 / (1 + D). Where a layer
had too few heads and draws borrow from another, no draw has the top heads' layers: p is not exact (see the warning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.stats.intervals import Clusters, cluster_names, mean_interval, over_clusters, paired_difference
from rhstudy.stats.statistic import Statistic, undefined

METRICS = ("f1", "exact_match", "gold_logp")
"""``gold_logp`` is minus ``gold_nll``, so that a cost is a drop there too; it still tells something at F1 0."""
ENOUGH_DRAWS = 199
"""Draws from which a p of 0.005 is within reach; with fewer a result is an illustration (SCIENCE.md section 7)."""

BORROWED = "draws borrow heads from other layers: they are not layer-matched and p is not exact"

_SAME = 1e-12  # drops that differ by less are equal: they are means of the same few values in another order
_NO_EXAMPLE = "no example is scored"

Marks = Mapping[str, float]
"""Example id -> mark, scored examples only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseMarks:
    """One metric at one dose.

    Attributes:
        baseline: marks with nothing knocked out.
        top: marks with the top heads knocked out; empty when the dose was not given.
        draws: marks of each draw of random heads.
        clusters: examples that belong together; intervals are over clusters then.
        reason: why `top` is empty, else empty.
        control_reason: why `draws` is empty, else empty.
    """

    baseline: Marks
    top: Marks = field(default_factory=dict)
    draws: Sequence[Marks] = ()
    clusters: Clusters = field(default_factory=dict)
    reason: str = ""
    control_reason: str = ""

    def __post_init__(self) -> None:
        given = {"top": self.top} if not self.reason else {}
        given |= {f"draws[{number}]": marks for number, marks in enumerate(self.draws)}
        for name, marks in given.items():
            same = marks.keys() == self.baseline.keys()
            got = f"<{len(marks)} examples, baseline {len(self.baseline)}>"
            require(same, name, "mark the same examples as the baseline", got, "Measure every condition on every row")
        explained = bool(self.draws) or bool(self.control_reason)
        require(explained, "control_reason", "say why there is no draw", self.control_reason, "Give the reason")


def dose_effect(marks: DoseMarks, level: float) -> dict[str, Any]:
    """Every estimate of the module docstring for one metric at one dose, JSON-ready.

    Args:
        marks: of all conditions.
        level: coverage of intervals, 0-1.

    Returns:
        ``baseline`` and ``top`` (means with t intervals), ``drop``, ``random`` and ``random_drop`` (mean over draws;
        ``low`` and ``high`` are the range over draws), ``excess`` with its ``p``, each as `Statistic.json`;
        ``num_draws`` and ``smallest_p`` = 1 / (1 + D), null without draws.
    """
    names = sorted(marks.baseline)
    reason, control_reason = (marks.reason, marks.control_reason) if names else (_NO_EXAMPLE, _NO_EXAMPLE)
    draws = [] if control_reason else list(marks.draws)
    means = [_mean(draw, names) for draw in draws]
    drops = [_mean(marks.baseline, names) - mean for mean in means]
    top = _mean_over(marks.top, level, marks.clusters)
    drop = paired_difference(marks.baseline, marks.top, level, marks.clusters)
    found = {
        "baseline": _mean_over(marks.baseline, level, marks.clusters),
        "top": undefined(reason, n=0, method=top.method) if reason else top,
        "drop": undefined(reason, n=0, method=drop.method, tested=True) if reason else drop,
        "random": _over_draws(means, "mean", control_reason),
        "random_drop": _over_draws(drops, "drop", control_reason),
        "excess": _excess(marks, draws, drops, level, reason or control_reason),
    }
    smallest = 1 / (1 + len(draws)) if draws else None
    return {**{name: item.json() for name, item in found.items()}, "num_draws": len(draws), "smallest_p": smallest}


def _mean_over(marks: Marks, level: float, clusters: Clusters) -> Statistic:
    return mean_interval(list(marks.values()), level, cluster_names(list(marks), clusters))


def _mean(marks: Marks, names: Sequence[str]) -> float:
    return float(np.mean([marks[name] for name in names]))


def _over_draws(values: Sequence[float], what: str, reason: str) -> Statistic:
    method = f"mean over draws of each draw's {what}; low and high are the smallest and the largest draw"
    if reason:
        return undefined(reason, n=0, method=method)
    return Statistic(estimate=float(np.mean(values)), low=min(values), high=max(values), n=len(values), method=method)


def _excess(marks: DoseMarks, draws: Sequence[Marks], drops: Sequence[float], level: float, reason: str) -> Statistic:
    """Drop minus matched drop: by example the mean mark over draws minus the mark without the top heads."""
    together = over_clusters(cluster_names(list(marks.baseline), marks.clusters))
    method = f"paired mean difference from the mean over draws, t interval over examples{together}; "
    method += "p: randomization over draws"
    if reason:
        return undefined(reason, n=0, method=method, tested=True)
    matched = {name: _mean_mark(draws, name) for name in marks.baseline}
    gap = paired_difference(matched, marks.top, level, marks.clusters)
    names = sorted(marks.baseline)
    return replace(
        gap,
        method=method,
        p=randomization_p(_mean(marks.baseline, names) - _mean(marks.top, names), drops),
        warnings=few_draws(len(draws)),
    )


def _mean_mark(draws: Sequence[Marks], name: str) -> float:
    return float(np.mean([draw[name] for draw in draws]))


def randomization_p(drop: float, drops: Sequence[float]) -> float:
    """p = (1 + #{d : drop_d >= drop}) / (1 + D): the share of sets, the top heads included, that cost as much.

    Args:
        drop: of the top heads.
        drops: of each random draw, at least one; equal within 1e-12 counts as equal.
    """
    return (1 + sum(other >= drop - _SAME for other in drops)) / (1 + len(drops))


def few_draws(num_draws: int) -> tuple[str, ...]:
    """The warning that belongs beside a p from `num_draws` draws, if any."""
    if num_draws >= ENOUGH_DRAWS:
        return ()
    return (f"{num_draws} draws: p cannot be below {1 / (1 + num_draws):.3g}; a claim needs {ENOUGH_DRAWS} or more",)


def necessity(
    outcomes: Sequence[Mapping[str, Any]], doses: Sequence[Mapping[str, Any]], level: float
) -> list[dict[str, Any]]:
    """`dose_effect` of every dose and metric.

    Args:
        outcomes: a row per example and condition, with ``example_id``, ``kind`` (baseline, top, random), ``dose``,
            ``draw`` (None but for random), the marks ``f1``, ``exact_match``, ``gold_nll`` (None = unscored) and,
            where examples are not independent, ``cluster``.
        doses: what was planned, with ``dose``, ``reason`` and ``control_reason``.
        level: coverage of intervals, 0-1.

    Returns:
        The dose's own entries and an effect per metric, in the order of `doses`.

    Raises:
        InputError: conditions that mark different examples.
    """
    found = []
    for plan in doses:
        effects = {metric: dose_effect(_dose_marks(outcomes, plan, metric), level) for metric in METRICS}
        for effect in effects.values() if plan.get("borrowed") else ():
            effect["excess"]["warnings"].append(BORROWED)
        found.append({**plan, **effects})
    return found


def _dose_marks(outcomes: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], metric: str) -> DoseMarks:
    """One metric at one dose; a mark that is missing where the baseline has one undoes this metric and no other."""
    marks = _marks_by_condition(outcomes, plan["dose"], metric)
    baseline = {name: mark for name, mark in marks.pop(("baseline", None), {}).items() if mark is not None}
    reasons = {"top": plan["reason"], "random": plan["control_reason"]}
    kept: dict[str, list[Marks]] = {"top": [], "random": []}
    for (kind, _), given in marks.items():
        finite = {name: mark for name, mark in given.items() if mark is not None and name in baseline}
        num_missing = sum(given[name] is None for name in given.keys() & baseline.keys())
        if num_missing and not reasons[kind]:
            reasons[kind] = f"{metric} is not finite in {num_missing} of {len(baseline)} rows"
        kept[kind].append(finite)
    return DoseMarks(
        baseline=baseline,
        top=kept["top"][0] if kept["top"] and not reasons["top"] else {},
        draws=[] if reasons["random"] else kept["random"],
        clusters={row["example_id"]: row["cluster"] for row in outcomes if row.get("cluster")},
        reason=reasons["top"],
        control_reason=reasons["random"],
    )


def _marks_by_condition(
    outcomes: Sequence[Mapping[str, Any]], dose: int, metric: str
) -> dict[tuple[str, int | None], dict[str, float | None]]:
    """(kind, draw) -> marks (None where there is none), of the baseline and the conditions of one dose."""
    found: dict[tuple[str, int | None], dict[str, float | None]] = {}
    for row in outcomes:
        if row["kind"] == "baseline" or row["dose"] == dose:
            found.setdefault((row["kind"], row["draw"]), {})[row["example_id"]] = _mark(row, metric)
    return found


def _mark(row: Mapping[str, Any], metric: str) -> float | None:
    if metric != "gold_logp":
        return None if row[metric] is None else float(row[metric])
    return None if row["gold_nll"] is None else -float(row["gold_nll"])
