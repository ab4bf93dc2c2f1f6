"""Head scores on disk: `scores.safetensors` (float32 arrays) and `scores.json` (everything else).

Both files are byte-identical for equal scores, so an artifact folder's digest is the scores' identity. The arrays are
`score`, `aligned` (examples, layers, heads), `real_nll` (examples) and, as ``further.NAME``, what else was measured.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from rhstudy.errors import InputError, message, require
from rhstudy.types import HeadScores, HeadSet

SCORES_SCHEMA_VERSION = 1
ARRAYS_FILE = "scores.safetensors"
FACTS_FILE = "scores.json"
HEAD_TABLE = "heads.csv"
_TABLE = ("layer", "head", "mean", "standard_error", "aligned_mean", "aligned_standard_error", "is_retrieval_head")
_ARRAYS = ("score", "aligned", "real_nll")
_FURTHER = "further."
_FACTS: dict[str, type] = {
    "example_ids": list,
    "unscored": dict,
    "model": str,
    "model_digest": str,
    "data_digest": str,
    "mode": str,
    "seed": int,
}


def save_scores(scores: HeadScores, folder: Path) -> None:
    """Write `scores` into `folder` (made if absent); equal scores give equal bytes.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(scores, name), dtype=np.float32) for name in _ARRAYS}
    arrays |= {f"{_FURTHER}{name}": np.ascontiguousarray(values, np.float32) for name, values in scores.further.items()}
    save_file(arrays, folder / ARRAYS_FILE)
    facts = {
        "schema_version": SCORES_SCHEMA_VERSION,
        "example_ids": list(scores.example_ids),
        "unscored": dict(scores.unscored),
        "model": scores.model,
        "model_digest": scores.model_digest,
        "data_digest": scores.data_digest,
        "mode": scores.mode,
        "seed": scores.seed,
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_scores(folder: Path) -> HeadScores:
    """Read what `save_scores` wrote; arrays stay float32.

    Raises:
        InputError: a file is missing, unreadable, of another schema version, or the two disagree.
    """
    facts, arrays = _facts(folder / FACTS_FILE), _arrays(folder / ARRAYS_FILE)
    unknown = sorted(set(facts["unscored"]) - set(facts["example_ids"]))
    require(not unknown, "unscored", "name scored examples", unknown, "Write the file anew", str(folder / FACTS_FILE))
    return HeadScores(
        score=arrays["score"],
        aligned=arrays["aligned"],
        real_nll=arrays["real_nll"],
        example_ids=tuple(facts["example_ids"]),
        unscored=facts["unscored"],
        model=facts["model"],
        model_digest=facts["model_digest"],
        data_digest=facts["data_digest"],
        mode=facts["mode"],
        seed=facts["seed"],
        further={key.removeprefix(_FURTHER): arrays[key] for key in sorted(arrays) if key.startswith(_FURTHER)},
    )


def write_head_table(scores: HeadScores, heads: HeadSet, path: Path) -> None:
    """Write one CSV row a head: layer, head, mean and standard error of both scores, whether it is in `heads`; then
    the means of what else was measured.

    Args:
        scores: per-example scores; heads that do not exist (padding of narrow layers) have no row.
        heads: the retrieval heads.
        path: the file; equal scores give equal bytes.
    """
    aligned = dataclasses.replace(scores, score=scores.aligned)
    more = {name: scores.mean_further(name) for name in sorted(scores.further)}
    columns = [grid for each in (scores, aligned) for grid in (each.mean(), each.standard_error())]
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*_TABLE, *(f"{name}_mean" for name in more)])
        for layer, head in np.argwhere(np.isfinite(columns[0])).tolist():
            values, others = (
                [repr(float(grid[layer, head])) if np.isfinite(grid[layer, head]) else "" for grid in grids]
                for grids in (columns, more.values())
            )
            table.writerow([layer, head, *values, int((layer, head) in heads.heads), *others])


def read_json(path: Path, name: str) -> Any:
    """The JSON value in `path`.

    Args:
        path: the file.
        name: what it should be, for messages.

    Raises:
        InputError: missing, unreadable, or not JSON (with the parser's position).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(message(name, "be an existing file", str(path), "Check the path")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(message(name, "be a readable file", str(path), f"Reading failed: {error}")) from error
    except json.JSONDecodeError as error:
        raise InputError(message(name, "be valid JSON", str(path), f"The parser says: {error}")) from error


def _facts(path: Path) -> dict[str, Any]:
    facts = read_json(path, FACTS_FILE)
    remedy = "Write it anew with `rhstudy detect`"
    require(isinstance(facts, dict), FACTS_FILE, "hold a JSON object", f"<{type(facts).__name__}>", remedy, str(path))
    version = facts.get("schema_version")
    require(
        version == SCORES_SCHEMA_VERSION,
        f"{FACTS_FILE} schema_version",
        f"be {SCORES_SCHEMA_VERSION}",
        version,
        remedy,
        str(path),
    )
    for key, kind in _FACTS.items():
        value = facts.get(key)
        shown = f"<{type(value).__name__}>"
        require(isinstance(value, kind), f"{FACTS_FILE} {key}", f"be a {kind.__name__}", shown, remedy, str(path))
    return dict(facts)


def _arrays(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise InputError(message(ARRAYS_FILE, "be an existing file", str(path), "Check the path")) from None
    except (OSError, SafetensorError) as error:
        must = "be a readable safetensors file"
        raise InputError(message(ARRAYS_FILE, must, str(path), f"Reading failed: {error}")) from error
    missing = sorted(set(_ARRAYS) - set(arrays))
    require(not missing, ARRAYS_FILE, f"hold {', '.join(_ARRAYS)}", sorted(arrays), "Write it anew", str(path))
    return dict(arrays)
