"""Which trials are evaluated: the best by each signal, random ones, corners; never by what they score on eval rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from evidence import candidates, config, scores

from rhstudy.errors import InputError
from rhstudy.heads.compare import head_measures
from rhstudy.sweep.selection import Candidate, choose, further_seeds
from rhstudy.sweep.signals import RowSignals, recalls, signals_of, some_rows
from rhstudy.types import Estimate

QUALITIES = [0.3, 0.9, 0.5, 0.1, 0.7]
REFERENCE = scores(0.95, 999)


def test_each_signal_names_its_best_and_the_corners_are_all_there():
    found, _ = candidates(QUALITIES, REFERENCE)
    ways = {choice.way: choice for choice in choose(found, top_k=2, num_random=2, seed=0)}
    assert list(ways) == ["head_recall", "weighted_head_recall", "real_nll", "random", "corners"]
    for name in ("weighted_head_recall", "real_nll"):
        ranked = sorted(found, key=lambda item: -item.signals[name].value)
        assert ways[name].numbers == tuple(item.number for item in ranked[:2]) == (1, 4)
        assert ways[name].chosen == (1,)
    assert ways["corners"].numbers == ways["corners"].chosen == (2,)
    assert len(set(ways["random"].numbers)) == 2
    everyone = choose(found, top_k=1, num_random=99, seed=0)[3]
    assert everyone.numbers == everyone.chosen == (0, 1, 2, 3, 4)


def test_the_choice_knows_no_f1():
    assert {item.name for item in dataclasses.fields(Candidate)} == {
        "number", "knobs", "budget", "corner", "signals", "detect_runs",
    }  # fmt: skip


def test_random_trials_depend_on_the_seed_alone():
    found, _ = candidates(QUALITIES, REFERENCE)
    drawn = [choose(found, top_k=1, num_random=2, seed=seed)[3].numbers for seed in range(20)]
    assert drawn == [choose(found[::-1], top_k=1, num_random=2, seed=seed)[3].numbers for seed in range(20)]
    assert len(set(drawn)) > 3


def test_trials_that_a_signal_cannot_tell_apart_are_all_its_choice_in_random_order():
    found, _ = candidates([0.5] * 6, REFERENCE)
    same = [dataclasses.replace(item, signals={**item.signals, "head_recall": Estimate(1.0)}) for item in found]
    choice = choose(same, top_k=3, num_random=0, seed=1)[0]
    assert choice.chosen == choice.numbers
    assert len(choice.numbers) == 3
    assert choice.note == "6 trials share the highest value"
    assert {choose(same, top_k=3, num_random=0, seed=seed)[0].numbers for seed in range(5)} != {(0, 1, 2)}


def test_a_way_that_names_nothing_says_why():
    found, _ = candidates([0.5, 0.6], REFERENCE)
    none = [dataclasses.replace(item, signals={**item.signals, "head_recall": Estimate.undefined("no heads")})
            for item in found]  # fmt: skip
    ways = {choice.way: choice for choice in choose(none, top_k=1, num_random=0, seed=0)}
    assert (ways["head_recall"].chosen, ways["head_recall"].note) == ((), "no heads")
    assert (ways["random"].chosen, ways["random"].note) == ((), "none was asked for")
    assert (ways["corners"].chosen, ways["corners"].note) == ((), "no trial is one")
    assert choose([], top_k=1, num_random=1, seed=0)[0].note == "there is no complete trial"


def test_further_seeds_are_new():
    assert further_seeds([1, 0], 2) == (2, 3)
    assert further_seeds([5], 3) == (0, 1, 2)
    assert further_seeds([0], 0) == ()


def test_signals_are_the_measures_of_a_study():
    scoring, model = config().scoring, scores(0.6, 4)
    measures = head_measures(model, REFERENCE, scoring.threshold, scoring.top_k)
    found = signals_of([model], REFERENCE, scoring)
    assert found["head_recall"] == measures["recall"]
    assert found["weighted_head_recall"] == measures["weighted_recall"]
    assert found["real_nll"].value == pytest.approx(-np.mean(model.real_nll), rel=1e-6)
    both = recalls([model, scores(0.2, 5)], REFERENCE, scoring)
    alone = [recalls([item], REFERENCE, scoring)["head_recall"].value for item in (model, scores(0.2, 5))]
    assert both["head_recall"].value == pytest.approx(np.mean(alone))


@pytest.mark.parametrize("name", ["head_recall", "weighted_head_recall", "real_nll"])
def test_signals_on_some_rows_are_those_of_a_model_scored_on_these_rows(name):
    scoring = config().scoring
    reference, models = scores(0.95, 9, unscored=(3,)), [[scores(0.8, 1, unscored=(3, 7))], [scores(0.3, 2)]]
    signals = RowSignals(models, reference, scoring)
    assert signals.num_rows == 38
    rows = np.array([0, 2, 5, 30])
    whole = np.array([index for index in range(40) if index not in (3, 7)])[rows]
    expected = [
        signals_of([some_rows(item, whole) for item in seeds], some_rows(reference, whole), scoring)[name].value
        for seeds in models
    ]
    np.testing.assert_allclose(signals.values(name, rows), expected, rtol=1e-6)


def test_models_scored_on_other_rows_are_refused():
    with pytest.raises(InputError, match=r"scores must be of the same score rows"):
        RowSignals([[scores(0.5, 1, num_rows=39)]], REFERENCE, config().scoring)
