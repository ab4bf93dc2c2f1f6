"""Finished rows of a long stage, one JSON object a line, so that a killed stage starts again where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


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

    def __enter__(self) -> PartialRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def __contains__(self, example_id: object) -> bool:
        return example_id in self.rows

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append finished rows; on disk when this returns."""
        fresh = list(rows)
        self._write("".join(json.dumps(row) + "\n" for row in fresh).encode())
        self.rows.update({row["example_id"]: row for row in fresh})

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())
