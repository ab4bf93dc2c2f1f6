"""The pooled analysis as tables: slopes with their rivals, all predictors together, leave-one-recipe-out prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rhstudy.stats.layout import Table, interval_cell, number_cell

SUBSETS = (("all", "all"), ("without_flagged", "without real examples"))


def pooled_tables(analysis: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of ``pooled``; the subset without flagged recipes only where there are any."""
    pooled = analysis["pooled"]
    sides = shown_subsets(pooled)
    yield Table(
        title="Slope of F1 within task and model",
        header=(
            "predictor", "recipes", "n recipes", "n cells", "slope", "p (permutation)", "p (wild bootstrap)",
            "p (cluster-robust t)", "r within", "detectable slope", "warnings",
        ),
        rows=[row for key, name in sides for row in _slope_rows(pooled, key, name)],
    )  # fmt: skip
    yield Table(
        title="All predictors together, F1 per standard deviation",
        header=("predictor", "recipes", "n recipes", "coefficient", "p (wild bootstrap)"),
        rows=[
            (name, subset, str(found["n"]), interval_cell(found), number_cell(found["p"], ".3g", found["reason"]))
            for key, subset in sides
            for name, found in pooled[key]["together"].items()
        ],
    )
    yield Table(
        title="Leave-one-recipe-out prediction of F1",
        header=("model", "recipes", "n recipes", "R2 or gain in R2"),
        rows=[row for key, name in sides for row in _prediction_rows(pooled, key, name)],
    )


def shown_subsets(pooled: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and name of the subsets of recipes that differ."""
    has_flagged = pooled["all"]["recipes"] != pooled["without_flagged"]["recipes"]
    return [(key, name) for key, name in SUBSETS if key == "all" or has_flagged]


def _slope_rows(pooled: Mapping[str, Any], key: str, subset: str) -> Iterator[tuple[str, ...]]:
    side = pooled[key]
    for name, found in {pooled["predictor"]: side, **side["rivals"]}.items():
        slope, power = found["slope"], found["smallest_detectable_slope"]
        yield (
            name,
            subset,
            str(found["num_recipes"]),
            str(found["num_cells"]),
            interval_cell(slope),
            *(number_cell(found[kind]["p"], ".3g", found[kind]["reason"]) for kind in ("slope", "wild", "clustered")),
            number_cell(found["correlation"], ".2f", found["reasons"].get("correlation", "")),
            number_cell(power["value"], ".3g", power["reason"]),
            "; ".join(dict.fromkeys([*slope["warnings"], *found["clustered"]["warnings"]])) or "none",
        )


def _prediction_rows(pooled: Mapping[str, Any], key: str, subset: str) -> Iterator[tuple[str, ...]]:
    found, own = pooled[key]["prediction"], pooled["predictor"]
    names = {
        "recall": own,
        "rivals": "all rivals",
        "both": f"all rivals and {own}",
        "gain_over_means": f"gain of {own} over the means of task and model",
        "gain_over_rivals": f"gain of {own} over all rivals",
    }
    for name, title in names.items():
        yield _prediction_row(title, subset, found[name])
    for rival, pair in found["each_rival"].items():
        yield _prediction_row(rival, subset, pair["r2"])
        yield _prediction_row(f"gain of {own} over {rival}", subset, pair["gain_of_recall"])


def _prediction_row(title: str, subset: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    is_gain = title.startswith("gain")
    shown = interval_cell(record) if is_gain else number_cell(record["estimate"], ".3f", record["reason"])
    return title, subset, str(record["n"]), shown
