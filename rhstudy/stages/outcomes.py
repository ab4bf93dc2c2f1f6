"""What an intervention leaves: outcomes per example and condition, their means, the statistics, headline numbers.

Columns of ``outcomes.jsonl``, a row per example and condition, the conditions of an example one after another:

    example_id, cluster     the example, and the independent row behind it (examples of one cluster are not independent)
    condition, kind         its name; baseline, top, random, lowest, all_heads or single
    mode, scope             how heads were knocked out; null for the baseline, which all modes and scopes share
    dose, draw              number of heads; which random set, null for the others
    text, f1, exact_match   the answer and its marks; null where unscored
    gold_nll                loss of the gold answer, nats per token
    unscored                why there are no marks, else empty
    short_f1, short_nll     the same marks with the gold passages alone as context
    text_nll                loss on plain text; these three are null where they were not measured
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.heads.files import read_json
from rhstudy.interventions.conditions import Variant
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.stage_run import StageRun

OUTCOMES = "outcomes.jsonl"
TABLE = "outcomes.csv"
CONDITIONS = "conditions.json"
NECESSITY = "necessity.json"
KNOCKOUT_VERSION = 2
"""Layout of `CONDITIONS` and `NECESSITY`; since 2 every dose and condition says its mode and scope."""
MARKS = ("f1", "exact_match", "gold_nll")
BEHAVIOURS = ("short_f1", "short_nll", "text_nll")
METRICS = ("f1", "exact_match", "gold_logp")
_STATISTICS = ("statsmodels", "scipy", "pandas")


def condition_means(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean marks of every condition over the examples that have one, in the order of the conditions; None without."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in outcomes:
        grouped.setdefault(row["condition"], []).append(row)
    found = []
    for rows in grouped.values():
        known = {name: [row[name] for row in rows if row[name] is not None] for name in (*MARKS, *BEHAVIOURS)}
        means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
        same = {name: rows[0][name] for name in ("condition", "kind", "mode", "scope", "dose", "draw")}
        found.append({**same, **means, "num_scored": len(known["f1"])})
    return found


def write_outcomes(folder: Path, outcomes: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]) -> None:
    """``outcomes.jsonl``, and the means of the conditions as ``outcomes.csv``, which the MLflow UI shows as a table."""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in outcomes)
    (folder / OUTCOMES).write_text(lines, encoding="utf-8")
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(means[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(means)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON with sorted keys; equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def of_variant(rows: Sequence[Mapping[str, Any]], way: Variant) -> list[Mapping[str, Any]]:
    """The rows of one mode and scope, and the baseline's."""
    return [row for row in rows if (row["mode"], row["scope"]) in ((way.mode, way.scope), (None, None))]


def mark_of(row: Mapping[str, Any], metric: str) -> float | None:
    """`metric` of a row; ``gold_logp`` is minus ``gold_nll``."""
    if metric != "gold_logp":
        return None if row[metric] is None else float(row[metric])
    return None if row["gold_nll"] is None else -float(row["gold_nll"])


