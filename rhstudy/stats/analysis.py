"""What a study's arms say: every estimate of one arm table, JSON-ready.

Per task and model: the arms with intervals over examples, the rank correlation of F1 with head recall and with each
rival over recipes (all recipes, and without those that saw a real example), the noise ceiling, and a verdict by a rule
declared before the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rhstudy.configs import plain
from rhstudy.errors import require
from rhstudy.stats.causal import Experiment, causal_analysis
from rhstudy.stats.claims import claims
from rhstudy.stats.correlation import correlate, detectable
from rhstudy.stats.frame import NUMBERS, RecipePoints, cell_reason, recipe_points, validate_frame
from rhstudy.stats.intervals import mean_interval, mean_of, paired_difference, share_interval
from rhstudy.stats.pooled import pooled_analysis
from rhstudy.stats.regression import regress_f1
from rhstudy.stats.statistic import Statistic, StatisticsSettings, null, undefined
from rhstudy.stats.verdict import judge
from rhstudy.types import Estimate, Prediction, json_facts

ANALYSIS_SCHEMA_VERSION = 2
MAX_LISTED_ARMS = 5_000
"""Arms beyond this many in a task and model are analysed and not listed one by one."""
CEILING_MEASURES = (
    "head_recall",
    "weighted_head_recall",
    "precision",
    "jaccard",
    "chance_corrected_recall",
    "layer_stratified_recall",
    "average_precision",
    "cosine",
    "spearman",
)
_F1_TOLERANCE = 1e-6

Predictions = Mapping[str, Sequence[Prediction]]


def analyze_arms(
    frame: pd.DataFrame,
    predictions: Predictions | None,
    *,
    seed: int,
    settings: StatisticsSettings,
    experiments: Sequence[Experiment] = (),
) -> dict[str, Any]:
    """Every statistic of the arm table `frame`; the same seed gives the same numbers.

    Args:
        frame: an arm table; see `rhstudy.stats.frame.validate_frame`.
        predictions: arm name (``task/model/recipe/seed``) -> its predictions on the eval rows, for intervals over
            examples; None where there are none.
        seed: root seed of permutations, resamples and power simulations.
        settings: levels, draws and the verdict rule.
        experiments: outcomes of knockouts and patches, for the causal claims.

    Returns:
        ``groups`` (one per task and model: ``arms``, ``correlations``, ``noise_ceiling``), ``regression``, ``pooled``
        (the primary analysis over all groups), ``verdicts``, ``causal``, ``claims`` (a verdict on each claim),
        ``settings``, ``seed``, ``schema_version``. A null always has a reason beside it.

    Raises:
        InputError: an invalid table, predictions of an unknown arm, or predictions whose mean F1 is not the table's.
    """
    table = validate_frame(frame)
    marks = _checked_predictions(table, predictions or {})
    groups = [part for _, part in table.groupby(["task", "model"], sort=True)]
    analyzed = [_group(part, marks, seed, settings) for part in groups]
    found = {
        "schema_version": ANALYSIS_SCHEMA_VERSION,
        "seed": seed,
        "settings": plain(settings),
        "groups": analyzed,
        "regression": _regression(groups, settings),
        "pooled": pooled_analysis(table, seed=seed, settings=settings),
        "verdicts": judge(analyzed, settings),
        "causal": causal_analysis(experiments, seed=seed, settings=settings),
    }
    return {**found, "claims": claims(found, settings)}


def _checked_predictions(table: pd.DataFrame, predictions: Predictions) -> Predictions:
    unknown = sorted(set(predictions) - set(table["arm"]))
    remedy = "Use the names of rhstudy.stats.frame.arm_name"
    require(not unknown, "predictions", "belong to arms of the table", unknown[:1], remedy)
    for arm, f1 in zip(table["arm"], table["f1"], strict=True):
        if arm in predictions:
            mean = mean_of([item.f1 for item in predictions[arm] if not item.unscored], "").value
            agree = abs(mean - f1) <= _F1_TOLERANCE or (pd.isna(mean) and pd.isna(f1))
            require(agree, "column f1", f"be the mean F1 of the arm's predictions, {mean:.6f}", f1, "Mend it", arm)
    return predictions


def _group(part: pd.DataFrame, marks: Predictions, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    predictors = dict.fromkeys((settings.predictor, *settings.rivals))
    listed = part.head(MAX_LISTED_ARMS)
    reference = next(iter(part["arm"][part["is_reference_arm"]]), "")
    return {
        "task": str(part["task"].iloc[0]),
        "model": str(part["model"].iloc[0]),
        "reference_arm": reference,
        "arms": [_arm(row, marks, reference, settings) for row in listed.to_dict("records")],
        "num_arms_not_listed": len(part) - len(listed),
        "correlations": {name: _correlations(recipe_points(part, name), seed, settings) for name in predictors},
        "noise_ceiling": _noise_ceiling(part),
    }


def _arm(row: Mapping[Any, Any], marks: Predictions, reference: str, settings: StatisticsSettings) -> dict[str, Any]:
    names = (
        "arm",
        "recipe",
        "seed",
        "recipe_digest",
        "is_reference",
        "is_reference_arm",
        "contains_real",
        "is_untuned",
    )
    plain_numbers = [name for name in NUMBERS if name not in ("f1", "exact_match")]
    cells = {name: _cell(row, name) for name in plain_numbers}
    scored = [item for item in marks.get(row["arm"], ()) if not item.unscored]
    hits = [item for item in scored if not pd.isna(item.exact_match)]
    exact = share_interval([item.exact_match for item in hits], settings.level, _clusters(hits))
    f1 = mean_interval([item.f1 for item in scored], settings.level, _clusters(scored))
    return {
        **{name: row[name] for name in names},
        "f1": _over_examples(row, "f1", f1).json(),
        "exact_match": _over_examples(row, "exact_match", exact).json(),
        "difference_to_reference": _difference(str(row["arm"]), reference, marks, settings).json(),
        "num_unscored": len(marks.get(row["arm"], ())) - len(scored),
        **json_facts(cells),
    }


def _clusters(scored: Sequence[Prediction]) -> list[str]:
    return [item.cluster or item.example_id for item in scored]


def _cell(row: Mapping[Any, Any], name: str) -> Estimate:
    return Estimate.undefined(cell_reason(row, name)) if pd.isna(row[name]) else Estimate(float(row[name]))


def _over_examples(row: Mapping[Any, Any], name: str, statistic: Statistic) -> Statistic:
    """The statistic over examples, or the table's own number where no predictions were given."""
    if statistic.n:
        return statistic
    cell = _cell(row, name)
    if cell.reason:
        return undefined(cell.reason, n=0, method=statistic.method)
    reason = "no interval: no predictions were given"
    blank = float("nan")
    return Statistic(estimate=cell.value, low=blank, high=blank, n=0, method="mean of the arm table", reason=reason)


