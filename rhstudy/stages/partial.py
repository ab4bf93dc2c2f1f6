"""Finished rows of a long stage, one JSON object a line, so that a killed stage starts again where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = "_seconds"


class PartialRows:
    """An append-only file of finished rows, keyed by the values of `fields`: one value, or a tuple of several.

    A line cut short by a kill is dropped when the file is opened again.
    """

    def __init__(self, path: Path, fields: Sequence[str] = ("example_id",)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._key = itemgetter(*fields)
        self.rows: dict[Any, Mapping[str, Any]] = {}
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            self.rows[self._key(row)] = row
            whole += line
        self._stream = path.open("wb")
        self._write(whole)
        self._clock = time.perf_counter()

    def __enter__(self) -> PartialRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def row(self, key: Any) -> dict[str, Any]:
        """The finished row with this key, as it was added."""
        return {name: value for name, value in self.rows[key].items() if name != SECONDS}

    def seconds(self) -> float:
        """Time all finished rows took, in this try and in earlier ones."""
        return sum(float(row[SECONDS]) for row in self.rows.values())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append finished rows, each with its share of the time since the last ones; on disk when this returns."""
        now = time.perf_counter()
        share = (now - self._clock) / max(1, len(rows))
        self._clock = now
        fresh = [{**row, SECONDS: share} for row in rows]
        self._write("".join(json.dumps(row) + "\n" for row in fresh).encode())
        self.rows.update({self._key(row): row for row in fresh})

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())