def write_necessity(
    run: StageRun, facts: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The statistics of every mode, scope and dose of `facts`, written as ``necessity.json`` beside them.

    On a machine without statsmodels nothing is written, the run is tagged ``rhstudy.necessity`` and the list is empty:
    the outcomes are what costs, and `read_necessity` makes the rest from them.
    """
    try:
        found = with_statistics(facts, outcomes)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _STATISTICS:
            raise
        run.set_tags({"rhstudy.necessity": f"none: {error.name} is not installed; `rhstudy report` makes it"})
        return []
    write_json(run.output_dir / NECESSITY, found)
    return list(found["doses"])


def with_statistics(facts: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``necessity.json`` holds: `facts` (`conditions.json` without the conditions) with the statistics."""
    from rhstudy.stats.necessity import necessity

    tested = [row for row in outcomes if row["kind"] in ("baseline", "top", "random")]
    doses: list[dict[str, Any]] = []
    for way in variants_of(facts):
        doses += necessity(of_variant(tested, way), of_variant(facts["doses"], way), facts["level"])
    shown = [row for row in condition_means(outcomes) if row["kind"] not in ("random", "single")]
    return {**facts, "doses": doses, "means": shown, "behaviour_means": behaviour_means(facts, outcomes)}


def variants_of(facts: Mapping[str, Any]) -> list[Variant]:
    """The modes and scopes of a ``necessity.json``."""
    return list(dict.fromkeys(Variant(mode=dose["mode"], scope=dose["scope"]) for dose in facts["doses"]))


def behaviour_means(facts: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Control behaviours by mode and scope: the mean without a knockout, with the top heads, and over random sets.

    Returns:
        A row per mode, scope and behaviour that was measured, with ``baseline``, ``top``, and of the random sets'
        means ``random`` (their mean), ``random_low``, ``random_high``, ``num_draws``; null where there is none.
    """
    means = [row for row in condition_means(outcomes) if row["dose"] in (0, facts["primary_dose"])]
    found = []
    for way, name in itertools.product(variants_of(facts), BEHAVIOURS):
        kinds: dict[str, list[float]] = {"baseline": [], "top": [], "random": []}
        for row in of_variant(means, way):
            if row["kind"] in kinds and row[name] is not None:
                kinds[row["kind"]].append(row[name])
        draws = kinds["random"]
        if kinds["top"]:
            found.append({
                "mode": way.mode,
                "scope": way.scope,
                "behaviour": name,
                "baseline": kinds["baseline"][0],
                "top": kinds["top"][0],
                "random": float(np.mean(draws)) if draws else None,
                "random_low": min(draws, default=None),
                "random_high": max(draws, default=None),
                "num_draws": len(draws),
            })  # fmt: skip
    return found


def read_necessity(artifacts: ArtifactFolder) -> dict[str, Any]:
    """What ``necessity.json`` holds; made from the outcomes where the machine that measured had no statistics.

    Raises:
        InputError: a file is missing, damaged, or of an earlier version.
    """
    if (artifacts.path / NECESSITY).is_file():
        return _of_this_version(read_json(artifacts.path / NECESSITY, NECESSITY), artifacts)
    facts = _of_this_version(read_json(artifacts.file(CONDITIONS), CONDITIONS), artifacts)
    facts.pop("conditions")
    lines = artifacts.file(OUTCOMES).read_text(encoding="utf-8").splitlines()
    return with_statistics(facts, [json.loads(line) for line in lines])


def _of_this_version(facts: Mapping[str, Any], artifacts: ArtifactFolder) -> dict[str, Any]:
    version, must = facts.get("schema_version"), f"have layout {KNOCKOUT_VERSION}"
    remedy = "Run intervene again: an earlier version measured one mode and scope"
    require(version == KNOCKOUT_VERSION, "knockout", must, version, remedy, str(artifacts.path))
    return dict(facts)


def headline(means: Sequence[Mapping[str, Any]], doses: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers a run shows: ``f1_baseline``; per dose k ``f1_top10``, ``f1_random10``, ``drop_f1_top10``,
    ``drop_f1_random10``, ``excess_f1_top10`` (their difference) and ``p_f1_top10``; so for every metric, and of
    the loss ``gold_nll_baseline``, ``gold_nll_top10``, ``gold_nll_random10``; for all modes and scopes but zero_output
    in decode scope behind ``mode/scope/``. Control behaviours likewise (``text_nll_top10``), where measured.

    Args:
        means: from `condition_means`.
        doses: from `write_necessity`; NaN stands for what is undefined there, nothing where it is empty.
    """
    found: dict[str, float] = {}
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in means:
        if row["kind"] != "single":
            prefix, _, name = row["condition"].rpartition("/")
            label = f"random{row['dose']}" if row["kind"] == "random" else name
            grouped.setdefault(f"{prefix}/{label}" if prefix else label, []).append(row)
    for key, rows in grouped.items():
        prefix, slash, label = key.rpartition("/")
        for name in (*MARKS, *BEHAVIOURS):
            known = [row[name] for row in rows if name in MARKS or row[name] is not None]
            if known:
                found[f"{prefix}{slash}{name}_{label}"] = float(np.mean([_number(value) for value in known]))
    return found | dict(_effects(doses))


def _effects(doses: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for plan in doses:
        dose, before = plan["dose"], Variant(mode=plan["mode"], scope=plan["scope"]).prefix
        for name in METRICS if dose else ():
            effect = plan[name]
            if name in MARKS:
                yield f"{before}{name}_top{dose}", _number(effect["top"]["estimate"])
                yield f"{before}{name}_random{dose}", _number(effect["random"]["estimate"])
            yield f"{before}drop_{name}_top{dose}", _number(effect["drop"]["estimate"])
            yield f"{before}drop_{name}_random{dose}", _number(effect["random_drop"]["estimate"])
            yield f"{before}excess_{name}_top{dose}", _number(effect["excess"]["estimate"])
            yield f"{before}p_{name}_top{dose}", _number(effect["excess"]["p"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
