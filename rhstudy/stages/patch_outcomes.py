"""What patching leaves: rows per example and condition, means, shares of the gap, counter-examples, headlines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.heads.files import read_json
from rhstudy.stages.outcomes import CONDITIONS, MARKS, METRICS, write_json
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.stage_run import StageRun

__all__ = ["METRICS", "PATCHES", "headline", "read_patching", "write_patches", "write_patching"]

PATCHES = "patches.jsonl"
TABLE = "patches.csv"
PATCHING = "patching.json"
_STATISTICS = ("statsmodels", "scipy", "pandas")
_LABELS = ("condition", "kind", "positions", "of_set", "draw")


def write_patches(folder: Path, outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``patches.jsonl``, and the means of the conditions as ``patches.csv``, which the MLflow UI shows as a table.

    Returns:
        The means, a row a condition in the order of the conditions; None where no example has the mark.
    """
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in outcomes)
    (folder / PATCHES).write_text(lines, encoding="utf-8")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in outcomes:
        grouped.setdefault(row["condition"], []).append(row)
    means = [{**{name: rows[0][name] for name in _LABELS}, **_means(rows)} for rows in grouped.values()]
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(means[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(means)
    return means


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {name: [row[name] for row in rows if row[name] is not None] for name in MARKS}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {**means, "num_scored": len(known["f1"])}


def write_patching(
    run: StageRun,
    facts: Mapping[str, Any],
    sets: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    null: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The statistics of every set, written as ``patching.json`` beside `facts`.

    On a machine without statsmodels nothing is written, the run is tagged ``rhstudy.patching`` and the record is empty:
    the outcomes are what costs, and `read_patching` makes the rest from them.
    """
    try:
        found = {**facts, **_statistics(facts, sets, outcomes, null)}
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _STATISTICS:
            raise
        run.set_tags({"rhstudy.patching": f"none: {error.name} is not installed; `rhstudy report` makes it"})
        return {}
    write_json(run.output_dir / PATCHING, found)
    return found


def _statistics(
    facts: Mapping[str, Any],
    sets: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    null: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from rhstudy.stats.gap_share import Bootstrap, counter_examples, patching_effects

    how = Bootstrap(level=facts["level"], num_resamples=facts["num_resamples"], seed=facts["seed"])
    found = patching_effects(outcomes, sets, facts["positions"], how)
    for patch in found["patches"]:
        patch["null"] = _null_change(patch, null)
    return {**found, "counter_examples": list(counter_examples(found["patches"]))}


def _null_change(patch: Mapping[str, Any], null: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """By metric the change that the same set at the same rows made between two seeds of the real-data model."""
    for other in null["patches"] if null else ():
        if (other["positions"], other["of_set"]) == (patch["positions"], patch["of_set"]):
            return {metric: other[metric]["change"] for metric in METRICS}
    return None


def read_patching(artifacts: ArtifactFolder) -> dict[str, Any]:
    """What ``patching.json`` holds; made from the outcomes, without a null, where the machine had no statistics.

    Raises:
        InputError: a file is missing or damaged.
    """
    if (artifacts.path / PATCHING).is_file():
        return dict(read_json(artifacts.path / PATCHING, PATCHING))
    facts = dict(read_json(artifacts.file(CONDITIONS), CONDITIONS))
    facts.pop("conditions")
    sets = facts.pop("planned_sets")
    lines = artifacts.file(PATCHES).read_text(encoding="utf-8").splitlines()
    return {**facts, **_statistics(facts, sets, [json.loads(line) for line in lines], None)}


def headline(means: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers a run shows: ``f1_recipient``, ``f1_donor``, ``f1_answer_rows_intersection``, so for every mark; and
    ``gap_f1``, ``change_f1_answer_rows_intersection``, ``share_f1_answer_rows_intersection``, ``random_change_f1_...``,
    so for every metric.

    Args:
        means: from `write_patches`.
        found: from `write_patching`; nothing of it where that is empty.
    """
    numbers = {
        f"{name}_{row['condition'].replace('/', '_')}": _number(row[name])
        for row in means
        if row["kind"] != "random"
        for name in MARKS
    }
    return numbers | dict(_effects(found)) if found else numbers


def _effects(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric in METRICS:
        yield f"gap_{metric}", _number(found["models"][metric]["gap"]["estimate"])
        for patch in found["patches"]:
            place = f"{metric}_{patch['positions']}_{patch['of_set']}"
            for name in ("change", "share", "random_change"):
                yield f"{name}_{place}", _number(patch[metric][name]["estimate"])
    clear = [item for item in found["counter_examples"] if item["clear"]]
    yield "num_counter_examples", float(len(found["counter_examples"]))
    yield "num_clear_counter_examples", float(len(clear))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
