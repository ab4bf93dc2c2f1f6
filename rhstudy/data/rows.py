"""Reading rows: local JSONL (plain or gzip) or a data set by hub name, and passages for haystacks.

A reference is a path, or ``hub:NAME`` / ``hub:NAME@SPLIT`` loaded by the library `datasets` (NAME may also be a
local folder in hub layout). Local files need no `datasets`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhstudy.data.facts import Passage, one_line
from rhstudy.errors import InputError, message, require

HUB = "hub:"


@dataclass(frozen=True, slots=True)
class Source:
    """Rows as read, before any task looks at them.

    Attributes:
        reference: as the user gave it.
        sha256: of the file's bytes, or of the rows' canonical JSON for a hub data set.
        rows: (where it stands, for messages; the row's values).
    """

    reference: str
    sha256: str
    rows: Sequence[tuple[str, Mapping[str, Any]]]


def read_source(reference: str, name: str) -> Source:
    """Read all rows behind `reference`.

    Args:
        reference: path of a ``.jsonl`` or ``.jsonl.gz`` file, or ``hub:NAME[@SPLIT]``.
        name: dotted name of the option that holds it, for messages.

    Raises:
        InputError: missing or unreadable file, a line that is not a JSON object (with its number), no rows, a hub
            data set that cannot be loaded.
    """
    if reference.startswith(HUB):
        source = _read_hub(reference, name)
    else:
        content = read_bytes(reference, name)
        lines = _text(content, reference, name).split("\n") if content else []
        rows = list(_json_rows(lines, reference, name))
        source = Source(reference, hashlib.sha256(content).hexdigest(), rows)
    require(bool(source.rows), name, "have at least one row", "<0 rows>", "Check the file", reference)
    return source


def read_bytes(path: str | Path, name: str) -> bytes:
    """The bytes of a file; errors as `read_source`."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(message(name, "be an existing file", str(path), "Check the path")) from None
    except OSError as error:
        raise InputError(message(name, "be a readable file", str(path), f"Reading failed: {error}")) from error


def _text(content: bytes, reference: str, name: str) -> str:
    try:
        if reference.endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise InputError(message(name, "be a whole gzip file", reference, f"Unpacking failed: {error}")) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            message(name, "be UTF-8 text", reference, f"Convert it: {error.reason}", f"line {line}")
        ) from error


def _json_rows(lines: Sequence[str], reference: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{reference}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                message(name, "hold one JSON object a line", line[:60], f"The parser says: {error}", where)
            ) from error
        require(isinstance(row, dict), name, "hold one JSON object a line", row, "Give objects", where)
        yield where, row


def _read_hub(reference: str, name: str) -> Source:
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            message(name, "be a local file where `datasets` is missing", reference, "pip install datasets")
        ) from None
    target, _, split = reference.removeprefix(HUB).partition("@")
    try:
        loaded = datasets.load_dataset(target)
    except Exception as error:  # the library raises many kinds, all of which mean: not loadable
        remedy = f"datasets says: {type(error).__name__}: {str(error)[:200]}"
        raise InputError(message(name, "be a loadable data set", reference, remedy)) from error
    splits = sorted(map(str, loaded))
    require(
        split in splits if split else len(splits) == 1,
        name,
        f"name one of the splits {', '.join(splits)}",
        reference,
        f"Write {HUB}{target}@{splits[0]}",
    )
    rows = [dict(row) for row in loaded[split or splits[0]]]
    canonical = "\n".join(json.dumps(row, sort_keys=True, default=str) for row in rows)
    located = [(f"{reference}, row {index}", row) for index, row in enumerate(rows)]
    return Source(reference, hashlib.sha256(canonical.encode()).hexdigest(), located)


def field_of(row: Mapping[str, Any], key: str, name: str, where: str) -> str:
    """The text under `key`, on one line.

    Raises:
        InputError: the key is missing, not text, or blank.
    """
    require(key in row, f"{name}.{key}", "be given", "<nothing>", f"Keys found: {', '.join(row) or 'none'}", where)
    value = row[key]
    usable = isinstance(value, str) and bool(value.strip())
    require(usable, f"{name}.{key}", "be text that is not blank", value, "Mend the row", where)
    return one_line(value)


def read_passages(reference: str, name: str = "data.passages_file") -> tuple[list[Passage], str]:
    """Passages (keys `title`, `text`) for haystacks, without exact repetitions of the text.

    Returns:
        The passages in file order, and the source's sha256.

    Raises:
        InputError: as `read_source` and `field_of`.
    """
    source = read_source(reference, name)
    passages = {
        text: Passage(field_of(row, "title", name, where), text)
        for where, row in reversed(source.rows)
        for text in [field_of(row, "text", name, where)]
    }
    return list(reversed(passages.values())), source.sha256
