"""The causal claims over tasks: are the retrieval heads necessary, harmless elsewhere, and sufficient?

Necessity, primary: at the declared dose in decode scope, F1 lost beyond matched random heads (`excess`), one-sided
randomization p over the draws, Holm over experiments. Secondary: GEE with examples as clusters (it ignores the
variance between draws) and McNemar on exact match against no knockout. Control behaviours must not be worse by more
than a margin. Sufficiency: patched model against the donor, equal within a margin (TOST). Where rows name a cluster,
intervals and tests over examples are over clusters; beside each test stands what this n would find with power.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm

from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.stats.equivalence import equivalence, not_inferior, provable_margin, smallest_margin
from rhstudy.stats.exact_match import losses, mcnemar, smallest_drop
from rhstudy.stats.intervals import Clusters, cluster_names, cluster_sums
from rhstudy.stats.necessity import necessity
from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, recorded, undefined
from rhstudy.stats.verdict import holm
from rhstudy.types import Estimate

BEHAVIOURS = {"short_f1": False, "short_nll": True, "text_nll": True}
"""Control behaviours, and whether each is a loss (compared as a ratio)."""
PRIMARY_SCOPE, PRIMARY_MODE = "decode", "zero_output"
_CLOSEST = 1e-12
_ALIKE = 1e-9  # effects of examples that spread less are equal but for rounding

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Outcomes of one intervention run, or of one task and model of a file.

    Attributes:
        task: name of the task.
        model: which model, for people.
        rows: a row per example and condition: ``example_id``, ``kind``, marks; of knockouts ``dose`` and ``draw``, of
            patches ``positions`` and ``of_set``; missing marks are None or NaN.
        borrowed: whether random sets borrow heads from other layers at the primary dose.
    """

    task: str
    model: str
    rows: Rows
    borrowed: bool = field(default=False)

    @property
    def is_patching(self) -> bool:
        """Whether it is of activations patched from a donor."""
        return any(row["kind"] == "patched" for row in self.rows)


