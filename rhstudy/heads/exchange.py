"""Files of other tools: QRHead's score lists and head sets, DuoAttention's pattern folders, HeadKV's score files.

    QRHead (arXiv 2506.09944)        JSON list [["layer-head", score], ...] by falling score, one score a head: NDCG@10
                                     of a head's document ranking, or attention mass on the gold documents minus a
                                     null query's, which can be negative. `attn_head_set: "8-21,8-14"`: heads to use
    DuoAttention (arXiv 2410.10819)  full_attention_heads.tsv, layers x kv_heads, clipped to [0, 1] when read, and
                                     config.json with sink_size and recent_size
    HeadKV (arXiv 2410.19258)        the published format (published.py), first line only: means in the order of the
                                     keys, divided by their sum, raised to a temperature, reshaped to layers x heads

Only the layouts are theirs: a retrieval score written here does not become a QRScore or a trained gate by it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.errors import InputError, message, require
from rhstudy.heads.files import read_json
from rhstudy.heads.published import parse_head, write_published
from rhstudy.shapes import Float
from rhstudy.types import Head, HeadScores, HeadSet

QRHEAD_MODE = "qrhead"
SINK_SIZE, RECENT_SIZE = 128, 256
"""Sink and recent tokens of every pattern that DuoAttention released."""

PATTERN_FILE, PATTERN_CONFIG = "full_attention_heads.tsv", "config.json"
_QRHEAD = "QRHead scores"
_HEAD_SET = "QRHead head set"


def read_qrhead(path: Path) -> HeadScores:
    """Import a QRHead score list as `HeadScores` of mode ``qrhead`` with one row, the mean: no standard errors.

    `aligned`, `real_nll`, model, digests (``qrhead:`` + sha256 of the file) and seed are as in `read_published`.

    Args:
        path: JSON list of ["layer-head", score], in any order; every head of layers x heads once, scores finite.

    Raises:
        InputError: missing, unreadable or not JSON; a pair that breaks the format, a head named twice or left out.
    """
    values = read_json(path, _QRHEAD)
    valid = isinstance(values, list) and len(values) > 0
    got, remedy = f"<{type(values).__name__}>", 'Give [["layer-head", score], ...]'
    require(valid, _QRHEAD, "be a JSON list with at least one pair", got, remedy, str(path))
    found: dict[Head, float] = {}
    for pair in values:
        head, score = _pair(pair, path)
        require(head not in found, _QRHEAD, "name each head once", pair[0], "Leave one of them out", str(path))
        found[head] = score
    grid = _grid(found, path)[None]
    digest = f"{QRHEAD_MODE}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return HeadScores(
        score=grid,
        aligned=np.full_like(grid, np.nan),
        example_ids=("mean",),
        unscored={},
        real_nll=np.full(1, np.nan),
        model=path.stem,
        model_digest=digest,
        data_digest=digest,
        mode=QRHEAD_MODE,
        seed=-1,
    )


def _pair(pair: Any, path: Path) -> tuple[Head, float]:
    valid = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    require(valid, _QRHEAD, 'hold pairs ["layer-head", score]', pair, 'Write for instance ["12-3", 0.5]', str(path))
    key, value = pair
    number = isinstance(value, int | float) and not isinstance(value, bool)
    remedy = "Score every head of the model"
    require(number and math.isfinite(value), f"{_QRHEAD} {key}", "be a finite number", value, remedy, str(path))
    return parse_head(key, _QRHEAD, str(path)), float(value)


def _grid(found: dict[Head, float], path: Path) -> Float[np.ndarray, "layers heads"]:
    num_layers, num_heads = (1 + max(head[axis] for head in found) for axis in (0, 1))
    # Counted before the grid is made: a head "999999-999999" would ask for terabytes.
    must = f"name every head of {num_layers} layers x {num_heads} heads"
    got = f"<{len(found)} of {num_layers * num_heads} heads>"
    require(len(found) == num_layers * num_heads, _QRHEAD, must, got, "Score every head of the model", str(path))
    grid = np.zeros((num_layers, num_heads))
    for head, score in found.items():
        grid[head] = score
    return grid


def write_qrhead(scores: HeadScores, path: Path) -> None:
    """Write the mean scores as a QRHead list: by falling score, ties by layer and head.

    Raises:
        InputError: no example was scored, or the layers differ in their number of heads.
    """
    pairs = [(f"{layer}-{head}", float(mean)) for (layer, head), mean in np.ndenumerate(_means(scores, _QRHEAD))]
    path.write_text(json.dumps(sorted(pairs, key=lambda pair: -pair[1])) + "\n", encoding="utf-8")


def _means(scores: HeadScores, name: str) -> Float[np.ndarray, "layers heads"]:
    """Mean scores of a model with equally many heads in every layer, which is all that these formats can hold."""
    got, remedy = f"<{len(scores.example_ids)} examples, all unscored>", "See HeadScores.unscored"
    require(scores.num_scored > 0, name, "have at least one scored example", got, remedy, scores.model)
    means = scores.mean()
    sizes, remedy = np.isfinite(means).sum(axis=1).tolist(), "Export the published format, which can hold them"
    require(set(sizes) == {scores.num_heads}, name, "have as many heads in every layer", sizes, remedy, scores.model)
    return means


def write_head_set(heads: HeadSet, path: Path) -> None:
    """Write `heads` as the value of QRHead's ``attn_head_set``, ``17-3,18-7``; its order means nothing there.

    Raises:
        InputError: the set is empty, which QRHead cannot read.
    """
    remedy = "Lower the threshold or take the top k"
    require(len(heads) > 0, _HEAD_SET, "name at least one head", f"<none with {heads.rule}>", remedy, heads.model)
    path.write_text(",".join(f"{layer}-{head}" for layer, head in heads.ordered()) + "\n", encoding="utf-8")


def read_head_set(given: str, scores: HeadScores) -> HeadSet:
    """A QRHead head set, as a set of heads of the model that `scores` are of.

    Args:
        given: ``8-21,8-14``, or a file that holds this or is a QRHead config (YAML with ``attn_head_set``).
        scores: of the model, whose layers and heads the set must lie in.

    Raises:
        InputError: unreadable, not of this form, ``full_heads``, a head named twice or that the model does not have.
    """
    # A long list is no path that a file system could be asked about.
    text, where = (given, "") if set(given) <= set("0123456789-, ") else (_head_set_text(Path(given)), given)
    remedy = 'Give "8-21,8-14", or a file that holds it'
    require(text.strip() not in ("", "full_heads"), _HEAD_SET, "be a list of heads", text, remedy, where)
    named = [parse_head(key.strip(), _HEAD_SET, where) for key in text.split(",")]
    twice = sorted({f"{layer}-{head}" for layer, head in named if named.count((layer, head)) > 1})
    require(not twice, _HEAD_SET, "name each head once", twice, "Leave one of them out", where)
    sizes = tuple(int(count) for count in np.isfinite(scores.mean()).sum(axis=1))
    strange = [f"{layer}-{head}" for layer, head in named if layer >= len(sizes) or head >= sizes[layer]]
    must = f"name heads of the model's {scores.num_layers} layers x {scores.num_heads} heads"
    require(not strange, _HEAD_SET, must, strange, "Take a set of this model, counted from 0", where)
    return HeadSet(
        heads=frozenset(named),
        heads_per_layer=sizes,
        rule=f"named by {Path(given).name if where else 'the command line'}",
        model=scores.model,
        data_digest="",
        seed=-1,
    )


def _head_set_text(path: Path) -> str:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))  # a bare "8-21,8-14" is a YAML string
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        must = 'be heads as "8-21,8-14", or a readable text or YAML file'
        raise InputError(message(_HEAD_SET, must, str(path), f"Reading failed: {error}")) from error
    text = value.get("attn_head_set") if isinstance(value, dict) else value
    got, remedy = f"<{type(text).__name__}>", 'Write attn_head_set: "8-21,8-14"'
    require(isinstance(text, str), _HEAD_SET, "be a string", got, remedy, str(path))
    return str(text).strip()


def write_duoattention(
    scores: HeadScores,
    folder: Path,
    *,
    num_kv_heads: int,
    sink_size: int = SINK_SIZE,
    recent_size: int = RECENT_SIZE,
) -> Float[np.ndarray, "layers kv_heads"]:
    """Write a DuoAttention pattern folder: value(l, g) = max of the mean scores of kv head g's query heads.

    DuoAttention's own values are gates alpha in [0, 1], trained so that a kv head above 0.5 needs the full cache. A
    retrieval score is no gate: only its order means something there, so run DuoAttention with ``--sparsity``, the
    quantile of values below which kv heads keep sink and recent tokens only. Kv heads of value 0 (or less, which is
    clipped) are ties that DuoAttention breaks at random.

    Args:
        scores: query head h shares the kv head h // (heads / num_kv_heads), as in every grouped-query model.
        folder: made if absent; its two files are replaced.
        num_kv_heads: key/value heads of a layer; divides the number of query heads.
        sink_size: first tokens that a streaming head keeps, at least 1.
        recent_size: last tokens that a streaming head keeps, at least 1.

    Returns:
        What was written.

    Raises:
        InputError: an argument is out of range; no example was scored, layers differ in their number of heads, or no
            score is above 0.
    """
    name, means = "DuoAttention pattern", _means(scores, "DuoAttention pattern")
    divides = num_kv_heads >= 1 and scores.num_heads % num_kv_heads == 0
    must = f"divide the {scores.num_heads} query heads of a layer"
    require(divides, "num_kv_heads", must, num_kv_heads, "It is num_key_value_heads in the model's config.json")
    for key, value in {"sink_size": sink_size, "recent_size": recent_size}.items():
        require(value >= 1, key, "be at least 1", value, f"Released patterns have {SINK_SIZE} and {RECENT_SIZE}")
    values = np.asarray(means.reshape(scores.num_layers, num_kv_heads, -1).max(axis=2))
    highest, remedy = float(values.max()), "With ties alone the choice of heads would be random"
    require(highest > 0, name, "have a score above 0", highest, remedy, scores.model)
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / PATTERN_FILE, values, delimiter="\t")
    config = {"sink_size": sink_size, "recent_size": recent_size}
    (folder / PATTERN_CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")
    return values


def write_headkv(scores: HeadScores, path: Path) -> None:
    """Write the published format after checking that HeadKV can use it.

    Raises:
        InputError: no example was scored, layers differ in their number of heads (HeadKV reshapes), a mean score is
            negative (its power is NaN), or all are 0 (HeadKV divides by their sum).
    """
    name, means = "HeadKV scores", _means(scores, "HeadKV scores")
    lowest, total = float(means.min()), float(means.sum())
    require(lowest >= 0, name, "be >= 0", lowest, "HeadKV raises them to a power", scores.model)
    require(total > 0, name, "have a sum above 0", total, "HeadKV divides by it: no head retrieves here", scores.model)
    write_published(scores, path)
