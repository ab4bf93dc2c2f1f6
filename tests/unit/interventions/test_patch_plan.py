"""Which sets are patched, their matched random sets, and the reason of each set that cannot be given."""

from __future__ import annotations

import pytest

from rhstudy.errors import InputError
from rhstudy.interventions.patch_plan import PatchSettings, plan_patches
from rhstudy.types import HeadSet


def head_set(heads, shape=(6, 6, 6), model="m"):
    return HeadSet(heads=frozenset(heads), heads_per_layer=shape, rule="given", model=model, data_digest="d", seed=0)


REAL = head_set([(0, 1), (1, 2), (1, 3), (2, 0)])
SYNTH = head_set([(1, 2), (2, 0), (2, 5)])


def test_the_sets_are_what_they_are_called():
    plan = plan_patches(REAL, SYNTH, PatchSettings(), seed=0)
    found = {planned.name: planned for planned in plan.sets}
    assert found["intersection"].heads == ((1, 2), (2, 0))
    assert found["complement"].heads == ((0, 1), (1, 3))
    assert found["retrieval"].heads == ((0, 1), (1, 2), (1, 3), (2, 0))
    assert len(found["all_heads"].heads) == 18
    assert not any(planned.reason for planned in plan.sets)
    assert plan.heads == sorted(found["all_heads"].heads)


def test_every_set_is_patched_at_both_kinds_of_rows_beside_its_draws():
    plan = plan_patches(REAL, SYNTH, PatchSettings(num_draws=3), seed=0)
    names = [condition.condition_id for condition in plan.conditions]
    assert names[:4] == ["recipient", "donor", "all_positions/intersection", "all_positions/random_intersection_0"]
    assert len(names) == len(set(names)) == 2 + 2 * (3 * 4 + 1)
    assert names[-1] == "answer_rows/all_heads"
    row = plan.conditions[3].labels()
    assert row == {
        "condition": "all_positions/random_intersection_0",
        "kind": "random",
        "positions": "all_positions",
        "of_set": "intersection",
        "draw": 0,
    }


def test_random_sets_match_in_layers_and_hold_no_retrieval_head_of_either_model():
    plan = plan_patches(REAL, SYNTH, PatchSettings(num_draws=4), seed=0)
    for condition in plan.conditions:
        if condition.kind == "random":
            (planned,) = [item for item in plan.sets if item.name == condition.of_set]
            assert [layer for layer, _ in condition.heads] == [layer for layer, _ in planned.heads]
            assert not set(condition.heads) & (REAL.heads | SYNTH.heads)
    assert len({condition.heads for condition in plan.conditions if condition.kind == "random"}) > 8


def test_draws_follow_the_seed_and_the_set_and_nothing_else():
    def draws(seed, synth=SYNTH, **settings):
        plan = plan_patches(REAL, synth, PatchSettings(**settings), seed)
        return {planned.name: planned.controls.draws for planned in plan.sets}

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert draws(0, sets=("retrieval",))["retrieval"] == draws(0)["retrieval"]
    same = draws(0, synth=REAL)
    assert same["intersection"] == same["retrieval"], "equal sets have equal draws"


def test_a_set_that_is_empty_stays_with_its_reason():
    plan = plan_patches(REAL, REAL, PatchSettings(), seed=0)
    reasons = {planned.name: planned.facts()["reason"] for planned in plan.sets}
    assert reasons["complement"] == "the other model has every retrieval head of the real-data model"
    assert not any("complement" in condition.condition_id for condition in plan.conditions)
    plan = plan_patches(REAL, head_set([]), PatchSettings(), seed=0)
    assert plan.sets[0].reason == "the two models share no retrieval head"
    plan = plan_patches(head_set([]), SYNTH, PatchSettings(), seed=0)
    assert plan.sets[2].reason == "the real-data model has no retrieval head"
    assert [condition.of_set for condition in plan.conditions[2:]] == ["all_heads", "all_heads"]


def test_a_set_without_draws_says_why():
    narrow = head_set([(0, 0), (0, 1)], shape=(3,))
    found = {planned.name: planned.facts() for planned in plan_patches(narrow, narrow, PatchSettings(), 0).sets}
    assert "2 heads are wanted and 1 of 3 are left" in found["retrieval"]["control_reason"]
    assert found["all_heads"]["control_reason"] == "every head is in the set"
    found = {planned.name: planned.facts() for planned in plan_patches(REAL, SYNTH, PatchSettings(num_draws=0), 0).sets}
    assert found["retrieval"]["control_reason"] == "none was asked for"


def test_bad_settings_are_refused():
    cases = {
        r"patching.sets must name each once, at least one, got \(\)": {"sets": ()},
        "patching.positions must name each once": {"positions": ("answer_rows", "answer_rows")},
        "patching.num_draws must be at least 0, got -1": {"num_draws": -1},
        r"patching.threshold must lie in \(0, 1\], got 0": {"threshold": 0.0},
        "patching.level must be between 0 and 1, got 1": {"level": 1.0},
        "patching.num_resamples must be at least 100, got 9": {"num_resamples": 9},
    }
    for wanted, changes in cases.items():
        with pytest.raises(InputError, match=wanted):
            PatchSettings(**changes)
    with pytest.raises(InputError, match=r"head sets must be of models with heads \(6, 6, 6\) a layer, got \(6, 6\)"):
        plan_patches(REAL, head_set([], shape=(6, 6)), PatchSettings(), 0)
