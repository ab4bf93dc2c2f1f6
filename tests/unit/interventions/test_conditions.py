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


def test_conditions_are_the_baseline_the_top_heads_their_draws_and_the_lowest_heads():
    found = plan(doses=(2, 1), num_draws=3)
    assert [dose.dose for dose in found.doses] == [1, 2, 3]
    assert [dose.is_all_retrieval_heads for dose in found.doses] == [False, False, True]
    tops = {item.dose: item.heads for item in found.conditions if item.kind == "top"}
    assert tops == {1: ((0, 0),), 2: ((0, 0), (1, 1)), 3: ((0, 0), (1, 0), (1, 1))}
    assert [item.condition_id for item in found.conditions[:7]] == [
        "baseline", "top1", "random1_0", "random1_1", "random1_2", "lowest1", "top2",
    ]  # fmt: skip
    retrieval = found.retrieval_heads.heads
    assert all(not set(item.heads) & retrieval for item in found.conditions if item.kind in ("random", "lowest"))
    lowest = {item.dose: item.heads for item in found.conditions if item.kind == "lowest"}
    assert lowest == {1: ((0, 1),), 2: ((0, 1), (1, 2)), 3: ((0, 1), (1, 2), (1, 3))}
    assert found.doses[0].notes == ()
    assert found.doses[0].facts()["lowest_note"] == "1 of 1 have the score of one that was not taken"
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


# The draws of the first version, before there were modes, scopes and a primary dose: results found with them stand.
FIRST_DRAWS = {1: (((0, 2),), ((0, 5),), ((0, 3),)), 2: (((0, 2), (1, 2)), ((0, 4), (1, 3)), ((0, 3), (1, 3)))}


def test_the_draws_of_a_seed_are_those_of_the_first_version():
    found = plan(doses=(1, 2), num_draws=3, include_all_retrieval_heads=False)
    for dose, wanted in FIRST_DRAWS.items():
        draws = [item.heads for item in found.conditions if (item.kind, item.dose) == ("random", dose)]
        assert tuple(draws) == wanted


def test_every_mode_and_scope_knocks_out_the_same_sets():
    ways = {"modes": ("zero_output", "mean_output"), "scopes": ("decode", "prefill_and_decode")}
    found = plan(doses=(1, 2), num_draws=2, single_heads=2, **ways)
    assert [(way.mode, way.scope) for way in found.variants] == [
        ("zero_output", "decode"), ("zero_output", "prefill_and_decode"),
        ("mean_output", "decode"), ("mean_output", "prefill_and_decode"),
    ]  # fmt: skip
    by_way = {}
    for item in found.conditions[1:]:
        if item.kind != "single":
            by_way.setdefault((item.mode, item.scope), []).append((item.kind, item.dose, item.draw, item.heads))
    assert len(by_way) == 4
    assert len({tuple(sets) for sets in by_way.values()}) == 1
    names = [item.condition_id for item in found.conditions]
    assert len(set(names)) == len(names)
    assert {"top2", "zero_output/prefill_and_decode/top2", "mean_output/decode/random1_0"} <= set(names)
    assert [item.condition_id for item in found.conditions if item.kind == "baseline"] == ["baseline"]
    assert found.conditions[0].facts()["mode"] is None
    singles = [(item.mode, item.scope, item.heads) for item in found.conditions if item.kind == "single"]
    assert singles == [("zero_output", "decode", ((0, 0),)), ("zero_output", "decode", ((1, 1),))]


def test_hiding_the_needle_is_also_tried_on_all_heads():
    found = plan(doses=(1,), num_draws=1, modes=("block_needle",))
    (every,) = (item for item in found.conditions if item.kind == "all_heads")
    assert (every.condition_id, every.dose) == ("block_needle/decode/all_heads", 12)
    assert len(set(every.heads)) == 12
    assert not [item for item in plan().conditions if item.kind == "all_heads"]


def test_all_heads_one_at_a_time_where_more_are_asked_for_than_there_are():
    found = plan(doses=(1,), num_draws=1, single_heads=99)
    assert len({item.heads for item in found.conditions if item.kind == "single"}) == 12


def test_the_primary_dose_has_draws_of_its_own_number_and_shows_behaviour():
    wide = np.zeros((4, 30))
    wide[0, :3] = wide[1, :2] = 0.5
    settings = KnockoutSettings(doses=(2, 5), num_draws=3, primary_dose=5, num_primary_draws=40, num_behaviour_draws=7)
    found = plan_knockout(scores(wide), settings, seed=0)
    assert [len(dose.controls.draws) for dose in found.doses] == [3, 40]
    shown = [item for item in found.conditions if settings.shows_behaviour(item)]
    assert [item.kind for item in shown] == ["baseline", "top"] + ["random"] * 7
    assert {item.dose for item in shown[1:]} == {5}
    none = KnockoutSettings(behaviours=())
    assert not any(none.shows_behaviour(item) for item in found.conditions)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"doses": (1, 0)}, r"knockout.doses must all be at least 1, got \(1, 0\)"),
        ({"doses": (), "include_all_retrieval_heads": False}, r"knockout.doses must name a dose, got \(\)"),
        ({"num_draws": 0}, r"knockout.num_draws must be at least 1, got 0"),
        ({"num_primary_draws": 0}, r"knockout.num_primary_draws must be at least 1, got 0"),
        ({"primary_dose": 0}, r"knockout.primary_dose must be at least 1, got 0"),
        ({"single_heads": -1}, r"knockout.single_heads must be at least 0, got -1"),
        ({"num_behaviour_draws": -1}, r"knockout.num_behaviour_draws must be at least 0, got -1"),
        ({"num_text_tokens": 1}, r"knockout.num_text_tokens must be at least 2, got 1"),
        ({"modes": ()}, r"knockout.modes must name one or more, each once, got \(\). List for instance zero_output"),
        (
            {"scopes": ("decode", "decode")},
            r"knockout.scopes must name one or more, each once, got \('decode', 'decode'",
        ),
        ({"threshold": 0.0}, r"knockout.threshold must lie in \(0, 1\], got 0.0"),
        ({"level": 1.0}, r"knockout.level must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(changes, wanted):
    with pytest.raises(InputError, match=wanted):
        KnockoutSettings(**changes)
