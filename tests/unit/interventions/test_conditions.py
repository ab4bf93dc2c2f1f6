"""The plan of a knockout: doses with their heads, controls and reasons."""

from __future__ import annotations

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.interventions.conditions import KnockoutSettings, plan_knockout
from rhstudy.types import HeadScores


def scores(mean):
    values = np.asarray(mean, dtype=np.float64)[None]
    return HeadScores(
        score=values,
        aligned=values,
        example_ids=("e0",),
        unscored={},
        real_nll=np.zeros(1),
        model="tiny",
        model_digest="m",
        data_digest="d",
        mode="teacher_forced",
        seed=0,
    )


MEAN = [[0.9, 0.0, 0.05, 0.0, 0.0, 0.0], [0.1, 0.5, 0.0, 0.0, 0.0, 0.0]]


def plan(mean=MEAN, seed=0, **changes):
    return plan_knockout(scores(mean), KnockoutSettings(**changes), seed)


def test_conditions_are_the_baseline_the_top_heads_and_their_draws():
    found = plan(doses=(2, 1), num_draws=3)
    assert [dose.dose for dose in found.doses] == [1, 2, 3]
    assert [dose.is_all_retrieval_heads for dose in found.doses] == [False, False, True]
    tops = {item.dose: item.heads for item in found.conditions if item.kind == "top"}
    assert tops == {1: ((0, 0),), 2: ((0, 0), (1, 1)), 3: ((0, 0), (1, 0), (1, 1))}
    assert [item.condition_id for item in found.conditions[:6]] == [
        "baseline", "top1", "random1_0", "random1_1", "random1_2", "top2",
    ]  # fmt: skip
    retrieval = found.retrieval_heads.heads
    assert all(not set(item.heads) & retrieval for item in found.conditions if item.kind == "random")
    assert found.conditions[0].heads == ()


def test_a_dose_that_cannot_be_given_or_has_no_controls_keeps_its_reason():
    found = plan(doses=(5, 7, 99), num_draws=2)
    five, seven, many = (dose for dose in found.doses if dose.dose != 3)
    assert (five.reason, five.controls.reason, len(five.controls.draws)) == ("", "", 2)
    assert five.notes == (
        "below the threshold (mean score >= 0.1): 2 of 5 heads",
        "mean score 0, rank arbitrary: 1 of 5 heads",
    )
    assert seven.reason == ""
    assert seven.controls.reason.startswith("7 heads are wanted and 5 of 12 are left")
    assert many.reason == "the model has 12 heads"
    assert many.facts()["control_reason"] == "the dose cannot be given"
    given = {item.dose for item in found.conditions if item.kind == "top"}
    assert given == {3, 5, 7}


def test_no_retrieval_head_is_a_dose_with_a_reason():
    found = plan(mean=np.full((2, 3), 0.01), doses=(1,))
    assert [(dose.dose, dose.reason) for dose in found.doses] == [
        (0, "no head with mean score >= 0.1"),
        (1, ""),
    ]


def test_draws_of_a_dose_depend_on_the_seed_and_on_no_other_dose():
    def draws(found, dose):
        return [item.heads for item in found.conditions if (item.kind, item.dose) == ("random", dose)]

    assert draws(plan(doses=(2,)), 2) == draws(plan(doses=(1, 2, 5)), 2)
    assert draws(plan(doses=(2,), num_draws=5), 2) != draws(plan(doses=(2,), num_draws=5, seed=1), 2)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"doses": (1, 0)}, r"knockout.doses must all be at least 1, got \(1, 0\)"),
        ({"doses": (), "include_all_retrieval_heads": False}, r"knockout.doses must name a dose, got \(\)"),
        ({"num_draws": 0}, r"knockout.num_draws must be at least 1, got 0"),
        ({"threshold": 0.0}, r"knockout.threshold must lie in \(0, 1\], got 0.0"),
        ({"level": 1.0}, r"knockout.level must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(changes, wanted):
    with pytest.raises(InputError, match=wanted):
        KnockoutSettings(**changes)
