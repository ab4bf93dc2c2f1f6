"""Which heads retrieve, and how much of one model's retrieval heads another model shares.

Notation: H_synth and H_real are head sets of the synthetic-data and the real-data model, N all heads of the model,
s_synth and s_real the mean retrieval scores per head. Head recall is |H_synth ∩ H_real| / |H_real|: the quantity the
study's claim is about. Everything undefined (an empty reference, no variance) is NaN with its reason, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.shapes import Bool, Float
from rhstudy.types import Estimate, Head, HeadScores, HeadSet

RETRIEVAL_THRESHOLD = 0.1
"""Mean score from which a head is a retrieval head (Wu et al. 2024, arXiv 2404.15574)."""

MASS_MODES = ("attention_mass", "qrhead")
"""Modes whose scores are attention, which may be negative and has no threshold: their heads are the top k."""

SCORE_DECIMALS = 6
"""Means are compared after rounding: scores are stored as float32, equal ones may differ in the eighth decimal."""


def _ranked_means(scores: HeadScores) -> Float[np.ndarray, "layers heads"]:
    require(
        scores.num_scored > 0,
        "HeadScores",
        "have at least one scored example",
        f"<{len(scores.example_ids)} examples, all unscored>",
        "See HeadScores.unscored for the reason of each",
        scores.model,
    )
    return np.round(scores.mean(), SCORE_DECIMALS)


def _head_set(scores: HeadScores, chosen: Bool[np.ndarray, "layers heads"], rule: str) -> HeadSet:
    return HeadSet(
        heads=frozenset((int(layer), int(head)) for layer, head in np.argwhere(chosen)),
        heads_per_layer=tuple(int(count) for count in np.isfinite(scores.mean()).sum(axis=1)),
        rule=rule,
        model=scores.model,
        data_digest=scores.data_digest,
        seed=scores.seed,
    )


def retrieval_heads(scores: HeadScores, threshold: float = RETRIEVAL_THRESHOLD, top_k: int = 0) -> HeadSet:
    """The retrieval heads by the rule that was asked for: the top k, or with `top_k` = 0 those past the threshold.

    Raises:
        InputError: as `top_k_set` and `threshold_set`, or a threshold is asked of attention mass.
    """
    if top_k:
        return top_k_set(scores, top_k)
    remedy = "Its scores are attention and have no threshold; QRHead takes about the top 1.5 % of heads"
    ranked = scores.mode not in MASS_MODES
    require(ranked, "top_k", f"be at least 1 for scores of mode {scores.mode}", top_k, remedy, scores.model)
    return threshold_set(scores, threshold)


def threshold_set(scores: HeadScores, threshold: float = RETRIEVAL_THRESHOLD) -> HeadSet:
    """Retrieval heads: {(l, h) : mean score >= threshold} (Wu et al. 2024).

    Means are compared after rounding to 6 decimals, so a mean of exactly the threshold counts however it was stored.

    Args:
        scores: per-example scores; NaN heads (padding of narrow layers) are never chosen.
        threshold: in (0, 1].

    Raises:
        InputError: no example was scored, or the threshold is out of range.
    """
    require(0 < threshold <= 1, "threshold", "be in (0, 1]", threshold, "The published rule is 0.1")
    return _head_set(scores, _ranked_means(scores) >= round(threshold, SCORE_DECIMALS), f"mean score >= {threshold:g}")


def top_k_set(scores: HeadScores, k: int) -> HeadSet:
    """The k heads of highest mean score; ties at the k-th place go to the lowest (layer, head).

    Args:
        scores: per-example scores; NaN heads (padding of narrow layers) are never chosen.
        k: 1 to the number of heads.

    Raises:
        InputError: no example was scored, or k is out of range.
    """
    means = _ranked_means(scores)
    total = int(np.isfinite(means).sum())
    require(1 <= k <= total, "k", f"be between 1 and the model's {total} heads", k, "Ask for fewer heads", scores.model)
    chosen = np.zeros(means.shape, dtype=bool)
    chosen[tuple(np.transpose(_falling(means)[:k]))] = True
    return _head_set(scores, chosen, f"top {k} by mean score")


def _falling(means: Float[np.ndarray, "layers heads"]) -> list[Head]:
    order = np.argsort(-means, axis=None, kind="stable")  # stable keeps (layer, head) order among ties; NaN sorts last
    heads = [divmod(int(index), means.shape[1]) for index in order]
    return [head for head in heads if np.isfinite(means[head])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How far H_synth covers H_real; a NaN field has its reason in `reasons`.

    Attributes:
        recall: R = |H_synth ∩ H_real| / |H_real|.
        precision: |H_synth ∩ H_real| / |H_synth|.
        jaccard: |H_synth ∩ H_real| / |H_synth ∪ H_real|.
        chance_corrected_recall: (R - q) / (1 - q) with q = |H_synth| / N, the recall of as many random heads; at
            most 1, below 0 when worse than chance.
        layer_stratified_recall: the same with q = Σ_l |S_l| |R_l| / N_l / |H_real|, the recall of random heads drawn
            with H_synth's own layer histogram.
        num_synth: |H_synth|.
        num_real: |H_real|.
        num_shared: |H_synth ∩ H_real|.
        reasons: field name -> why it is NaN.
    """

    recall: float
    precision: float
    jaccard: float
    chance_corrected_recall: float
    layer_stratified_recall: float
    num_synth: int
    num_real: int
    num_shared: int
    reasons: Mapping[str, str] = field(default_factory=dict)

    def estimates(self) -> dict[str, Estimate]:
        """The five measures by name, each with its reason when undefined."""
        names = ("recall", "precision", "jaccard", "chance_corrected_recall", "layer_stratified_recall")
        return {name: Estimate(getattr(self, name), self.reasons.get(name, "")) for name in names}


