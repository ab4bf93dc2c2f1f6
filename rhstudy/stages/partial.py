"""Finished rows of a long stage, one JSON object a line, so that a killed stage starts again where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = "_seconds"


class PartialRows:
    """An append-only file of finished rows, keyed by ``example_id``.

    A line cut short by a kill is dropped when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Mapping[str, Any]] = {}
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            self.rows[row["example_id"]] = row
            whole += line
        self._stream = path.open("wb")
        self._write(whole)
        self._clock = time.perf_counter()

    def __enter__(self) -> PartialRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def __contains__(self, example_id: object) -> bool:
        return example_id in self.rows

    def row(self, example_id: str) -> dict[str, Any]:
        """The finished row of `example_id`, as it was added."""
        return {key: value for key, value in self.rows[example_id].items() if key != SECONDS}

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
        self.rows.update({row["example_id"]: row for row in fresh})

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())
