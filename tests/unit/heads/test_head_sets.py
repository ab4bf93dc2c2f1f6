"""Head sets and overlap measures against their definitions, written out over Python sets and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from rhstudy.errors import InputError
from rhstudy.heads import sets
from rhstudy.types import HeadScores, HeadSet


def make_scores(score, unscored=(), **changes):
    score = np.asarray(score, dtype=changes.pop("dtype", np.float64))
    ids = tuple(f"e{index}" for index in range(len(score)))
    values = {
        "score": score,
        "aligned": score,
        "example_ids": ids,
        "unscored": {ids[index]: "no needle token" for index in unscored},
        "real_nll": np.zeros(len(score)),
        "model": "tiny",
        "model_digest": "m",
        "data_digest": "d",
        "mode": "teacher_forced",
        "seed": 3,
    }
    return HeadScores(**(values | changes))


def make_set(heads, sizes=(4, 4, 4)):
    return HeadSet(heads=frozenset(heads), heads_per_layer=sizes, rule="r", model="tiny", data_digest="d", seed=0)


def test_threshold_includes_a_mean_of_exactly_the_threshold_and_skips_padding():
    score = np.zeros((10, 2, 3))
    score[0, 0, 1] = 1.0  # mean exactly 0.1
    score[:, 1, 0] = 0.0999
    score[:, 1, 2] = np.nan
    found = sets.threshold_set(make_scores(score))
    assert found.heads == {(0, 1)}
    assert found.heads_per_layer == (3, 2)
    assert found.num_total == 5
    assert found.rule == "mean score >= 0.1"
    assert (found.model, found.data_digest, found.seed) == ("tiny", "d", 3)


def test_threshold_set_is_the_same_before_and_after_float32_storage():
    score = np.zeros((7, 1, 1))
    score[0] = 0.7  # mean 0.1 in exact arithmetic, 0.69999999 in float32
    assert len(sets.threshold_set(make_scores(score))) == 1
    assert len(sets.threshold_set(make_scores(score, dtype=np.float32))) == 1


def test_unscored_examples_do_not_enter_the_mean():
    score = np.stack([np.full((1, 2), 0.2), np.full((1, 2), np.nan)])
    assert len(sets.threshold_set(make_scores(score, unscored=[1]))) == 2


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_threshold_out_of_range(threshold):
    with pytest.raises(InputError, match=r"threshold must be in \(0, 1\]"):
        sets.threshold_set(make_scores(np.ones((1, 1, 1))), threshold)


def test_no_scored_example_is_refused():
    nothing = make_scores(np.full((1, 2, 2), np.nan), unscored=[0])
    with pytest.raises(InputError, match="HeadScores must have at least one scored example, got <1 examples, all unsc"):
        sets.threshold_set(nothing)


def test_top_k_breaks_ties_by_layer_then_head_and_skips_nan():
    score = np.array([[[0.5, np.nan, 0.2], [0.2, 0.9, 0.2]]])
    scores = make_scores(score)
    assert sets.top_k_set(scores, 3).ordered() == [(0, 0), (0, 2), (1, 1)]
    assert sets.top_k_set(scores, 4).ordered() == [(0, 0), (0, 2), (1, 0), (1, 1)]
    assert len(sets.top_k_set(scores, 5)) == 5


def test_top_k_of_many_tied_heads_is_the_first_k():
    score = np.zeros((1, 30, 9))
    score[0, 29, 8] = 0.5
    assert sets.top_k_set(make_scores(score), 11).ordered() == [*((i // 9, i % 9) for i in range(10)), (29, 8)]


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_out_of_range(k):
    with pytest.raises(InputError, match="k must be between 1 and the model's 5 heads"):
        sets.top_k_set(make_scores(np.array([[[0.5, np.nan, 0.2], [0.2, 0.9, 0.2]]])), k)


heads = st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, 3)))


@settings(max_examples=60, deadline=None)
@given(heads, heads)
def test_overlap_is_the_definition(synth, real):
    found = sets.overlap(make_set(synth), make_set(real))
    both = len(synth & real)
    values = found.estimates()
    if real:
        recall, q = both / len(real), len(synth) / 12
        assert found.recall == pytest.approx(recall, abs=1e-12)
        expected = 0.0
        for layer in range(3):  # hypergeometric mean per layer
            expected += sum(h[0] == layer for h in synth) * sum(h[0] == layer for h in real) / 4
        stratified = expected / len(real)
        assert found.chance_corrected_recall == pytest.approx(
            (recall - q) / (1 - q) if q < 1 else math.nan, nan_ok=True
        )
        if stratified < 1:
            assert found.layer_stratified_recall == pytest.approx((recall - stratified) / (1 - stratified))
    else:
        assert values["recall"].reason == "the reference has no retrieval heads"
        assert values["chance_corrected_recall"].reason == "the reference has no retrieval heads"
    assert found.precision == pytest.approx(both / len(synth) if synth else math.nan, nan_ok=True)
    assert found.jaccard == pytest.approx(both / len(synth | real) if synth | real else math.nan, nan_ok=True)
    for estimate in values.values():
        assert math.isnan(estimate.value) == bool(estimate.reason)


def test_stratified_chance_is_the_mean_over_layer_matched_draws():
    rng = np.random.default_rng(0)
    synth, real = make_set({(0, 0), (0, 1), (2, 3)}), make_set({(0, 1), (0, 2), (1, 0), (2, 3)})
    recalls = []
    for _ in range(4000):
        drawn = {(0, int(h)) for h in rng.choice(4, 2, replace=False)} | {(2, int(rng.integers(4)))}
        recalls.append(len(drawn & real.heads) / 4)
    chance = float(np.mean(recalls))
    found = sets.overlap(synth, real)
    assert found.layer_stratified_recall == pytest.approx((found.recall - chance) / (1 - chance), abs=0.02)


def test_every_head_chosen_leaves_no_room_beyond_chance():
    everything = make_set({(layer, head) for layer in range(3) for head in range(4)})
    found = sets.overlap(everything, make_set({(0, 0)}))
    assert found.recall == 1
    assert found.reasons["chance_corrected_recall"] == "random heads would reach recall 1 as well"


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (4, 4), (6, 3, 3)])
def test_sets_of_different_shapes_are_refused(sizes):
    with pytest.raises(
        InputError, match=r"HeadSet.heads_per_layer must equal the reference's <3 layers x 4 heads>, got"
    ):
        sets.overlap(make_set(set(), sizes), make_set(set()))


vectors = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20)


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_weighted_recall_is_the_definition(pairs):
    synth, real = (np.array(side) for side in zip(*pairs, strict=True))
    found = sets.weighted_head_recall(synth, real)
    total = sum(real)
    if total:
        assert found.value == pytest.approx(sum(min(a, b) for a, b in pairs) / total, abs=1e-12)
        assert 0 <= found.value <= 1 + 1e-12
    else:
        assert found.reason == "every reference score is 0"


def test_vector_measures_equal_scipy():
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = np.round(rng.random((2, 5, 6)), 1)
        assert sets.pearson(first, second).value == pytest.approx(
            scipy_stats.pearsonr(first.ravel(), second.ravel())[0], abs=1e-10
        )
        assert sets.spearman(first, second).value == pytest.approx(
            scipy_stats.spearmanr(first.ravel(), second.ravel())[0], abs=1e-10
        )
        naive = sum(a * b for a, b in zip(first.ravel(), second.ravel(), strict=True))
        naive /= math.sqrt(sum(a * a for a in first.ravel())) * math.sqrt(sum(b * b for b in second.ravel()))
        assert sets.cosine(first, second).value == pytest.approx(naive, abs=1e-10)


def test_padding_is_left_out_of_vector_measures():
    first, second = np.array([[0.1, 0.5], [0.4, np.nan]]), np.array([[0.2, 0.3], [0.9, np.nan]])
    expected = scipy_stats.pearsonr([0.1, 0.5, 0.4], [0.2, 0.3, 0.9])[0]
    assert sets.pearson(first, second).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", [sets.pearson, sets.spearman, sets.cosine, sets.weighted_head_recall])
@pytest.mark.parametrize("other", [np.zeros((3, 2)), np.array([[np.nan, 0, 0], [0, 0, 0]])])
def test_vectors_of_different_models_are_refused(measure, other):
    with pytest.raises(InputError, match=r"mean scores must cover the same heads as the reference's"):
        measure(np.ones((2, 3)), other)


@pytest.mark.parametrize(
    ("measure", "first", "second", "reason"),
    [
        (sets.pearson, [1.0], [1.0], "a correlation needs at least 2 pairs, got 1"),
        (sets.pearson, [1.0, 1.0], [0.0, 1.0], "every first value is the same"),
        (sets.spearman, [0.0, 1.0], [1.0, 1.0], "every second value is the same"),
        (sets.cosine, [0.0, 0.0], [0.0, 1.0], "one score vector is all zero"),
        (sets.weighted_head_recall, [0.5, 0.0], [0.0, 0.0], "every reference score is 0"),
        (sets.weighted_head_recall, [0.5, 0.1], [0.5, -0.1], "it is defined for scores >= 0, and one is negative"),
        (sets.weighted_head_recall, [-0.5, 0.1], [0.5, 0.1], "it is defined for scores >= 0, and one is negative"),
    ],
)
def test_undefined_vector_measures_say_why(measure, first, second, reason):
    found = measure(np.array(first), np.array(second))
    assert math.isnan(found.value)
    assert found.reason == reason


def test_average_precision_by_hand_and_under_ties():
    mean = np.array([[0.9, 0.8, 0.7, 0.6]])
    real = make_set({(0, 0), (0, 2)}, (4,))
    assert sets.average_precision(mean, real).value == pytest.approx((1 / 1 + 2 / 3) / 2)
    tied = np.array([[0.9, 0.5, 0.5, 0.1]])
    assert sets.average_precision(tied, make_set({(0, 1)}, (4,))).value == pytest.approx(1 / 3)
    assert sets.average_precision(tied, make_set({(0, 2)}, (4,))).value == pytest.approx(1 / 3)


def test_average_precision_is_the_area_over_untied_ranks():
    rng = np.random.default_rng(2)
    for _ in range(20):
        mean = rng.permutation(12).reshape(3, 4) / 12
        real = {(int(a), int(b)) for a, b in np.argwhere(rng.random((3, 4)) < 0.4)} | {(0, 0)}
        ranked = sorted(np.ndindex(3, 4), key=lambda head: -mean[head])
        precisions = [
            sum(h in real for h in ranked[: rank + 1]) / (rank + 1) for rank, head in enumerate(ranked) if head in real
        ]
        assert sets.average_precision(mean, make_set(real)).value == pytest.approx(np.mean(precisions), abs=1e-12)


def test_average_precision_undefined_or_of_another_shape():
    assert sets.average_precision(np.ones((3, 4)), make_set(set())).reason == "the reference has no retrieval heads"
    with pytest.raises(InputError, match="mean scores must cover the reference's <3 layers x 4 heads>"):
        sets.average_precision(np.ones((4, 3)), make_set({(0, 0)}))


def test_split_half_reliability_is_spearman_brown_and_seeded():
    rng = np.random.default_rng(3)
    truth = rng.random((4, 6))
    noisy = make_scores(np.clip(truth + 0.8 * rng.standard_normal((40, 4, 6)), 0, 1))
    found = sets.split_half_reliability(noisy, 5)
    assert found == sets.split_half_reliability(noisy, 5)
    assert found.value != sets.split_half_reliability(noisy, 6).value
    one = sets.split_half_reliability(noisy, 5, num_splits=1).value
    assert 0.5 < one < 1
    clean = make_scores(np.repeat(truth[None], 7, axis=0))
    assert sets.split_half_reliability(clean, 0).value == pytest.approx(1)


def test_split_half_reliability_of_two_examples_by_hand():
    score = np.array([[[0.1, 0.5, 0.3]], [[0.2, 0.4, 0.9]]])
    r = scipy_stats.pearsonr(score[0, 0], score[1, 0])[0]
    assert sets.split_half_reliability(make_scores(score), 0).value == pytest.approx(2 * r / (1 + r), abs=1e-10)


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (np.ones((1, 1, 3)), "two halves need at least 2 scored examples, got 1"),
        (np.ones((4, 1, 3)), "in one half every head has the same score"),
        (np.array([[[0.0, 1.0]], [[1.0, 0.0]]]), "the halves are perfectly opposed"),
    ],
)
def test_split_half_reliability_undefined(score, reason):
    assert sets.split_half_reliability(make_scores(score), 0).reason == reason


def test_top_heads_carry_mean_and_standard_error():
    rng = np.random.default_rng(4)
    score = rng.random((9, 2, 2))
    (head, mean, error), *rest = sets.top_heads(make_scores(score), 3)
    assert len(rest) == 2
    assert mean == pytest.approx(max(score.mean(axis=0).ravel()))
    assert error == pytest.approx(scipy_stats.sem(score[:, *head]))