def _ratio(part: int | float, whole: int | float, reason: str) -> Estimate:
    return Estimate(part / whole) if whole else Estimate.undefined(reason)


def _beyond_chance(recall: Estimate, chance: float) -> Estimate:
    if recall.reason:
        return recall
    return _ratio(recall.value - chance, 1 - chance, "random heads would reach recall 1 as well")


def _stratified_chance(synth: HeadSet, real: HeadSet) -> float:
    """Expected recall of random heads with the layer histogram of `synth`."""
    expected = 0.0
    for layer, size in enumerate(synth.heads_per_layer):
        chosen = sum(head[0] == layer for head in synth.heads)
        wanted = sum(head[0] == layer for head in real.heads)
        expected += chosen * wanted / size if size else 0.0
    return expected / len(real)


def head_recall(set_synth: HeadSet, set_real: HeadSet) -> Estimate:
    """|H_synth ∩ H_real| / |H_real|; see `overlap` for arguments and errors."""
    require(
        set_synth.heads_per_layer == set_real.heads_per_layer,
        "HeadSet.heads_per_layer",
        f"equal the reference's {_shape(set_real)}",
        _shape(set_synth),
        "Compare heads of models with one architecture",
        f"{set_synth.model} against {set_real.model}",
    )
    return _ratio(len(set_synth.heads & set_real.heads), len(set_real), "the reference has no retrieval heads")


def overlap(set_synth: HeadSet, set_real: HeadSet) -> Overlap:
    """Overlap of a model's retrieval heads with the reference's; see `Overlap` for the equations.

    Args:
        set_synth: heads of the model being judged.
        set_real: heads of the reference, the denominator of recall.

    Raises:
        InputError: the sets belong to models of different shape.
    """
    recall = head_recall(set_synth, set_real)
    shared, synth, real = len(set_synth.heads & set_real.heads), len(set_synth), len(set_real)
    found = {
        "recall": recall,
        "precision": _ratio(shared, synth, "the compared model has no retrieval heads"),
        "jaccard": _ratio(shared, synth + real - shared, "neither model has retrieval heads"),
        "chance_corrected_recall": _beyond_chance(recall, synth / max(set_synth.num_total, 1)),
        "layer_stratified_recall": _beyond_chance(recall, _stratified_chance(set_synth, set_real) if real else 0.0),
    }
    return Overlap(
        **{name: item.value for name, item in found.items()},
        num_synth=synth,
        num_real=real,
        num_shared=shared,
        reasons={name: item.reason for name, item in found.items() if item.reason},
    )


def _shape(heads: HeadSet) -> str:
    sizes = heads.heads_per_layer
    uniform = len(set(sizes)) == 1
    return f"<{len(sizes)} layers x {sizes[0]} heads>" if uniform else f"<heads per layer {list(sizes)}>"


