"""Necessity against its definition in plain loops, and every way it can be undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.stats.necessity import DoseMarks, dose_effect, necessity, randomization_p


def slow(baseline, top, draws):
    """The module's equations, one example and one draw at a time."""
    n = len(baseline)
    drop = sum(baseline[i] - top[i] for i in range(n)) / n
    drops = [sum(baseline[i] - draw[i] for i in range(n)) / n for draw in draws]
    gaps = [sum(draw[i] for draw in draws) / len(draws) - top[i] for i in range(n)]
    hits = sum(1 for other in drops if other >= drop or math.isclose(other, drop, abs_tol=1e-12))
    return {
        "drop": drop,
        "random": sum(sum(draw) / n for draw in draws) / len(draws),
        "random_drop": sum(drops) / len(drops),
        "range": (min(drops), max(drops)),
        "excess": sum(gaps) / n,
        "interval": scipy_stats.t.interval(0.95, n - 1, np.mean(gaps), scipy_stats.sem(gaps)),
        "drop_interval": scipy_stats.t.interval(
            0.95, n - 1, drop, scipy_stats.sem([b - t for b, t in zip(baseline, top, strict=True)])
        ),
        "p": (1 + hits) / (1 + len(draws)),
    }


def named(values):
    return {f"e{index}": float(value) for index, value in enumerate(values)}


def effect(baseline, top, draws, **changes):
    marks = DoseMarks(baseline=named(baseline), top=named(top), draws=[named(draw) for draw in draws], **changes)
    return dose_effect(marks, 0.95)


