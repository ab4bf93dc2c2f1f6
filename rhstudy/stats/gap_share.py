"""Are the heads sufficient? How much of the gap between a donor and a recipient a patch of the donor's heads closes.

Notation, per metric: r_i the recipient's mark of example i, d_i the donor's, p_i the recipient's with the patch, q_ki
with the k-th matched random set patched.

    gap      = mean_i (d_i - r_i)                  paired t interval over examples, or clusters of them
    change   = mean_i (p_i - r_i)                  the same
    share    = change / gap                        BCa bootstrap over the same; only where the gap's interval excludes 0
    random   = mean and range over k of mean_i (q_ki - r_i)

A share has no sense where donor and recipient do not differ: NaN with the reason. It may be negative (the patch made it
worse: a counter-example) or above 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.shapes import Float, Int
from rhstudy.stats.intervals import (
    Clusters,
    bca_interval,
    cluster_names,
    cluster_sums,
    mean_interval,
    over_clusters,
    paired_difference,
)
from rhstudy.stats.statistic import Statistic, undefined

METRICS = ("f1", "exact_match", "gold_logp")
"""``gold_logp`` is minus ``gold_nll``: more is better, as of the others."""

Marks = Mapping[str, float]
"""Example id -> mark."""

_SHARE = "change / gap, BCa bootstrap over examples"
_RANDOM = "mean over draws of each draw's change; low and high are the smallest and the largest draw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals of shares are made.

    Attributes:
        level: coverage, 0-1; of the other intervals too.
        num_resamples: bootstrap size.
        seed: root seed.
        clusters: examples that belong together; they are resampled together.
    """

    level: float
    num_resamples: int
    seed: int
    clusters: Clusters = field(default_factory=dict)

    def mean(self, marks: Marks) -> Statistic:
        """Mean of `marks` with its interval."""
        return mean_interval(list(marks.values()), self.level, cluster_names(list(marks), self.clusters))

    def difference(self, ours: Marks, reference: Marks) -> Statistic:
        """Mean of ours - reference with its interval."""
        return paired_difference(ours, reference, self.level, self.clusters)


def patching_effects(
    outcomes: Sequence[Mapping[str, Any]], sets: Sequence[Mapping[str, Any]], positions: Sequence[str], how: Bootstrap
) -> dict[str, Any]:
    """Every estimate of the module docstring, JSON-ready.

    Args:
        outcomes: a row per example and condition, with ``example_id``, ``kind`` (recipient, donor, patched, random),
            ``positions``, ``of_set``, ``draw``, the marks ``f1``, ``exact_match``, ``gold_nll`` (None = unscored) and,
            where examples are not independent, ``cluster``.
        sets: what was planned, with ``of_set``, ``reason`` and ``control_reason``.
        positions: the rows that were asked for.
        how: levels and resamples.

    Returns:
        ``models``: by metric ``recipient``, ``donor`` and ``gap``; ``patches``: an entry a set and kind of rows, with
        its ``positions``, the set's own entries, and by metric ``patched``, ``change``, ``share``, ``random_change``.

    Raises:
        InputError: a condition marks other examples than the recipient alone.
    """
    by_metric = {metric: _marks(outcomes, metric) for metric in METRICS}
    clusters = {row["example_id"]: row["cluster"] for row in outcomes if row.get("cluster")}
    how = replace(how, clusters=clusters)
    models = {metric: _models(marks, metric, how) for metric, marks in by_metric.items()}
    patches = []
    for place in positions:
        for planned in sets:
            effects = {
                metric: _effect(marks, metric, place, planned, models[metric]["gap"], how)
                for metric, marks in by_metric.items()
            }
            patches.append({"positions": place, **planned, **effects})
    shown = {metric: {name: item.json() for name, item in found.items()} for metric, found in models.items()}
    return {"models": shown, "patches": patches}


_Key = tuple[str, str | None, str, int | None]


def _marks(outcomes: Sequence[Mapping[str, Any]], metric: str) -> dict[_Key, dict[str, float | None]]:
    """(kind, positions, set, draw) -> marks of one metric."""
    found: dict[_Key, dict[str, float | None]] = {}
    for row in outcomes:
        value = row["gold_nll"] if metric == "gold_logp" else row[metric]
        signed = None if value is None else -float(value) if metric == "gold_logp" else float(value)
        found.setdefault((row["kind"], row["positions"], row["of_set"], row["draw"]), {})[row["example_id"]] = signed
    known = found.get(("recipient", None, "", None), {}).keys()
    for key, marks in found.items():
        got = f"<{len(marks)} examples, recipient {len(known)}>"
        require(
            marks.keys() == known, f"outcomes of {key[0]}", "mark the recipient's examples", got, "Measure all on all"
        )
    return found