def _paired(
    mean_synth: Float[np.ndarray, "..."], mean_real: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Both as float64 vectors over the heads that exist; refuses different shapes."""
    first, second = np.asarray(mean_synth, dtype=np.float64), np.asarray(mean_real, dtype=np.float64)
    same = first.shape == second.shape and bool((np.isfinite(first) == np.isfinite(second)).all())
    require(
        same,
        "mean scores",
        f"cover the same heads as the reference's {second.shape}",
        first.shape,
        "Compare scores of models with one architecture, each with a scored example",
    )
    exists = np.isfinite(first)
    return first[exists], second[exists]


def weighted_head_recall(mean_synth: Float[np.ndarray, "..."], mean_real: Float[np.ndarray, "..."]) -> Estimate:
    """Threshold-free head recall, Σ_h min(s_synth, s_real) / Σ_h s_real, in [0, 1].

    Args:
        mean_synth: mean score per head of the model being judged, >= 0, NaN where no head exists.
        mean_real: the reference's.

    Returns:
        NaN with a reason when the reference scores sum to 0, or a score is negative (QRHead's can be).

    Raises:
        InputError: the shapes differ.
    """
    synth, real = _paired(mean_synth, mean_real)
    if min(synth.min(initial=0), real.min(initial=0)) < 0:
        return Estimate.undefined("it is defined for scores >= 0, and one is negative")
    return _ratio(float(np.minimum(synth, real).sum()), float(real.sum()), "every reference score is 0")


def pearson(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Estimate:
    """Pearson's r over heads (or any paired values), two-pass in float64; errors as `weighted_head_recall`.

    Returns:
        NaN with a reason for fewer than 2 pairs or where one side is constant.
    """
    left, right = _paired(first, second)
    if len(left) < 2:
        return Estimate.undefined(f"a correlation needs at least 2 pairs, got {len(left)}")
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return Estimate.undefined(f"every {'first' if np.ptp(left) == 0 else 'second'} value is the same")
    left, right = left - left.mean(), right - right.mean()
    value = float(left @ right / np.sqrt((left @ left) * (right @ right)))
    return Estimate(min(1.0, max(-1.0, value)))


def spearman(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Estimate:
    """Spearman's rho: `pearson` of average ranks (ties share their mean rank); same returns and errors."""
    from scipy.stats import rankdata

    left, right = _paired(first, second)
    return pearson(rankdata(left), rankdata(right))


def cosine(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Estimate:
    """Cosine of two score vectors; NaN with a reason when one is all zero; errors as `weighted_head_recall`."""
    left, right = _paired(first, second)
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    return _ratio(float(left @ right), scale, "one score vector is all zero")


def average_precision(mean_synth: Float[np.ndarray, "layers heads"], set_real: HeadSet) -> Estimate:
    """How well the compared scores rank the reference's heads: Σ_k (R_k - R_{k-1}) P_k over falling scores.

    P_k and R_k are precision and recall of the heads scored at least the k-th distinct value, so ties are taken
    together and their order is irrelevant (as scikit-learn's `average_precision_score`).

    Args:
        mean_synth: mean score per head, NaN where no head exists.
        set_real: the reference's retrieval heads.

    Returns:
        A value in (0, 1]; NaN with a reason when the reference set is empty.

    Raises:
        InputError: the scores are of another model shape than the set.
    """
    exists = np.isfinite(mean_synth)
    require(
        tuple(int(count) for count in exists.sum(axis=1)) == set_real.heads_per_layer,
        "mean scores",
        f"cover the reference's {_shape(set_real)}",
        mean_synth.shape,
        "Compare scores of models with one architecture, each with a scored example",
    )
    if not set_real.heads:
        return Estimate.undefined("the reference has no retrieval heads")
    wanted = np.zeros(mean_synth.shape, dtype=bool)
    wanted[tuple(np.transpose(set_real.ordered()))] = True
    values, hits = np.round(mean_synth[exists], SCORE_DECIMALS), wanted[exists]
    cuts = np.unique(values)[::-1]
    found = np.array([hits[values >= cut].sum() for cut in cuts])
    taken = np.array([(values >= cut).sum() for cut in cuts])
    return Estimate(float((np.diff(found, prepend=0) / hits.sum() * (found / taken)).sum()))


def split_half_reliability(scores: HeadScores, seed: int, num_splits: int = 100) -> Estimate:
    """Reliability of the mean scores over heads: Spearman-Brown 2 r / (1 + r) over random halves of the examples.

    r is Pearson's correlation over heads between the mean scores of two disjoint halves, averaged over `num_splits`
    seeded splits (an odd example is left out at random each time).

    Args:
        scores: at least two scored examples.
        seed: root seed of the splits.
        num_splits: how many splits, at least 1.

    Returns:
        At most 1; NaN with a reason when a half has no variance over heads or fewer than two examples were scored.
    """
    rows = scores.score[[name not in scores.unscored for name in scores.example_ids]].astype(np.float64)
    if len(rows) < 2:
        return Estimate.undefined(f"two halves need at least 2 scored examples, got {len(rows)}")
    draws, half = generator(seed, "split_half_reliability"), len(rows) // 2
    agreements = []
    for _ in range(num_splits):
        order = draws.permutation(len(rows))
        agreement = pearson(rows[order[:half]].mean(axis=0), rows[order[half : 2 * half]].mean(axis=0))
        if agreement.reason:
            return Estimate.undefined("in one half every head has the same score")
        agreements.append(agreement.value)
    mean = float(np.mean(agreements))
    return _ratio(2 * mean, 1 + mean, "the halves are perfectly opposed")


def top_heads(scores: HeadScores, count: int) -> list[tuple[Head, float, float]]:
    """The `count` highest heads (fewer in a smaller model) as ((layer, head), mean, standard error), highest first."""
    means, errors = scores.mean(), scores.standard_error()
    return [(head, float(means[head]), float(errors[head])) for head in _falling(_ranked_means(scores))[:count]]
