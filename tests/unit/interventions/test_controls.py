"""Matched random heads: histogram, disjointness, distinctness, borrowing, exhaustion, seeds."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhstudy.errors import InputError
from rhstudy.interventions.controls import Borrowed, lowest_heads, matched_draws
from rhstudy.seeding import generator


def draw(knocked_out, retrieval=(), sizes=(8, 8, 8), num_draws=20, seed=0):
    return matched_draws(knocked_out, retrieval, sizes, num_draws=num_draws, draws=generator(seed, "controls"))


def histogram(heads):
    return Counter(layer for layer, _ in heads)


@st.composite
def models(draw_from):
    sizes = draw_from(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any))
    heads = [(layer, head) for layer, size in enumerate(sizes) for head in range(size)]
    knocked_out = draw_from(st.sets(st.sampled_from(heads), min_size=1, max_size=6))
    retrieval = draw_from(st.sets(st.sampled_from(heads), max_size=6))
    return sizes, knocked_out, retrieval


@given(models(), st.integers(1, 30), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_what_always_holds(model, num_draws, seed):
    sizes, knocked_out, retrieval = model
    free = [
        (layer, head)
        for layer, size in enumerate(sizes)
        for head in range(size)
        if (layer, head) not in knocked_out | retrieval
    ]
    found = draw(knocked_out, retrieval, sizes, num_draws, seed)
    if len(free) < len(knocked_out):
        assert found.reason == (
            f"{len(knocked_out)} heads are wanted and {len(free)} of {sum(sizes)} are left "
            "outside the knocked-out and the retrieval heads"
        )
        assert not found.draws
        return
    assert not found.reason
    assert len(set(found.draws)) == len(found.draws) == min(num_draws, found.num_distinct)
    wanted = histogram(knocked_out)
    for item in found.borrowed:
        wanted[item.layer] -= item.count
        wanted[item.from_layer] += item.count
    for heads in found.draws:
        assert set(heads) <= set(free)
        assert list(heads) == sorted(set(heads))
        assert histogram(heads) == +wanted
    left = Counter(layer for layer, _ in free)
    assert found.num_distinct == math.prod(math.comb(left[layer], wanted[layer]) for layer in range(len(sizes)))
    assert bool(found.note) == (found.num_distinct < num_draws)
    for item in found.borrowed:  # only a layer with nothing left borrows, and every nearer layer gave all it had
        gave = [layer for layer in range(len(sizes)) if abs(layer - item.layer) < abs(item.from_layer - item.layer)]
        assert all(wanted[layer] == left[layer] for layer in gave)


def test_a_short_layer_borrows_from_the_nearest_and_of_two_as_near_from_the_lower():
    knocked_out = [(2, 0), (2, 1), (2, 2)]
    found = draw(knocked_out, sizes=(4, 1, 4, 4), num_draws=1000)
    assert found.borrowed == (
        Borrowed(layer=2, from_layer=1, count=1),
        Borrowed(layer=2, from_layer=3, count=1),
    )
    assert found.num_distinct == 4 == len(found.draws)
    assert found.note == "only 4 distinct sets exist, all are used"
    assert set(found.draws) == {((1, 0), (2, 3), (3, head)) for head in range(4)}


def test_a_layer_lends_only_what_it_does_not_need():
    found = draw([(0, 0), (0, 1), (1, 0)], sizes=(2, 2, 5), num_draws=3)
    assert found.borrowed == (Borrowed(layer=0, from_layer=2, count=2),)
    assert all(histogram(heads) == {1: 1, 2: 2} for heads in found.draws)


def test_draws_follow_the_seed_and_more_draws_extend_fewer():
    knocked_out = [(0, 1), (1, 4), (1, 5)]
    assert draw(knocked_out).draws == draw(knocked_out).draws
    assert draw(knocked_out).draws != draw(knocked_out, seed=1).draws
    assert draw(knocked_out, num_draws=50).draws[:20] == draw(knocked_out).draws


def test_draws_are_uniform_over_the_sets():
    counts = Counter(draw([(0, 0), (1, 0)], sizes=(4, 4), num_draws=1, seed=seed).draws[0] for seed in range(1800))
    assert set(counts) == {tuple(zip((0, 1), pair, strict=True)) for pair in itertools.product((1, 2, 3), repeat=2)}
    assert max(abs(count - 200) for count in counts.values()) < 60


MEAN = np.array([[0.9, 0.2, 0.03, 0.0, np.nan], [0.5, 0.01, 0.02, 0.05, 0.04], [0.6, 0.3, 0.0, 0.0, 0.0]])


def test_the_lowest_heads_lie_in_the_same_layers_and_are_no_retrieval_heads():
    found = lowest_heads([(0, 0), (1, 0)], [(0, 0), (1, 0), (2, 0), (0, 1)], MEAN)
    assert found.draws == (((0, 3), (1, 1)),)
    assert (found.reason, found.note, found.borrowed) == ("", "", ())


def test_the_lowest_heads_of_a_short_layer_are_the_nearest_layers_and_ties_are_said():
    found = lowest_heads([(0, 0), (0, 1), (0, 3)], [(0, 2)], MEAN)
    assert found.draws == (((1, 1), (1, 2), (1, 4)),)
    assert found.borrowed == (Borrowed(layer=0, from_layer=1, count=3),)
    tied = lowest_heads([(2, 0)], [], MEAN)
    assert tied.draws == (((2, 2),),)
    assert tied.note == "1 of 1 have the score of one that was not taken"


def test_too_few_heads_are_no_lowest_set_with_the_reason():
    found = lowest_heads([(0, head) for head in range(4)], [(1, head) for head in range(5)] + [(2, 0), (2, 1)], MEAN)
    assert not found.draws
    assert found.reason == ("4 heads are wanted and 3 of 14 are left outside the knocked-out and the retrieval heads")


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"num_draws must be at least 1, got 0. 199 draws"):
        draw([(0, 0)], num_draws=0)
    with pytest.raises(InputError, match=r"knocked_out must hold at least one head, got 0"):
        draw([])
    with pytest.raises(InputError, match=r"heads must lie within the model's 3 layers, got \[\(3, 1\)\]"):
        draw([(3, 1)])
