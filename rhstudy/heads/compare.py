"""The facts behind `rhstudy heads show A` and `rhstudy heads compare A B`, and the head measures of a study's arms.

In a comparison A is the judged model (trained on synthetic data) and B the reference (trained on real data): recall is
|A ∩ B| / |B|. Only recall, precision and their kin depend on which is which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.heads.exchange import read_head_set, read_qrhead
from rhstudy.heads.files import ARRAYS_FILE, FACTS_FILE, load_scores, read_json
from rhstudy.heads.published import read_published
from rhstudy.heads.sets import (
    RETRIEVAL_THRESHOLD,
    average_precision,
    cosine,
    overlap,
    pearson,
    retrieval_heads,
    spearman,
    split_half_reliability,
    top_heads,
    weighted_head_recall,
)
from rhstudy.types import Estimate, HeadScores, json_facts

NUM_TOP_HEADS = 20


def load_any(path: Path) -> HeadScores:
    """Head scores from an artifact folder of `detect`, one of its two files, a published JSON file or a QRHead list.

    A file named `scores.json` or `scores.safetensors` is ours; of all others a JSON list is taken for a QRHead list and
    the rest for the published format.

    Raises:
        InputError: nothing there, or not in the format its name promises.
    """
    remedy = "Give a run id, a folder or file of `rhstudy detect`, or a published score file or QRHead list"
    require(path.exists(), "heads", "be existing head scores", str(path), remedy)
    if path.is_dir():
        return load_scores(path)
    if path.name in (FACTS_FILE, ARRAYS_FILE):
        return load_scores(path.parent)
    return read_qrhead(path) if isinstance(read_json(path, "head scores"), list) else read_published(path)


def head_measures(
    synth: HeadScores, real: HeadScores, threshold: float = RETRIEVAL_THRESHOLD, top_k: int = 0
) -> dict[str, Estimate]:
    """Every measure of how far `synth` has the retrieval heads of `real`.

    Args:
        synth: scores of the judged model.
        real: scores of the reference.
        threshold, top_k: which heads are retrieval heads; see `retrieval_heads`.

    Returns:
        ``recall``, ``precision``, ``jaccard``, ``chance_corrected_recall``, ``layer_stratified_recall``,
        ``weighted_recall``, ``average_precision``, ``pearson``, ``spearman``, ``cosine``; NaN with a reason where
        undefined.

    Raises:
        InputError: the models differ in shape, or one has no scored example.
    """
    set_real, mean_synth, mean_real = retrieval_heads(real, threshold, top_k), synth.mean(), real.mean()
    return {
        **overlap(retrieval_heads(synth, threshold, top_k), set_real).estimates(),
        "weighted_recall": weighted_head_recall(mean_synth, mean_real),
        "average_precision": average_precision(mean_synth, set_real),
        "pearson": pearson(mean_synth, mean_real),
        "spearman": spearman(mean_synth, mean_real),
        "cosine": cosine(mean_synth, mean_real),
    }


def show_facts(scores: HeadScores, threshold: float = RETRIEVAL_THRESHOLD, top_k: int = 0) -> dict[str, Any]:
    """What one model's scores say, JSON-ready.

    Args:
        scores: of the model.
        threshold, top_k: which heads are retrieval heads; see `retrieval_heads`.

    Returns:
        Among others ``num_heads`` (all query heads of the model), ``num_retrieval_heads``, ``fraction_retrieval``
        (their ratio), ``split_half_reliability`` and ``top_heads`` with mean and standard error.
    """
    heads = retrieval_heads(scores, threshold, top_k)
    reliability = split_half_reliability(scores, max(scores.seed, 0))
    return {
        "model": scores.model,
        "mode": scores.mode,
        "rule": heads.rule,
        "num_layers": scores.num_layers,
        "num_heads": heads.num_total,
        "num_examples": len(scores.example_ids),
        "num_scored": scores.num_scored,
        "num_retrieval_heads": len(heads),
        "fraction_retrieval": len(heads) / heads.num_total,
        "top_heads": [_top(*row) for row in top_heads(scores, NUM_TOP_HEADS)],
        **json_facts({"split_half_reliability": reliability, "largest_standard_error": _largest_error(scores)}),
    }


def head_set_facts(
    scores: HeadScores, given: str, threshold: float = RETRIEVAL_THRESHOLD, top_k: int = 0
) -> dict[str, Any]:
    """How far a model's retrieval heads are those of a QRHead head set, the reference, JSON-ready.

    Args:
        scores: of the model.
        given: ``8-21,8-14``, a file that holds this, or a QRHead config.
        threshold, top_k: which heads are retrieval heads; see `retrieval_heads`.

    Returns:
        ``head_set``: its size, the measures of `Overlap.estimates` and ``average_precision``, which needs no threshold.

    Raises:
        InputError: the set is malformed or not of this model, or no example was scored.
    """
    wanted = read_head_set(given, scores)
    measures = overlap(retrieval_heads(scores, threshold, top_k), wanted).estimates()
    measures["average_precision"] = average_precision(scores.mean(), wanted)
    return {"head_set": {"num_heads": len(wanted), **json_facts(measures)}}


def _largest_error(scores: HeadScores) -> Estimate:
    errors = scores.standard_error()
    if scores.num_scored < 2:
        return Estimate.undefined("a standard error needs at least 2 scored examples")
    return Estimate(float(np.nanmax(errors)))


def _top(head: tuple[int, int], mean: float, error: float) -> dict[str, Any]:
    return {
        "layer": head[0],
        "head": head[1],
        "mean": mean,
        "standard_error": error if np.isfinite(error) else None,  # the reason stands with largest_standard_error
    }


def compare_facts(
    a: HeadScores, b: HeadScores, threshold: float = RETRIEVAL_THRESHOLD, top_k: int = 0
) -> dict[str, Any]:
    """How far model `a` has the retrieval heads of the reference `b`, JSON-ready.

    Args:
        a: the judged model; recall is |A ∩ B| / |B|.
        b: the reference.
        threshold, top_k: which heads are retrieval heads; see `retrieval_heads`.

    Returns:
        The measures of `head_measures` (null where undefined, with ``reasons``); ``num_heads`` (equal for both) and
        ``fraction_retrieval`` of `a`; ``a`` and ``b`` with each side's own counts.

    Raises:
        InputError: the models differ in shape, or one has no scored example.
    """
    measures = json_facts(head_measures(a, b, threshold, top_k))
    sides = {name: _side(scores, threshold, top_k) for name, scores in (("a", a), ("b", b))}
    return {
        "num_heads": sides["a"]["num_heads"],
        "fraction_retrieval": sides["a"]["fraction_retrieval"],
        **measures,
        **sides,
    }


def _side(scores: HeadScores, threshold: float, top_k: int) -> dict[str, Any]:
    facts = show_facts(scores, threshold, top_k)
    names = ("model", "mode", "num_heads", "num_examples", "num_scored", "num_retrieval_heads", "fraction_retrieval")
    return {name: facts[name] for name in names}