def causal_analysis(experiments: Sequence[Experiment], *, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    """``necessity`` (one entry a knockout, p corrected by Holm over them) and ``sufficiency`` (one a patched set).

    Raises:
        InputError: an example twice in one condition, or conditions that mark different examples.
    """
    knockouts = [_knockout(item, seed, settings) for item in experiments if not item.is_patching]
    corrected = holm([item["excess"]["p"] for item in knockouts])
    for item, p in zip(knockouts, corrected, strict=True):
        item["holm_p"] = p
        if p is None:
            item["reasons"]["holm_p"] = item["excess"]["reason"]
    patches = [entry for item in experiments if item.is_patching for entry in _patches(item, seed, settings)]
    return {"dose": settings.necessity_dose, "necessity": knockouts, "sufficiency": patches}


def _known(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _chosen(experiment: Experiment, dose: int) -> list[dict[str, Any]]:
    """The baseline's rows and those of the primary condition, marks as numbers or None."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in experiment.rows:
        is_base = row["kind"] == "baseline"
        elsewhere = (row.get("scope") or PRIMARY_SCOPE, row.get("mode") or PRIMARY_MODE) != (
            PRIMARY_SCOPE,
            PRIMARY_MODE,
        )
        if not is_base and (elsewhere or row["kind"] not in ("top", "random") or row["dose"] != dose):
            continue
        draw = row.get("draw")
        key = (row["kind"], None if draw is None or pd.isna(draw) else int(draw), str(row["example_id"]))
        where = f"{experiment.task}, {experiment.model}"
        require(key not in chosen, "outcomes", "mark an example once per condition", key, "Drop the repeats", where)
        marks = {name: _known(row.get(name)) for name in ("f1", "exact_match", "gold_nll", *BEHAVIOURS)}
        cluster = str(row.get("cluster") or key[2])
        chosen[key] = {**marks, "kind": key[0], "draw": key[1], "example_id": key[2], "cluster": cluster, "dose": dose}
    return [{**row, "dose": 0} if row["kind"] == "baseline" else row for row in chosen.values()]


def _knockout(experiment: Experiment, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    dose = settings.necessity_dose
    rows = _chosen(experiment, dose)
    kinds = {row["kind"] for row in rows}
    absent = f"no outcome of dose {dose} in {PRIMARY_SCOPE} scope, {PRIMARY_MODE}"
    plan = {
        "dose": dose,
        "reason": "" if {"baseline", "top"} <= kinds else absent,
        "control_reason": "" if {"baseline", "random"} <= kinds else f"no random heads: {absent}",
        "borrowed": experiment.borrowed,
    }
    (found,) = necessity(rows, [plan], settings.level)
    clusters = {row["example_id"]: row["cluster"] for row in rows}
    lost = losses(rows)
    return {
        "task": experiment.task,
        "model": experiment.model,
        "excess": found["f1"]["excess"],
        "drop": found["f1"]["drop"],
        "num_draws": found["f1"]["num_draws"],
        "excess_gold_logp": found["gold_logp"]["excess"],
        "gee": _gee(rows, settings.level).json(),
        "mcnemar": mcnemar(lost, settings.level, clusters).json(),
        "smallest_detectable_drop": _told(smallest_drop(lost, seed=seed, settings=settings, clusters=clusters)),
        "smallest_detectable_excess": _told(_smallest_excess(_marks(rows), clusters, seed, settings)),
        "control_behaviours": {name: _behaviour(rows, name, clusters, seed, settings) for name in BEHAVIOURS},
        "reasons": {},
    }


def _told(power: Estimate) -> dict[str, Any]:
    return {"value": null(power.value), "reason": power.reason}


def _marks(rows: Rows, metric: str = "f1") -> pd.DataFrame:
    """Examples x conditions (``baseline``, ``top``, ``random 0``...) of one mark, scored examples only."""
    table = pd.DataFrame(
        [(row["example_id"], _label(row), row[metric]) for row in rows if row[metric] is not None],
        columns=["example_id", "condition", "mark"],
    )
    return table.pivot(index="example_id", columns="condition", values="mark").astype(float).dropna()


def _label(row: Mapping[str, Any]) -> str:
    return f"random {row['draw']}" if row["kind"] == "random" else str(row["kind"])


def _smallest_excess(marks: pd.DataFrame, clusters: Clusters, seed: int, settings: StatisticsSettings) -> Estimate:
    """Smallest excess over matched heads that the test finds with `settings.power`, by resampling clusters of examples.

    In a resample the top heads' mark, its mean set to that of the draws, has to fall below all but a share alpha of the
    draws' means: the excess needed is what is missing.
    """
    drawn = [name for name in marks.columns if name.startswith("random")]
    allowed = math.floor(settings.alpha * (1 + len(drawn))) - 1  # draws that may cost as much
    names = cluster_names(list(marks.index), clusters)
    if "top" not in marks.columns or len(set(names) or marks.index) < 2 or allowed < 0:
        return Estimate.undefined("there are too few draws for the level, or no mark of the top heads")
    draws, top = marks[drawn].to_numpy(), marks["top"].to_numpy()
    level = top - top.mean() + draws.mean()
    sums = cluster_sums(np.column_stack([draws, level, np.ones(len(marks))]), names)
    needed, count, generated = [], settings.num_power_draws, generator(seed, "power", "excess")
    for start in range(0, count, 200):
        times = generated.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), min(200, count - start))
        found = times @ sums
        means = np.sort(found[:, :-2] / found[:, -1:], axis=1)
        needed.append(found[:, -2] / found[:, -1] - means[:, allowed] + _CLOSEST)
    return Estimate(max(0.0, float(np.quantile(np.concatenate(needed), settings.power))))


def _gee(rows: Rows, level: float) -> Statistic:
    method = "GEE f1 ~ top heads against random heads, examples as clusters, independence, robust z (not over draws)"
    used = [row for row in rows if row["kind"] in ("top", "random") and row["f1"] is not None]
    clusters = {row["cluster"] for row in used}
    if {row["kind"] for row in used} != {"top", "random"} or len(clusters) < 2:
        return undefined(
            "it takes top heads, random heads and two examples", n=len(clusters), method=method, tested=True
        )
    f1 = np.array([row["f1"] for row in used])
    top = np.array([float(row["kind"] == "top") for row in used])
    if np.ptp(f1) == 0:
        return undefined("every answer has the same F1", n=len(clusters), method=method, tested=True)
    groups = pd.factorize(np.array([row["cluster"] for row in used]))[0]
    order = np.argsort(groups, kind="stable")
    model = sm.GEE(f1[order], sm.add_constant(top[order]), groups=groups[order])
    fit, noted = recorded(model.fit)
    (low, high), more = recorded(lambda: fit.conf_int(alpha=1 - level)[1])
    means = pd.Series(f1).groupby([groups, top]).mean().unstack()
    alike = float(np.ptp(means[0.0] - means[1.0])) <= _ALIKE
    sound = math.isfinite(low) and math.isfinite(high) and not alike
    return Statistic(
        estimate=-float(fit.params[1]),
        low=-float(high) if sound else math.nan,
        high=-float(low) if sound else math.nan,
        n=len(clusters),
        method=method,
        p=float(fit.pvalues[1]) if sound else math.nan,
        reason="" if sound else "robust errors are undefined: every example shows the same effect",
        warnings=() if not sound else tuple(dict.fromkeys([*noted, *more])),
    )


def _behaviour(rows: Rows, name: str, clusters: Clusters, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    """The test of one control behaviour, with ``smallest_provable_margin``."""
    marks = {
        kind: {row["example_id"]: row[name] for row in rows if row["kind"] == kind and row[name] is not None}
        for kind in ("baseline", "top")
    }
    sides = marks["top"], marks["baseline"]
    if not all(sides):
        reason = f"{name} was not measured"
        blank = undefined(reason, n=0, method="non-inferiority", tested=True).json()
        return {**blank, "smallest_provable_margin": _told(Estimate.undefined(reason))}
    relative = BEHAVIOURS[name]
    margin = settings.noninferiority_margin if relative else settings.equivalence_margin
    found = not_inferior(*sides, margin, settings.level, relative=relative, clusters=clusters)
    power = provable_margin(*sides, relative=relative, seed=seed, settings=settings, clusters=clusters)
    return {**found.json(), "smallest_provable_margin": _told(power)}


def _patches(experiment: Experiment, seed: int, settings: StatisticsSettings) -> Iterator[dict[str, Any]]:
    """For each kind of rows and set: patched - donor with TOST, and what was patched."""
    sides: dict[tuple[str, str, str], dict[str, float]] = {}
    clusters = {str(row["example_id"]): str(row["cluster"]) for row in experiment.rows if row.get("cluster")}
    for row in experiment.rows:
        mark = _known(row["f1"])
        if row["kind"] in ("donor", "patched") and mark is not None:
            key = (row["kind"], str(row.get("positions") or ""), str(row.get("of_set") or ""))
            where = f"{experiment.task}, {experiment.model}"
            name = str(row["example_id"])
            marks = sides.setdefault(key, {})
            require(name not in marks, "outcomes", "mark an example once per condition", name, "Drop repeats", where)
            marks[name] = mark
    donor = next((marks for key, marks in sides.items() if key[0] == "donor"), {})
    for (kind, positions, of_set), marks in sides.items():
        if kind == "patched":
            margin = smallest_margin(marks, donor, seed=seed, settings=settings, clusters=clusters)
            yield {
                "task": experiment.task,
                "model": experiment.model,
                "positions": positions,
                "of_set": of_set,
                "difference": equivalence(marks, donor, settings.equivalence_margin, settings.level, clusters).json(),
                "smallest_provable_margin": _told(margin),
            }
