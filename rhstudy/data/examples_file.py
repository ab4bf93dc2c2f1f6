"""Examples on disk: Parquet, or one JSON object a line, without token ids but with their sha256.

The reader tokenises again and compares, so a data set can never be used with another tokenizer than its own.
Equal examples give equal bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rhstudy.data.encode import Encoder, ids_sha256
from rhstudy.data.parquet_file import read_rows, write_rows
from rhstudy.data.rows import read_source
from rhstudy.errors import InputError, message, require
from rhstudy.types import Example, Needle, Span, Tokenizer

PARQUET = ".parquet"
JSON_LINES = ".jsonl"
_ROWS_AT_ONCE = 64
_PLAIN = ("example_id", "task", "recipe", "question", "prompt", "answer")
_SPANS = ("char_span", "token_span", "answer_char_span", "answer_token_span")
_BODY = "body_token_span"


def _plain_values(example: Example) -> dict[str, Any]:
    return {
        **{key: getattr(example, key) for key in _PLAIN},
        "answers": list(example.answers),
        "needles": [_spans(needle) for needle in example.needles],
        "metadata": dict(example.metadata),
        "num_prompt_tokens": len(example.prompt_ids),
        "prompt_ids_sha256": ids_sha256(example.prompt_ids),
        "answer_ids_sha256": ids_sha256(example.answer_ids),
    }


def _spans(needle: Needle) -> dict[str, list[int]]:
    optional = {_BODY: list(needle.body_token_span)} if needle.body_token_span else {}
    return {key: list(getattr(needle, key)) for key in _SPANS} | optional


def _needle(spans: Any) -> Needle:
    body = _span(spans[_BODY]) if _BODY in spans else None
    return Needle(**{key: _span(spans[key]) for key in _SPANS}, body_token_span=body)


def _span(bounds: Any) -> Span:
    start, end = map(operator.index, bounds)
    return Span(start, end)


def examples_suffix() -> str:
    """``.parquet``, or ``.jsonl`` on machines that run stages without pyarrow and datasets; the rows are the same."""
    return PARQUET if all(map(importlib.util.find_spec, ("pyarrow", "datasets"))) else JSON_LINES


def write_examples(path: str | Path, examples: Iterable[Example]) -> str:
    """Write `examples` to `path`, replacing it: Parquet for ``.parquet``, else JSON lines (keys sorted, UTF-8).

    Returns:
        SHA-256 of the rows as JSON lines, whatever the format.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    rows = map(_plain_values, examples)
    if Path(path).suffix == PARQUET:
        return write_rows(Path(path), rows)
    found = hashlib.sha256()
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            found.update(line.encode())
            file.write(line)
    return found.hexdigest()


def read_examples(path: str | Path, tokenizer: Tokenizer) -> list[Example]:
    """Read what `write_examples` wrote and tokenise it.

    Args:
        path: the file.
        tokenizer: the one the data were built with.

    Raises:
        InputError: missing or unreadable file, a missing key, or other token ids than when the file was written.
    """
    encoder = Encoder(tokenizer)
    parquet = Path(path).suffix == PARQUET
    rows = iter(read_rows(Path(path)) if parquet else read_source(str(path), "examples file").rows)
    examples: list[Example] = []
    while group := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        prompts = encoder.prompts_ids([_prompt(row) for _, row in group])
        examples += [_read(row, where, ids, encoder) for (where, row), ids in zip(group, prompts, strict=True)]
    return examples


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is wanted, not {type(value).__name__}")
    value.encode()  # a lone surrogate is no text that a tokenizer takes
    return value


def _prompt(row: Mapping[str, Any]) -> str:
    """The prompt, or nothing where `_read` says what is wrong with it."""
    try:
        return _text(row["prompt"])
    except (KeyError, TypeError, ValueError):
        return ""


def _read(row: Mapping[str, Any], where: str, prompt_ids: tuple[int, ...], encoder: Encoder) -> Example:
    try:
        needles = tuple(_needle(spans) for spans in row["needles"])
        plain = {key: _text(row[key]) for key in _PLAIN}
        answers, metadata = tuple(map(_text, row["answers"])), dict(row["metadata"])
        expected = (str(row["prompt_ids_sha256"]), str(row["answer_ids_sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            message(
                "examples file", "hold whole examples", f"<{type(error).__name__}: {error}>", "Build it again", where
            )
        ) from error
    answer_ids = tuple(encoder.answer_ids(plain["prompt"], plain["answer"]))
    found = (ids_sha256(prompt_ids), ids_sha256(answer_ids))
    remedy = "These data were built with another tokenizer: build them again with this model"
    require(found == expected, "prompt_ids_sha256", f"be {expected[0][:12]}...", found[0][:12] + "...", remedy, where)
    return Example(
        **plain, answers=answers, needles=needles, prompt_ids=prompt_ids, answer_ids=answer_ids, metadata=metadata
    )
