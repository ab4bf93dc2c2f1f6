"""The analysis of a made study: its JSON shape, its nulls, its seeds, its verdicts, its tables."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.stats.analysis import analyze_arms
from rhstudy.stats.frame import validate_frame
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.tables import correlation_table, markdown_report, markdown_table
from rhstudy.stats.verdict import judge, verdict_label

SETTINGS = StatisticsSettings(num_permutations=1000, num_resamples=1000, num_power_draws=500)
STATISTIC = {"estimate", "low", "high", "n", "method", "seed", "reason", "warnings"}


def analyze(study, **changes):
    frame, predictions = study
    return analyze_arms(frame, predictions, seed=0, settings=dataclasses.replace(SETTINGS, **changes))


_FOUND = {}


@pytest.fixture
def analyzed(make_study):
    """The analysis of a made study with the settings of this file: once for all tests that look at the same one."""

    def _analyzed(num_recipes, **made):
        key = (num_recipes, *sorted(made.items()))
        if key not in _FOUND:
            _FOUND[key] = analyze(make_study(num_recipes, **made))
        return copy.deepcopy(_FOUND[key])

    return _analyzed


def nulls_without_reason(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            if item is None and key != "seed":
                reason = value.get("reason") or value.get("reasons", {}).get(key)
                if not reason:
                    yield f"{path}.{key}"
            yield from nulls_without_reason(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nulls_without_reason(item, f"{path}[{index}]")


def test_json_shape(analyzed):
    found = analyzed(12)
    assert set(found) == {
        "schema_version",
        "seed",
        "settings",
        "groups",
        "regression",
        "pooled",
        "verdicts",
        "causal",
        "claims",
    }
    (group,) = found["groups"]
    assert set(group) == {
        *("task", "model", "reference_arm", "arms", "num_arms_not_listed", "correlations", "noise_ceiling")
    }
    assert list(group["correlations"]) == [
        "head_recall",
        "weighted_head_recall",
        "num_retrieval_heads",
        "cosine",
        "real_nll",
        "train_loss",
        "weight_change_norm",
    ]
    for pair in group["correlations"].values():
        assert set(pair) == {"all", "without_flagged", "flagged_recipes"}
        for key in ("all", "without_flagged"):
            assert set(pair[key]) == STATISTIC | {"p", "smallest_detectable_rho", "recipes", "num_seeds"}
    arm = group["arms"][0]
    assert set(arm["f1"]) == set(arm["exact_match"]) == STATISTIC
    assert set(arm["difference_to_reference"]) == STATISTIC | {"p"}
    assert set(found["regression"]) == {"predictor", "all", "without_flagged"}
    assert set(found["verdicts"][0]) == {
        "task",
        "model",
        "claim",
        "label",
        "holm_p",
        "label_without_flagged",
        "holm_p_without_flagged",
        "sentence",
        "reasons",
    }


@pytest.mark.parametrize("num_recipes", [0, 1, 2, 3, 12])
def test_every_null_has_a_reason_and_no_nan_is_left(analyzed, num_recipes):
    found = analyzed(num_recipes)
    json.dumps(found, allow_nan=False)
    assert list(nulls_without_reason(found)) == []
    markdown_report(found)


def test_same_seed_same_numbers(make_study, analyzed):
    study = make_study(12)
    assert analyze(study) == analyzed(12)
    other = analyze_arms(*study, seed=1, settings=SETTINGS)
    assert other["groups"][0]["correlations"] != analyzed(12)["groups"][0]["correlations"]


def test_reference_and_untuned_arms_are_no_points_and_flagged_ones_leave_the_repeat(analyzed):
    pair = analyzed(4)["groups"][0]["correlations"]["head_recall"]
    assert pair["all"]["recipes"] == ["real_limited", *(f"synthetic_{index:02d}" for index in range(4))]
    assert pair["without_flagged"]["recipes"] == [f"synthetic_{index:02d}" for index in range(4)]
    assert pair["flagged_recipes"] == ["real_limited"]
    assert pair["all"]["num_seeds"] == [2] * 5


def test_estimates_equal_scipy_on_recipe_means(make_study, analyzed):
    frame, _ = make_study(12)
    found = analyzed(12)["groups"][0]["correlations"]["real_nll"]["all"]
    points = frame[~frame["is_reference"] & ~frame["is_untuned"]].groupby("recipe")[["real_nll", "f1"]].mean()
    assert found["estimate"] == pytest.approx(scipy_stats.spearmanr(points["real_nll"], points["f1"])[0], abs=1e-10)
    assert found["n"] == 13


def test_noise_ceiling_is_the_other_seeds_of_the_reference(make_study):
    ceiling = analyze(make_study(3, seeds=3))["groups"][0]["noise_ceiling"]
    assert ceiling["arms"] == ["mdqa/tiny/real/1", "mdqa/tiny/real/2"]
    assert ceiling["head_recall"] == pytest.approx((0.9 + 0.8) / 2)
    assert ceiling["reasons"]["jaccard"] == "undefined in every seed"
    alone = analyze(make_study(3, seeds=1))["groups"][0]["noise_ceiling"]
    assert alone["reasons"]["head_recall"] == "no other seed of the reference recipe"


def test_difference_to_the_reference_is_paired(make_study, analyzed):
    _, predictions = make_study(3)
    arms = {arm["arm"]: arm for arm in analyzed(3)["groups"][0]["arms"]}
    found = arms["mdqa/tiny/synthetic_00/1"]["difference_to_reference"]
    ours, real = ([item.f1 for item in predictions[name]] for name in ("mdqa/tiny/synthetic_00/1", "mdqa/tiny/real/0"))
    assert found["p"] == pytest.approx(scipy_stats.ttest_rel(ours, real).pvalue, abs=1e-10)
    assert arms["mdqa/tiny/real/0"]["difference_to_reference"]["reason"] == "this is the reference arm"


def test_without_predictions_there_are_numbers_but_no_intervals(make_study):
    frame, _ = make_study(3)
    arm = analyze_arms(frame, None, seed=0, settings=SETTINGS)["groups"][0]["arms"][0]
    assert arm["f1"]["estimate"] is not None
    assert arm["f1"]["reason"] == "no interval: no predictions were given"


def test_an_arm_or_a_reference_without_predictions_has_no_difference(make_study):
    frame, predictions = make_study(3)
    for missing, side in (("mdqa/tiny/synthetic_00/0", "this"), ("mdqa/tiny/real/0", "the reference")):
        marks = {name: items for name, items in predictions.items() if name != missing}
        arms = analyze_arms(frame, marks, seed=0, settings=SETTINGS)["groups"][0]["arms"]
        found = next(arm for arm in arms if arm["arm"] == "mdqa/tiny/synthetic_00/0")["difference_to_reference"]
        assert found["reason"] == f"no predictions of {side} arm were given"


def test_without_a_reference_arm(make_study):
    frame, predictions = make_study(3)
    kept = frame[~frame["is_reference"]]
    marks = {name: predictions[name] for name in kept["arm"]}
    group = analyze_arms(kept, marks, seed=0, settings=SETTINGS)["groups"][0]
    assert group["reference_arm"] == ""
    assert group["arms"][0]["difference_to_reference"]["reason"] == "there is no reference arm"
    assert group["noise_ceiling"]["reasons"]["head_recall"] == "there is no reference arm"


def test_predictions_must_belong_to_the_table_and_agree_with_it(make_study):
    frame, predictions = make_study(3)
    with pytest.raises(InputError, match=r"predictions must belong to arms of the table, got \['x'\]"):
        analyze_arms(frame, {**predictions, "x": []}, seed=0, settings=SETTINGS)
    wrong = frame.assign(f1=0.5)
    with pytest.raises(InputError, match=r"column f1 must be the mean F1 of the arm's predictions, 0\.\d+, got 0\.5"):
        analyze_arms(wrong, predictions, seed=0, settings=SETTINGS)


def test_an_arm_with_unscored_rows_only_is_null_with_the_reason(make_study):
    frame, predictions = make_study(3)
    name = "mdqa/tiny/synthetic_00/0"
    blank = [
        dataclasses.replace(item, f1=math.nan, exact_match=math.nan, unscored="no gold answer")
        for item in predictions[name]
    ]
    rows = frame.copy()
    rows.loc[rows["arm"] == name, ["f1", "exact_match"]] = np.nan
    rows["reasons"] = [{"f1": "no prediction was scored"} if arm == name else {} for arm in rows["arm"]]
    found = analyze_arms(rows, {**predictions, name: blank}, seed=0, settings=SETTINGS)["groups"][0]
    arm = next(item for item in found["arms"] if item["arm"] == name)
    assert arm["f1"]["estimate"] is None
    assert arm["f1"]["reason"] == "no prediction was scored"
    assert arm["num_unscored"] == len(blank)
    warnings = found["correlations"]["head_recall"]["all"]["warnings"]
    assert "left out synthetic_00 seed 0 (f1 is NaN: no prediction was scored)" in warnings
    assert "recipes have unequal numbers of seeds: 1 to 2" in warnings


@pytest.mark.parametrize(
    ("low", "high", "p", "label"),
    [
        (0.31, 0.9, 0.049, "supported"),
        (0.31, 0.9, 0.051, "undecided at this n"),
        (0.29, 0.9, 0.001, "undecided at this n"),
        (-0.5, 0.29, 0.9, "not supported"),
        (None, None, 0.001, "undecided at this n"),
        (0.5, 0.9, None, "undecided at this n"),
    ],
)
def test_verdict_rule(low, high, p, label):
    assert verdict_label(low, high, p, SETTINGS) == label


def test_holm_over_tasks(make_study):
    parts = [make_study(12, task=task, slope=slope) for task, slope in (("mdqa", 0.5), ("musique", 0.02), ("z", 0.4))]
    frame = validate_frame(pd.concat([part[0] for part in parts]))
    found = analyze_arms(frame, None, seed=0, settings=SETTINGS)
    raw = [group["correlations"]["head_recall"]["all"]["p"] for group in found["groups"]]
    order, running, expected = np.argsort(raw), 0.0, [0.0] * 3
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (3 - rank) * raw[index]))
        expected[index] = running
    assert [verdict["holm_p"] for verdict in found["verdicts"]] == pytest.approx(expected, abs=1e-12)
    assert found["regression"]["all"]["n"] == 39
    assert "within task and model" in found["regression"]["all"]["method"]


def test_holm_leaves_undefined_p_out(make_study):
    good, tiny = make_study(12), make_study(0, task="z")
    frame = validate_frame(pd.concat([good[0], tiny[0]]))
    found = analyze_arms(frame, None, seed=0, settings=SETTINGS)
    assert found["verdicts"][0]["holm_p"] == found["groups"][0]["correlations"]["head_recall"]["all"]["p"]
    assert found["verdicts"][1]["holm_p"] is None
    assert judge(found["groups"], SETTINGS) == found["verdicts"]


def test_verdict_sentences(make_study, analyzed):
    strong = analyze(make_study(14, slope=0.6))["verdicts"][0]
    assert strong["label"] == "supported"
    assert strong["sentence"].startswith("mdqa, tiny: the claim that head recall predicts F1 over recipes is supported")
    assert "Without recipes that contain real examples: supported (n = 14, rho" in strong["sentence"]
    few = analyzed(4)["verdicts"][0]
    assert few["label"] == "undecided at this n"
    assert "a bootstrap needs 10 recipes, there are 5" in few["sentence"]
    none = analyzed(0)["verdicts"][0]
    assert "rho n/a: a correlation needs 3 recipes, there are 1" in none["sentence"]
    frame, _ = make_study(4)
    clean = analyze_arms(frame[frame["recipe"] != "real_limited"], None, seed=0, settings=SETTINGS)["verdicts"][0]
    assert clean["sentence"].endswith("No recipe contains real examples.")


def test_markdown_table(analyzed):
    text = markdown_table(analyzed(3))
    lines = text.splitlines()
    assert lines[0] == "### mdqa, tiny"
    assert lines[2].startswith("| recipe | seed | role | F1 [95 %] | exact match [95 %] | head recall |")
    untuned = next(line for line in lines if line.startswith("| untuned"))
    assert "n/a (an untuned model has no training)" in untuned
    assert "baseline, no point" in untuned
    roles = [line.split(" | ")[2] for line in lines[4:]]
    assert roles.count("reference") == 1
    assert roles.count("noise ceiling, no point") == 1
    assert roles.count("point, has real examples") == 2
    assert all(line.count(" | ") == lines[2].count(" | ") for line in lines[4:])


def test_markdown_escapes_bars_and_shows_warnings(make_study):
    frame, _ = make_study(3)
    renamed = frame.assign(recipe=frame["recipe"].replace("synthetic_00", "a|b"), recipe_digest="")
    found = analyze_arms(renamed.assign(head_recall=0.5), None, seed=0, settings=SETTINGS)
    assert "| a\\|b | 0 |" in markdown_table(found)
    assert "every recipe has the same predictor value" in correlation_table(found)
