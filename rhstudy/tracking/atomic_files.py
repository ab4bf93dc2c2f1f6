"""Files that appear whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step; a reader or a crash sees the old file or the new one.

    Raises:
        OSError: the folder is missing, not writable or full; `path` is then as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def number_to_json(value: Any) -> Any:
    """`value`, or for NaN and the infinities the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``: strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def number_from_json(value: Any) -> Any:
    """The inverse of `number_to_json`."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def json_text(value: Any) -> str:
    """Indented JSON, UTF-8 kept readable, one final line break; strict, so NaN raises `ValueError`."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