def _difference(arm: str, reference: str, marks: Predictions, settings: StatisticsSettings) -> Statistic:
    method = "paired mean difference, t interval over examples"
    reason = ""
    if not reference:
        reason = "there is no reference arm"
    elif arm == reference:
        reason = "this is the reference arm"
    elif arm not in marks or reference not in marks:
        reason = f"no predictions of {'this' if arm not in marks else 'the reference'} arm were given"
    if reason:
        return undefined(reason, n=0, method=method, tested=True)
    ours, theirs = (
        {item.example_id: item.f1 for item in marks[name] if not item.unscored} for name in (arm, reference)
    )
    clusters = {item.example_id: item.cluster for item in marks[arm]}
    return paired_difference(ours, theirs, settings.level, clusters)


def _correlations(points: RecipePoints, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    flagged = [name for name, real in zip(points.recipes, points.contains_real, strict=True) if real]
    everyone = _correlation(points, seed, settings)
    return {
        "all": everyone,
        "without_flagged": _correlation(points.without_flagged(), seed, settings) if flagged else everyone,
        "flagged_recipes": flagged,
    }


def _correlation(points: RecipePoints, seed: int, settings: StatisticsSettings) -> dict[str, Any]:
    found = correlate(points.x, points.f1, seed=seed, settings=settings).json()
    power = detectable(len(points.x), seed=seed, settings=settings)
    return {
        **found,
        "warnings": [*found["warnings"], *_seed_warnings(points), *points.dropped],
        "smallest_detectable_rho": {"value": null(power.value), "reason": power.reason},
        "recipes": list(points.recipes),
        "num_seeds": list(points.num_seeds),
    }


def _seed_warnings(points: RecipePoints) -> list[str]:
    counts = sorted(set(points.num_seeds))
    return [f"recipes have unequal numbers of seeds: {counts[0]} to {counts[-1]}"] if len(counts) > 1 else []


def _noise_ceiling(part: pd.DataFrame) -> dict[str, Any]:
    """The reference against other seeds of its own recipe: the most that a predictor can be expected to show."""
    others = part[part["is_reference"] & ~part["is_reference_arm"]]
    reason = "no other seed of the reference recipe" if part["is_reference"].any() else "there is no reference arm"
    means = {
        name: mean_of(list(others[name].dropna()), reason if others.empty else "undefined in every seed")
        for name in CEILING_MEASURES
    }
    f1 = mean_of(list(part["f1"][part["is_reference"]].dropna()), "there is no reference arm")
    return {"arms": list(others["arm"]), "num_arms": len(others), **json_facts({**means, "reference_f1": f1})}


def _regression(groups: Sequence[pd.DataFrame], settings: StatisticsSettings) -> dict[str, Any]:
    points = [recipe_points(part, settings.predictor) for part in groups]
    clean = [item.without_flagged() for item in points]
    return {
        "predictor": settings.predictor,
        "all": regress_f1(points, settings).json(),
        "without_flagged": regress_f1(clean, settings).json(),
    }
