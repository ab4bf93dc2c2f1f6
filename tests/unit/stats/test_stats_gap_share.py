"""Shares of the gap against the naive definition; undefined where donor and recipient do not clearly differ."""

from __future__ import annotations

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.seeding import generator
from rhstudy.stats.gap_share import Bootstrap, counter_examples, patching_effects

HOW = Bootstrap(level=0.95, num_resamples=500, seed=3)
SET = {"of_set": "intersection", "reason": "", "control_reason": ""}
NUM = 40


def rows(kind, marks, positions=None, of_set="", draw=None):
    return [
        {
            "example_id": f"e{index}",
            "kind": kind,
            "positions": positions,
            "of_set": of_set,
            "draw": draw,
            "f1": None if mark is None else float(mark),
            "exact_match": None if mark is None else float(mark > 0.5),
            "gold_nll": None if mark is None else 2.0 - float(mark),
        }
        for index, mark in enumerate(marks)
    ]


def world(lift=0.5, gap=0.5, seed=0):
    rng = generator(seed, "gap share test")
    recipient = rng.uniform(0, 0.3, NUM)
    donor = recipient + gap + rng.normal(0, 0.05, NUM)
    patched = recipient + lift * gap + rng.normal(0, 0.05, NUM)
    draws = [recipient + rng.normal(0, 0.02, NUM) for _ in range(3)]
    outcomes = rows("recipient", recipient) + rows("donor", donor)
    outcomes += rows("patched", patched, "answer_rows", "intersection")
    for number, draw in enumerate(draws):
        outcomes += rows("random", draw, "answer_rows", "intersection", number)
    return outcomes, (recipient, donor, patched, draws)


def test_estimates_are_the_naive_ones():
    outcomes, (recipient, donor, patched, draws) = world()
    found = patching_effects(outcomes, [SET], ["answer_rows"], HOW)
    (patch,) = found["patches"]
    effect = patch["f1"]
    assert found["models"]["f1"]["gap"]["estimate"] == pytest.approx(np.mean(donor - recipient), abs=1e-12)
    assert effect["patched"]["estimate"] == pytest.approx(np.mean(patched), abs=1e-12)
    assert effect["change"]["estimate"] == pytest.approx(np.mean(patched - recipient), abs=1e-12)
    share = np.mean(patched - recipient) / np.mean(donor - recipient)
    assert effect["share"]["estimate"] == pytest.approx(share, abs=1e-12)
    assert effect["share"]["low"] < share < effect["share"]["high"]
    changes = [np.mean(draw - recipient) for draw in draws]
    assert effect["random_change"]["estimate"] == pytest.approx(np.mean(changes), abs=1e-12)
    assert (effect["random_change"]["low"], effect["random_change"]["high"]) == pytest.approx(
        (min(changes), max(changes))
    )
    assert patch["gold_logp"]["share"]["estimate"] == pytest.approx(share, abs=1e-12), "log p = f1 - 2 here"
    assert patch["positions"] == "answer_rows"
    assert not list(counter_examples(found["patches"]))
    again = patching_effects(outcomes, [SET], ["answer_rows"], HOW)
    assert again == found


def test_the_interval_of_a_share_covers_the_truth():
    hits = 0
    for seed in range(60):
        outcomes, _ = world(lift=0.5, seed=seed)
        share = patching_effects(outcomes, [SET], ["answer_rows"], HOW)["patches"][0]["f1"]["share"]
        hits += share["low"] <= 0.5 <= share["high"]
    assert hits >= 51  # of 60 at 95 %: P(fewer than 51) < 0.001


def test_without_a_clear_gap_there_is_no_share():
    outcomes, _ = world(gap=0.0)
    effect = patching_effects(outcomes, [SET], ["answer_rows"], HOW)["patches"][0]["f1"]
    assert effect["share"]["estimate"] is None
    assert effect["share"]["reason"] == "the interval of the gap between donor and recipient does not exclude 0"
    assert effect["change"]["estimate"] is not None
    alike = rows("recipient", [0.2] * 5) + rows("donor", [0.2] * 5)
    alike += rows("patched", [0.2] * 5, "answer_rows", "intersection")
    share = patching_effects(alike, [{**SET, "control_reason": "none"}], ["answer_rows"], HOW)["patches"][0]["f1"]
    assert share["share"]["estimate"] is None
    assert share["random_change"]["reason"] == "none"


def test_a_donor_that_is_worse_has_a_gap_too():
    outcomes, _ = world(lift=0.5, gap=-0.5)
    found = patching_effects(outcomes, [SET], ["answer_rows"], HOW)
    assert found["patches"][0]["f1"]["share"]["estimate"] == pytest.approx(0.5, abs=0.1)
    worse = list(counter_examples(found["patches"]))
    assert [(item["metric"], item["clear"]) for item in worse if item["metric"] != "exact_match"] == [
        ("f1", True),
        ("gold_logp", True),
    ]


def test_a_set_that_was_not_given_says_why():
    outcomes, _ = world()
    planned = {"of_set": "complement", "reason": "there is none", "control_reason": "there is none"}
    found = patching_effects(outcomes, [SET, planned], ["answer_rows"], HOW)["patches"][1]
    for metric in ("f1", "exact_match", "gold_logp"):
        for name in ("patched", "change", "share", "random_change"):
            assert found[metric][name]["estimate"] is None
            assert found[metric][name]["reason"] == "there is none"


def test_an_unscored_mark_undoes_its_metric_and_a_missing_row_is_refused():
    _, (recipient, donor, patched, _) = world()
    marks = [None, *patched[1:]]
    short = rows("recipient", recipient) + rows("donor", donor) + rows("patched", marks, "answer_rows", "intersection")
    effect = patching_effects(short, [{**SET, "control_reason": "none"}], ["answer_rows"], HOW)["patches"][0]["f1"]
    assert effect["share"]["reason"] == "f1 is not finite in 1 of 40 rows"
    with pytest.raises(InputError, match="outcomes of patched must mark the recipient's examples, got <39 examples"):
        patching_effects(short[:-1], [SET], ["answer_rows"], HOW)
