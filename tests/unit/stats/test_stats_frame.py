"""The arm table: every broken table is refused by name; recipe points leave reference and untuned arms out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from rhstudy.errors import InputError
from rhstudy.stats.frame import ArmRow, arm_frame, head_columns, left_out, recipe_points, validate_frame
from rhstudy.types import Estimate

ROWS = [
    {"task": "mdqa", "model": "m", "recipe": "real", "seed": 0, "f1": 0.5, "is_reference": True, "contains_real": True},
    {"task": "mdqa", "model": "m", "recipe": "real", "seed": 1, "f1": 0.4, "is_reference": True, "contains_real": True},
    {"task": "mdqa", "model": "m", "recipe": "a", "seed": 0, "f1": 0.2, "is_reference": False, "contains_real": False},
    {"task": "mdqa", "model": "m", "recipe": "a", "seed": 1, "f1": 0.4, "is_reference": False, "contains_real": False},
    {"task": "mdqa", "model": "m", "recipe": "b", "seed": 0, "f1": 0.1, "is_reference": False, "contains_real": True},
]


def table(**columns):
    return pd.DataFrame(ROWS).assign(**columns)


def test_a_minimal_table_gains_every_column():
    found = validate_frame(table())
    assert next(iter(found["arm"])) == "mdqa/m/a/0"
    assert found["head_recall"].isna().all()
    assert list(found["arm"][found["is_reference_arm"]]) == ["mdqa/m/real/0"]
    assert not found["is_untuned"].any()
    pd.testing.assert_frame_equal(validate_frame(found), found)


def test_a_given_reference_arm_is_kept():
    found = validate_frame(table(is_reference_arm=[False, True, False, False, False]))
    assert list(found["arm"][found["is_reference_arm"]]) == ["mdqa/m/real/1"]
    marked = table(is_reference_arm=[False, True, False, False, False])
    both = validate_frame(pd.concat([marked, table(task="musique", is_reference_arm=False)]))
    assert list(both["arm"][both["is_reference_arm"]]) == ["mdqa/m/real/1", "musique/m/real/0"]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"recipe": ["", "r", "r", "r", "r"]}, r"column recipe must hold non-empty text, got \[''\]"),
        ({"task": [1, "r", "r", "r", "r"]}, r"column task must hold non-empty text, got \[1\]"),
        ({"seed": [0.5, 0, 0, 0, 0]}, r"column seed must hold whole numbers, got \[0.5\]"),
        ({"is_untuned": ["no"] * 5}, r"column is_untuned must hold true or false, got \['no'\]"),
        ({"f1": ["x"] * 5}, r"column f1 must hold numbers, got <other values>"),
        ({"train_loss": [np.inf] * 5}, r"column train_loss must hold finite numbers or NaN, got <inf>"),
        ({"f1": [1.2, 0, 0, 0, 0]}, r"column f1 must be at most 1, got \[1.2\] \(mdqa/m/real/0\)"),
        ({"jaccard": [-0.1, 0, 0, 0, 0]}, r"column jaccard must be between 0 and 1, got \[-0.1\]"),
        ({"head_recall@top5": [2.0, 0, 0, 0, 0]}, r"column head_recall@top5 must be between 0 and 1, got \[2.0\]"),
        ({"cosine": [1.2, 0, 0, 0, 0]}, r"column cosine must be at most 1"),
        ({"num_retrieval_heads": [-1, 0, 0, 0, 0]}, r"column num_retrieval_heads must be at least 0, got \[-1"),
        ({"seed": [0, 0, 0, 1, 0]}, r"arm table must have one row per task, model, recipe and seed, got \['mdqa/m/re"),
        ({"recipe_digest": ["x", "y", "", "", ""]}, r"column recipe must have one recipe_digest each within a task"),
        ({"recipe_digest": ["x", "x", "z", "z", "z"]}, r"column recipe_digest must have one recipe each within a task"),
        (
            {"is_reference_arm": [False, False, True, False, False]},
            r"column is_reference_arm must mark an arm of the reference recipe, got \['mdqa/m/a/0'\]",
        ),
        (
            {"is_reference_arm": [True, True, False, False, False]},
            r"column is_reference_arm must mark one arm per task and model, got \['mdqa/m'\]",
        ),
        ({"is_untuned": [True, False, False, False, False]}, r"column is_untuned must exclude is_reference"),
    ],
)
def test_broken_tables(columns, match):
    with pytest.raises(InputError, match=match):
        validate_frame(table(**columns))


def test_empty_and_incomplete_tables():
    with pytest.raises(InputError, match="arm table must have at least one row"):
        validate_frame(pd.DataFrame())
    with pytest.raises(InputError, match="column f1 must be in the arm table"):
        validate_frame(table().drop(columns="f1"))


def test_rows_carry_reasons_and_refuse_unknown_measures():
    nothing = Estimate.undefined("the reference has no retrieval heads")
    found = arm_frame([ArmRow(task="t", model="m", recipe="a", seed=0, measures={"head_recall": nothing})])
    assert math.isnan(found["head_recall"].iloc[0])
    assert found["reasons"].iloc[0] == {"head_recall": "the reference has no retrieval heads"}
    with pytest.raises(InputError, match=r"ArmRow.measures must name columns of the arm table, got \['recall'\]"):
        arm_frame([ArmRow(task="t", model="m", recipe="a", seed=0, measures={"recall": nothing})])
    assert head_columns({"recall": nothing, "jaccard": nothing}).keys() == {"head_recall", "jaccard"}


def test_points_are_recipe_means_without_reference_and_untuned():
    frame = validate_frame(table(head_recall=[1, 0.9, 0.5, 0.7, 0.1]))
    points = recipe_points(frame, "head_recall")
    assert points.recipes == ("a", "b")
    np.testing.assert_allclose(points.x, [0.6, 0.1])
    np.testing.assert_allclose(points.f1, [0.3, 0.1])
    assert points.num_seeds == (2, 1)
    assert points.without_flagged().recipes == ("a",)
    untuned = validate_frame(table(head_recall=0.5, is_untuned=[False, False, False, False, True]))
    assert recipe_points(untuned, "head_recall").recipes == ("a",)


def test_seed_means_that_are_equal_but_for_rounding_are_ties():
    rows = [
        {"task": "t", "model": "m", "recipe": recipe, "seed": seed, "f1": 0.1, "head_recall": value}
        for recipe, values in {"a": (0.4, 0.5), "b": (0.3, 0.6)}.items()
        for seed, value in enumerate(values)
    ]
    x = recipe_points(validate_frame(pd.DataFrame(rows)), "head_recall").x
    assert (0.4 + 0.5) / 2 != (0.3 + 0.6) / 2
    assert x[0] == x[1]


def test_a_seed_without_predictor_leaves_both_means_and_is_named():
    frame = validate_frame(table(head_recall=[1, 1, 0.5, np.nan, 0.1]))
    points = recipe_points(frame, "head_recall")
    np.testing.assert_allclose(points.f1, [0.2, 0.1])
    assert points.dropped == ("left out a seed 1 (head_recall is NaN: not recorded)",)


def test_many_arms_left_out_for_one_reason_are_one_line():
    frame = validate_frame(table(head_recall=np.nan))
    wanted = "left out 5 arms, a seed 0, a seed 1, b seed 0, ... (head_recall is NaN: not recorded)"
    assert left_out(frame, ["head_recall", "f1"]) == (wanted,)
    assert left_out(frame.head(2), ["head_recall"]) == (
        "left out a seed 0, a seed 1 (head_recall is NaN: not recorded)",
    )
    many = pd.concat([frame] * 201)
    assert left_out(many, ["head_recall"])[1:] == ("and 5 more arms",)


def test_points_of_an_unknown_predictor_or_two_tasks_are_refused():
    frame = validate_frame(table())
    with pytest.raises(InputError, match="predictor must be a column of the arm table, got 'f1'"):
        recipe_points(frame, "f1")
    two = validate_frame(pd.concat([table(), table(task="musique")]))
    with pytest.raises(InputError, match="arm table must hold one task and model, got <2 groups>"):
        recipe_points(two, "head_recall")
