"""What an intervention leaves: outcomes per example and condition, their means, the statistics, headline numbers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.heads.files import read_json
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.stage_run import StageRun

OUTCOMES = "outcomes.jsonl"
TABLE = "outcomes.csv"
CONDITIONS = "conditions.json"
NECESSITY = "necessity.json"
MARKS = ("f1", "exact_match", "gold_nll")
METRICS = ("f1", "exact_match", "gold_logp")
_STATISTICS = ("statsmodels", "scipy", "pandas")


def condition_means(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean marks of every condition over the examples that have one, in the order of the conditions; None without."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in outcomes:
        grouped.setdefault(row["condition"], []).append(row)
    found = []
    for rows in grouped.values():
        known = {name: [row[name] for row in rows if row[name] is not None] for name in MARKS}
        means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
        same = {name: rows[0][name] for name in ("condition", "kind", "dose", "draw")}
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


def write_necessity(
    run: StageRun, facts: Mapping[str, Any], doses: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The statistics of every dose, written as ``necessity.json`` beside `facts`.

    On a machine without statsmodels nothing is written, the run is tagged ``rhstudy.necessity`` and the list is empty:
    the outcomes are what costs, and `read_necessity` makes the rest from them.
    """
    try:
        from rhstudy.stats.necessity import necessity
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _STATISTICS:
            raise
        run.set_tags({"rhstudy.necessity": f"none: {error.name} is not installed; `rhstudy report` makes it"})
        return []
    found = necessity(outcomes, doses, facts["level"])
    write_json(run.output_dir / NECESSITY, {**facts, "doses": found})
    return found


def read_necessity(artifacts: ArtifactFolder) -> dict[str, Any]:
    """What ``necessity.json`` holds; made from the outcomes where the machine that measured had no statistics.

    Raises:
        InputError: a file is missing or damaged.
    """
    if (artifacts.path / NECESSITY).is_file():
        return dict(read_json(artifacts.path / NECESSITY, NECESSITY))
    from rhstudy.stats.necessity import necessity

    facts = dict(read_json(artifacts.file(CONDITIONS), CONDITIONS))
    facts.pop("conditions")
    lines = artifacts.file(OUTCOMES).read_text(encoding="utf-8").splitlines()
    return {**facts, "doses": necessity([json.loads(line) for line in lines], facts["doses"], facts["level"])}


def headline(means: Sequence[Mapping[str, Any]], doses: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers a run shows: ``f1_baseline``; per dose k ``f1_top10``, ``f1_random10``, ``drop_f1_top10``,
    ``drop_f1_random10``, ``excess_f1_top10`` (their difference) and ``p_f1_top10``; so for every metric, and of
    the loss ``gold_nll_baseline``, ``gold_nll_top10``, ``gold_nll_random10``.

    Args:
        means: from `condition_means`.
        doses: from `write_necessity`; NaN stands for what is undefined there, nothing where it is empty.
    """
    found = {
        f"{name}_{row['condition']}": _number(row[name]) for row in means if row["kind"] != "random" for name in MARKS
    }
    for dose in dict.fromkeys(row["dose"] for row in means if row["kind"] == "random"):
        draws = [row for row in means if (row["kind"], row["dose"]) == ("random", dose)]
        found |= {f"{name}_random{dose}": float(np.mean([_number(row[name]) for row in draws])) for name in MARKS}
    return found | dict(_effects(doses))


def _effects(doses: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for plan in doses:
        dose = plan["dose"]
        for name in METRICS if dose else ():
            effect = plan[name]
            if name in MARKS:
                yield f"{name}_top{dose}", _number(effect["top"]["estimate"])
                yield f"{name}_random{dose}", _number(effect["random"]["estimate"])
            yield f"drop_{name}_top{dose}", _number(effect["drop"]["estimate"])
            yield f"drop_{name}_random{dose}", _number(effect["random_drop"]["estimate"])
            yield f"excess_{name}_top{dose}", _number(effect["excess"]["estimate"])
            yield f"p_{name}_top{dose}", _number(effect["excess"]["p"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
