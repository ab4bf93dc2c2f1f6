"""Rows of examples as Parquet, in the layout that `datasets.load_dataset("parquet", data_files=...)` reads.

Written row group by row group, so a data set never has to be in memory. Bytes depend on the version of pyarrow, so a
data set is identified by the sha256 of its rows and not by that of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rhstudy.errors import InputError, message

ROWS_PER_GROUP = 32
_TEXTS = ("example_id", "task", "recipe", "question", "prompt", "answer")
_DIGESTS = ("prompt_ids_sha256", "answer_ids_sha256")


def _features() -> Any:
    import datasets

    text, spans = datasets.Value("large_string"), datasets.List(datasets.Value("int64"))
    needle = {
        name: spans for name in ("char_span", "token_span", "answer_char_span", "answer_token_span", "body_token_span")
    }
    return datasets.Features(
        {
            **dict.fromkeys(_TEXTS, text),
            "answers": datasets.List(text),
            "needles": datasets.List(needle),
            "metadata": text,
            "num_prompt_tokens": datasets.Value("int64"),
            **dict.fromkeys(_DIGESTS, text),
        }
    )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows; returns the sha256 of their canonical JSON, one row a line.

    Args:
        path: replaced.
        rows: as `rhstudy.data.examples_file` makes them; ``metadata`` is kept as JSON text.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, found = _features().arrow_schema, hashlib.sha256()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(rows, found):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return found.hexdigest()


def _groups(rows: Iterable[Mapping[str, Any]], found: Any) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        metadata = json.dumps(row["metadata"], sort_keys=True, ensure_ascii=False, allow_nan=False)
        group.append({**row, "metadata": metadata})
        if len(group) == ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with where it stands.

    Raises:
        InputError: the file is missing or no such Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=ROWS_PER_GROUP) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", _restored(row)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        remedy = f"Build it again; pyarrow says: {str(error)[:120]}"
        raise InputError(message("examples file", "be a Parquet file of examples", str(path), remedy)) from error


def _restored(row: Mapping[str, Any]) -> dict[str, Any]:
    needles = [{key: value for key, value in needle.items() if value is not None} for needle in row["needles"]]
    return {**row, "needles": needles, "metadata": json.loads(row["metadata"])}