def _models(marks: Mapping[_Key, Mapping[str, float | None]], metric: str, how: Bootstrap) -> dict[str, Statistic]:
    values = {kind: _finite(marks[(kind, None, "", None)]) for kind in ("recipient", "donor")}
    means = {kind: how.mean(some) for kind, some in values.items()}
    return {**means, "gap": how.difference(values["donor"], values["recipient"])}


def _finite(marks: Mapping[str, float | None]) -> dict[str, float]:
    return {name: mark for name, mark in sorted(marks.items()) if mark is not None}


def _effect(
    marks: Mapping[_Key, Mapping[str, float | None]],
    metric: str,
    place: str,
    planned: Mapping[str, Any],
    gap: Statistic,
    how: Bootstrap,
) -> dict[str, Any]:
    """One metric of one set at one kind of rows."""
    name = planned["of_set"]
    recipient, donor = (_finite(marks[(kind, None, "", None)]) for kind in ("recipient", "donor"))
    given = marks.get(("patched", place, name, None), {})
    patched = {example: mark for example, mark in _finite(given).items() if example in recipient}
    lost = len(recipient) - len(patched)
    reason = planned["reason"] or (f"{metric} is not finite in {lost} of {len(recipient)} rows" if lost else "")
    if reason:
        nothing = undefined(reason, n=0, method=_SHARE)
        found = {"patched": nothing, "change": replace(nothing, p=math.nan), "share": nothing}
    else:
        stream = generator(how.seed, "share of the gap", place, name, metric)
        found = {
            "patched": how.mean(patched),
            "change": how.difference(patched, recipient),
            "share": _share(recipient, donor, patched, gap, how, stream),
        }
    drawn = [
        _finite(some)
        for (kind, where, of_set, _), some in marks.items()
        if (kind, where, of_set) == ("random", place, name)
    ]
    random = _random_change(drawn, recipient, planned["control_reason"], metric)
    return {key: item.json() for key, item in {**found, "random_change": random}.items()}


def _share(
    recipient: Marks, donor: Marks, patched: Marks, gap: Statistic, how: Bootstrap, draws: np.random.Generator
) -> Statistic:
    names = [name for name in recipient if name in donor]
    if not (gap.low > 0 or gap.high < 0):
        unknown = f"the gap between donor and recipient has no interval: {gap.reason}"
        reason = unknown if gap.reason else "the interval of the gap between donor and recipient does not exclude 0"
        return undefined(reason, n=len(names), method=_SHARE, seed=how.seed)
    moves = np.array([[side[name] - recipient[name] for side in (patched, donor)] for name in names])
    together = cluster_names(names, how.clusters)
    changes, gaps = cluster_sums(moves, together).T

    def ratio(rows: Int[np.ndarray, "draws units"]) -> Float[np.ndarray, " draws"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = changes[rows].sum(axis=1) / gaps[rows].sum(axis=1)
        return np.where(np.isfinite(found), found, np.nan)

    ends = bca_interval(ratio, len(changes), draws=draws, num_resamples=how.num_resamples, level=how.level)
    estimate = float(changes.sum() / gaps.sum())
    return Statistic(
        estimate=estimate,
        low=ends.low,
        high=ends.high,
        n=len(names),
        method=f"{_SHARE}{over_clusters(together)}",
        seed=how.seed,
        reason=f"no interval: {ends.reason}" if ends.reason else "",
        warnings=ends.warnings,
    )


def _random_change(drawn: Sequence[Marks], recipient: Marks, reason: str, metric: str) -> Statistic:
    short = [some for some in drawn if not recipient.keys() <= some.keys()]
    why = reason or (f"{metric} is not finite in every row of {len(short)} draws" if short else "")
    if why or not recipient:
        return undefined(why or "no example is scored", n=0, method=_RANDOM)
    changes = [float(np.mean([some[name] - recipient[name] for name in recipient])) for some in drawn]
    return Statistic(
        estimate=float(np.mean(changes)), low=min(changes), high=max(changes), n=len(changes), method=_RANDOM
    )


def counter_examples(patches: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every patch and metric whose mean change is below 0, with whether its interval is.

    Args:
        patches: from `patching_effects`.

    Yields:
        ``positions``, ``of_set``, ``metric``, ``change`` (the statistic), ``clear``.
    """
    for patch in patches:
        for metric in METRICS:
            change = patch[metric]["change"]
            if change["estimate"] is not None and change["estimate"] < 0:
                clear = change["high"] is not None and change["high"] < 0
                yield {
                    "positions": patch["positions"],
                    "of_set": patch["of_set"],
                    "metric": metric,
                    "change": change,
                    "clear": clear,
                }
