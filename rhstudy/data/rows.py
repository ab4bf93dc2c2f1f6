"""Reading rows: local JSON (plain or gzip) or a data set by hub name, and passages for haystacks.

A reference is the path of a JSONL file (an object a line), of a ``.json`` file (one object, or a list of them), of a
folder of such files, or ``hub:NAME[:SUBSET][@SPLIT]`` loaded by the library `datasets` (NAME may also be a local folder
in hub layout). Local files need no `datasets`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhstudy.data.facts import Passage, one_line
from rhstudy.errors import InputError, message, require
from rhstudy.hub import CACHED, hub_or_cache

HUB = "hub:"
MAX_CHARS = 1_000_000
"""Texts of a row have fewer characters: that is more than any prompt holds, and mostly a file that was not split."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_COLUMNS = (".parquet", ".arrow", ".feather")
BAD_JSON = (ValueError, RecursionError)
"""What the parser of JSON raises: besides bad syntax, numbers of thousands of digits and thousands of brackets."""


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
        reference: see the module docstring.
        name: dotted name of the option that holds it, for messages.

    Raises:
        InputError: missing or unreadable file, a line that is not a JSON object (with its number), no rows, a hub
            data set that cannot be loaded.
    """
    if reference.startswith(HUB):
        source = _read_hub(reference, name)
    elif os.path.isdir(reference):  # false for what can be no path at all
        source = _read_folder(Path(reference), name)
    else:
        source = _read_file(reference, name)
    require(bool(source.rows), name, "have at least one row", "<0 rows>", "Check the file", reference)
    return source


def _read_file(reference: str, name: str) -> Source:
    columns = reference.endswith(_COLUMNS)
    remedy = f"Give the folder that holds it as {HUB}FOLDER, or write its rows as JSON lines"
    require(not columns, name, "be a file of JSON", reference, remedy)
    content = read_bytes(reference, name)
    text = _text(content, reference, name) if content else ""
    whole = reference.removesuffix(".gz").endswith(".json")
    rows = list((_whole_rows if whole else _json_rows)(text, reference, name))
    return Source(reference, hashlib.sha256(content).hexdigest(), rows)


def _read_folder(folder: Path, name: str) -> Source:
    """Every JSON file of `folder`, in the order of their names."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
    sources = [(path.name, _read_file(str(path), name)) for path in files]
    listing = "".join(f"{file} {source.sha256}\n" for file, source in sources)
    rows = [row for _, source in sources for row in source.rows]
    return Source(str(folder), hashlib.sha256(listing.encode()).hexdigest(), rows)


def read_bytes(path: str | Path, name: str) -> bytes:
    """The bytes of a file; errors as `read_source`."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(message(name, "be an existing file", str(path), "Check the path")) from None
    except (OSError, ValueError) as error:  # a path may hold no zero byte
        raise InputError(message(name, "be a readable file", str(path), f"Reading failed: {error}")) from error


def _text(content: bytes, reference: str, name: str) -> str:
    try:
        if reference.endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(message(name, "be a whole gzip file", reference, f"Unpacking failed: {error}")) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            message(name, "be UTF-8 text", reference, f"Convert it: {error.reason}", f"line {line}")
        ) from error


def _whole_rows(text: str, reference: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The object that a file holds, or the objects of its list."""
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where, remedy = f"{reference}, line {error.lineno}", f"The parser says: {error}"
        found = text[error.pos : error.pos + 60].strip() or "<the end of the file>"
        raise InputError(message(name, "hold whole JSON", found, remedy, where)) from error
    except BAD_JSON as error:
        remedy = f"The parser says: {error}"
        raise InputError(message(name, "hold whole JSON", text[:60], remedy, reference)) from error
    items = value if isinstance(value, list) else [value]
    for number, row in enumerate(items, start=1):
        where = f"{reference}, item {number}" if isinstance(value, list) else reference
        require(isinstance(row, dict), name, "hold JSON objects", str(row)[:60], "Give objects", where)
        yield where, row