@pytest.mark.parametrize("seed", range(5))
def test_every_estimate_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    baseline, top = np.round(rng.random(17), 1), np.round(rng.random(17) * 0.6, 1)
    draws = np.round(rng.random((9, 17)) * (0.5 + rng.random((9, 1))), 1)
    found, wanted = effect(baseline, top, draws), slow(baseline, top, draws)
    for name in ("drop", "random", "random_drop", "excess"):
        assert found[name]["estimate"] == pytest.approx(wanted[name], abs=1e-12)
    assert (found["random_drop"]["low"], found["random_drop"]["high"]) == pytest.approx(wanted["range"], abs=1e-12)
    assert (found["excess"]["low"], found["excess"]["high"]) == pytest.approx(wanted["interval"], abs=1e-9)
    assert (found["drop"]["low"], found["drop"]["high"]) == pytest.approx(wanted["drop_interval"], abs=1e-9)
    assert found["excess"]["p"] == pytest.approx(wanted["p"], abs=1e-12)
    assert found["excess"]["estimate"] == pytest.approx(
        found["drop"]["estimate"] - found["random_drop"]["estimate"], abs=1e-12
    )
    assert found["baseline"]["estimate"] == pytest.approx(np.mean(baseline))
    assert (found["num_draws"], found["smallest_p"], found["drop"]["n"]) == (9, 0.1, 17)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]), min_size=1, max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_equal_drops_count_as_equal_whatever_the_order_of_summation(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    ones = [1.0] * len(values)
    assert effect(ones, values, [shuffled])["excess"]["p"] == 1.0


def test_p_counts_draws_that_cost_as_much_and_the_top_heads_themselves():
    assert randomization_p(0.5, [0.1, 0.5, 0.6, 0.2]) == 3 / 5
    assert randomization_p(0.5, [0.1] * 199) == 1 / 200


def test_few_draws_are_said_to_be_few():
    few = effect([1, 0, 1], [0, 0, 1], [[1, 0, 1]] * 3)
    assert few["excess"]["warnings"] == ["3 draws: p cannot be below 0.25; a claim needs 199 or more"]
    many = effect([1, 0, 1], [0, 0, 1], [[1, 0, 1]] * 199)
    assert many["excess"]["warnings"] == []
    assert many["excess"]["p"] == many["smallest_p"] == 1 / 200


def test_what_is_undefined_has_its_reason():
    lone = effect([1, 0, 1], [0, 0, 1], [], control_reason="7 heads are wanted and 5 are left")
    assert lone["drop"]["estimate"] == pytest.approx(1 / 3)
    for name in ("random", "random_drop", "excess"):
        assert (lone[name]["estimate"], lone[name]["reason"]) == (None, "7 heads are wanted and 5 are left")
    assert (lone["excess"]["p"], lone["smallest_p"], lone["num_draws"]) == (None, None, 0)
    none = effect([1, 0, 1], [], [], reason="the model has 8 heads", control_reason="the dose cannot be given")
    for name in ("top", "drop", "excess"):
        assert (none[name]["estimate"], none[name]["reason"]) == (None, "the model has 8 heads")
    assert none["baseline"]["estimate"] == pytest.approx(2 / 3)
    empty = effect([], [], [[]])
    assert {record["reason"] for record in empty.values() if isinstance(record, dict)} >= {"no scored example"}
    assert empty["excess"]["estimate"] is None
    same = effect([1, 1, 1], [0, 0, 0], [[1, 1, 1]] * 4)
    assert (same["excess"]["estimate"], same["excess"]["low"], same["excess"]["p"]) == (1.0, None, 0.2)
    assert "same value" in same["excess"]["reason"]


def test_marks_of_other_examples_are_refused():
    with pytest.raises(
        InputError, match=r"top must mark the same examples as the baseline, got <2 examples, baseline 3>"
    ):
        effect([1, 0, 1], [0, 0], [[1, 0, 1]])
    with pytest.raises(InputError, match=r"draws\[1\] must mark the same examples"):
        effect([1, 0], [0, 0], [[1, 0], [1]])
    with pytest.raises(InputError, match=r"control_reason must say why there is no draw, got ''"):
        effect([1, 0], [0, 0], [])


def test_necessity_reads_outcome_rows():
    rows = []
    for example, (base, top, first, second) in {"a": (1, 0, 1, 0.5), "b": (0.5, 0.5, 0.5, 0.5)}.items():
        for kind, dose, draw, mark in (
            ("baseline", 0, None, base), ("top", 1, None, top), ("random", 1, 0, first), ("random", 1, 1, second),
            ("top", 2, None, 0.0),
        ):  # fmt: skip
            marks = {"f1": mark, "exact_match": None if example == "b" else float(mark == 1), "gold_nll": 3 - mark}
            rows.append({"example_id": example, "kind": kind, "dose": dose, "draw": draw, **marks})
    doses = [
        {"dose": 1, "reason": "", "control_reason": ""},
        {"dose": 2, "reason": "", "control_reason": "none left"},
        {"dose": 50, "reason": "the model has 8 heads", "control_reason": "the dose cannot be given"},
    ]
    one, two, fifty = necessity(rows, doses, 0.95)
    assert one["f1"]["drop"]["estimate"] == 0.5
    assert one["f1"]["random_drop"]["estimate"] == 0.125
    assert one["f1"]["excess"]["p"] == 1 / 3
    assert one["exact_match"]["drop"]["n"] == 1
    assert one["gold_logp"]["baseline"]["estimate"] == -2.25
    assert one["gold_logp"]["drop"]["estimate"] == 0.5
    assert two["f1"]["drop"]["estimate"] == 0.75
    assert two["f1"]["excess"]["reason"] == "none left"
    assert fifty["f1"]["top"]["reason"] == "the model has 8 heads"
    assert fifty["dose"] == 50


def outcome(example, kind, dose, draw, nll, f1=1.0):
    return {"example_id": example, "kind": kind, "dose": dose, "draw": draw, "f1": f1, "exact_match": f1,
            "gold_nll": nll}  # fmt: skip


def planned(**changes):
    return {"dose": 1, "reason": "", "control_reason": "", "borrowed": [], **changes}


def test_a_loss_that_is_not_finite_undoes_its_own_metric_alone():
    outcomes = [
        outcome(name, kind, dose, draw, None if (name, kind) == ("b", "top") else 1.0, f1=float(kind != "top"))
        for name in "ab"
        for kind, dose, draw in (("baseline", 0, None), ("top", 1, None), ("random", 1, 0))
    ]
    (found,) = necessity(outcomes, [planned()], 0.95)
    assert found["gold_logp"]["drop"]["estimate"] is None
    assert found["gold_logp"]["drop"]["reason"] == "gold_logp is not finite in 1 of 2 rows"
    assert found["f1"]["drop"]["estimate"] == 1.0
    assert found["f1"]["excess"]["p"] == 0.5


def test_borrowed_controls_are_said_beside_the_p():
    outcomes = [
        outcome(name, kind, dose, draw, 1.0)
        for name in "ab"
        for kind, dose, draw in (("baseline", 0, None), ("top", 1, None), ("random", 1, 0))
    ]
    borrowed = [{"layer": 1, "from_layer": 0, "count": 1}]
    (plain,), (lent,) = (necessity(outcomes, [planned(borrowed=item)], 0.95) for item in ([], borrowed))
    assert not any("not layer-matched" in text for text in plain["f1"]["excess"]["warnings"])
    assert any("not layer-matched and p is not exact" in text for text in lent["f1"]["excess"]["warnings"])
