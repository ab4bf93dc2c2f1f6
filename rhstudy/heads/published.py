"""The published score format of Wu et al. 2024 (arXiv 2404.15574): one JSON object {"layer-head": [score, ...]}.

One list entry per scored instance, every head with equally many. The published program counts a copied token at every
decoding step, so its scores can exceed 1 (Mixtral-8x7B has some); they are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.errors import require
from rhstudy.heads.files import read_json
from rhstudy.shapes import Float
from rhstudy.types import Head, HeadScores

PUBLISHED_MODE = "published"
_NAME = "published scores"
_HEAD = re.compile(r"(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,5})")


def read_published(path: Path) -> HeadScores:
    """Import a published score file as `HeadScores` of mode ``published``, seed -1.

    `aligned` and `real_nll` are NaN (the format has neither), the model's name is the file's stem, and both digests
    are ``published:`` + sha256 of the file: it does not tell which weights or data made it.

    Args:
        path: JSON object {"layer-head": [score, ...]}, heads counted from 0 without gaps, scores finite and >= 0.

    Raises:
        InputError: missing, unreadable or not JSON; a key, list, score or head count that breaks the format.
    """
    values = read_json(path, _NAME)
    rows = {parse_head(key, _NAME, str(path)): _instances(key, row, path) for key, row in _object(values, path).items()}
    score = _grid(rows, path)
    digest = f"published:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return HeadScores(
        score=score,
        aligned=np.full_like(score, np.nan),
        example_ids=tuple(f"instance-{index}" for index in range(len(score))),
        unscored={},
        real_nll=np.full(len(score), np.nan),
        model=path.stem,
        model_digest=digest,
        data_digest=digest,
        mode=PUBLISHED_MODE,
        seed=-1,
    )


def write_published(scores: HeadScores, path: Path) -> None:
    """Write `scores` in the published format: scored examples only, existing heads only, equal bytes for equal scores.

    One line, heads by layer and then head: some readers (HeadKV) take the first line, and the heads as they come.

    Raises:
        InputError: no example was scored (the format cannot say why), or a score is negative (as QRHead's can be).
    """
    rows = scores.score[[name not in scores.unscored for name in scores.example_ids]].astype(np.float64)
    require(len(rows) > 0, _NAME, "have at least one scored example", "<none>", "See HeadScores.unscored", scores.model)
    lowest = float(np.nanmin(rows))
    require(lowest >= 0, _NAME, "be >= 0", lowest, "Write a QRHead list, where scores may be negative", scores.model)
    heads = {f"{layer}-{head}": rows[:, layer, head].tolist() for layer, head in np.argwhere(np.isfinite(rows[0]))}
    path.write_text(json.dumps(heads) + "\n", encoding="utf-8")


def parse_head(key: str, name: str, where: str) -> Head:
    """The (layer, head) that ``layer-head`` names, both counted from 0.

    Args:
        key: for instance ``12-3``.
        name: what holds it, for messages.
        where: the file it stands in.

    Raises:
        InputError: another form, leading zeros included.
    """
    require(_HEAD.fullmatch(key) is not None, f"{name} key", 'be "layer-head"', key, "Write for instance 12-3", where)
    layer, head = key.split("-")
    return int(layer), int(head)


def _object(values: Any, path: Path) -> dict[str, Any]:
    remedy = 'Give {"layer-head": [score, ...]}'
    valid = isinstance(values, dict) and bool(values)
    require(valid, _NAME, "be a JSON object with at least one head", f"<{type(values).__name__}>", remedy, str(path))
    return dict(values)


def _instances(key: str, row: Any, path: Path) -> list[float]:
    valid = isinstance(row, list) and len(row) > 0
    require(valid, f"{_NAME} {key}", "be a list of at least one score", row, "Give a score per instance", str(path))
    for value in row:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        sound = number and math.isfinite(value) and value >= 0
        require(sound, f"{_NAME} {key}", "hold finite scores >= 0", value, "Leave unscored instances out", str(path))
    return [float(value) for value in row]


def _grid(rows: dict[Head, list[float]], path: Path) -> Float[np.ndarray, "examples layers heads"]:
    """Stack to (examples, layers, heads); layers with fewer heads are padded with NaN."""
    first = min(rows)
    must = f"have as many scores as head {first[0]}-{first[1]} ({len(rows[first])})"
    for (layer, head), row in rows.items():
        got = f"<{len(row)} scores>"
        require(len(row) == len(rows[first]), f"{_NAME} {layer}-{head}", must, got, "Score every head", str(path))
    num_layers, width = (1 + max(head[axis] for head in rows) for axis in (0, 1))
    for layer in range(num_layers):
        present = sorted(index for owner, index in rows if owner == layer)
        whole = present == list(range(len(present))) and len(present) > 0
        require(whole, f"{_NAME} layer {layer}", "name heads 0, 1, ... without gaps", present, "Add them", str(path))
    grid = np.full((len(rows[first]), num_layers, width), np.nan)
    for (layer, head), row in rows.items():
        grid[:, layer, head] = row
    return grid