def _json_rows(text: str, reference: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{reference}, line {number}"
        try:
            row = json.loads(line)
        except BAD_JSON as error:
            raise InputError(
                message(name, "hold one JSON object a line", line[:60], f"The parser says: {error}", where)
            ) from error
        require(isinstance(row, dict), name, "hold one JSON object a line", row, "Give objects", where)
        yield where, row


def _load_hub(path: str, subset: str, reference: str, name: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Split name -> rows of a data set by hub name, or of a local folder in hub layout."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            message(name, "be a local file where `datasets` is missing", reference, "pip install datasets")
        ) from None
    named = not os.path.isdir(path) and not os.path.isabs(path) and path.count("/") <= 1
    with hub_or_cache() if named else contextlib.nullcontext("") as away:
        try:
            loaded: Mapping[str, Iterable[Mapping[str, Any]]] = datasets.load_dataset(path, subset or None)
        except Exception as error:  # the library raises many kinds, all of which mean: not loadable
            must, remedy = "be a loadable data set", f"datasets says: {type(error).__name__}: {str(error)[:200]}"
            if away:
                must = "be on a hub that can be reached, or in the cache of `datasets`"
                remedy = f"Give the path of a local copy (names take a folder of copies as RHSTUDY_DATA), or {CACHED}"
            raise InputError(message(name, must, reference, remedy, away)) from error
    return loaded


def _read_hub(reference: str, name: str) -> Source:
    target, _, split = reference.removeprefix(HUB).partition("@")
    path, _, subset = target.partition(":")
    loaded = _load_hub(path, subset, reference, name)
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
    return text_of(row[key], f"{name}.{key}", where)


def text_of(value: Any, name: str, where: str) -> str:
    """`value`, which must be a text, on one line.

    Raises:
        InputError: no text, blank, too long, or half of a character (a lone surrogate, which no tokenizer takes).
    """
    usable = isinstance(value, str) and bool(value.strip())
    require(usable, name, "be text that is not blank", value, "Mend the row", where)
    _check_text(value, name, where)
    return one_line(value)


def _check_text(value: str, name: str, where: str) -> None:
    remedy = "Split it into passages"
    require(len(value) < MAX_CHARS, name, f"have fewer than {MAX_CHARS} characters", f"<{len(value)}>", remedy, where)
    if not value.isascii():
        whole = _HALF_CHARACTER.search(value) is None
        remedy = "Write the file as UTF-8, without escapes of lone surrogates"
        require(whole, name, "hold whole characters", ascii(value[:60]), remedy, where)


def id_of(row: Mapping[str, Any], key: str, name: str, where: str) -> str:
    """The text or whole number under `key`, as text; empty where there is none.

    Raises:
        InputError: anything else.
    """
    value = row.get(key)
    if value is None or value == "":
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    must = "be a text or a whole number"
    require(isinstance(value, str), f"{name}.{key}", must, value, "Mend the row, or leave it out", where)
    return text_of(value, f"{name}.{key}", where)


def texts_of(row: Mapping[str, Any], key: str, name: str, where: str, least: int = 1) -> tuple[str, ...]:
    """The list of texts under `key`, each on one line; blank ones are left out.

    Args:
        row: a row.
        key: its field; may be missing where `least` is 0.
        name: dotted name of the option, for messages.
        where: file and line.
        least: how many there must be.

    Raises:
        InputError: no list of texts, or too few.
    """
    value = row.get(key)
    value = [] if value is None and not least else value
    usable = isinstance(value, list) and all(isinstance(item, str) for item in value)
    require(usable, f"{name}.{key}", "be a list of texts", value if key in row else "<nothing>", "Mend the row", where)
    for item in value or ():
        _check_text(item, f"{name}.{key}", where)
    texts = tuple(one_line(item) for item in value or () if item.strip())
    require(len(texts) >= least, f"{name}.{key}", f"hold at least {least} text", value, "Mend the row", where)
    return texts


def objects_of(row: Mapping[str, Any], key: str, name: str, where: str) -> list[Mapping[str, Any]]:
    """The list of objects under `key`, at least one.

    Raises:
        InputError: no list of objects, or an empty one.
    """
    value = row.get(key)
    usable = isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)
    require(usable, f"{name}.{key}", "be a list of objects", value if key in row else "<nothing>", "Mend the row",
            where)  # fmt: skip
    return list(value or ())


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
