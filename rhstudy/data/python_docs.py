"""Real English that is on every machine: the topics of Python's own documentation (``pydoc_data.topics``).

``data.train_file = "python-docs"`` stands for its prose: paragraphs of at least 20 words, three quarters of them plain,
without grammar rules and console sessions, each once. The text (Python Software Foundation License) is read from the
running Python and never shipped, so it differs between Python versions; the data card has its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from rhstudy.errors import InputError, message

NAME = "python-docs"
MIN_WORDS = 20
MIN_PLAIN_SHARE = 0.75
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[,.;:)]?")
_MARKUP = ("::=", ">>>")
_BLANK_LINES = re.compile(r"\n\s*\n")


def python_docs_file(cache: Path) -> Path:
    """A JSONL file of ``{"id", "title", "text"}`` rows below `cache`, written on first use and named by its sha256.

    Raises:
        InputError: this Python came without its documentation topics.
    """
    rows = python_docs_rows()
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    target = cache / "data" / f"{NAME}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(content)
        os.replace(part, target)
    return target


def python_docs_rows() -> list[dict[str, str]]:
    """The paragraphs, by topic, each with the topic as its title; errors as `python_docs_file`."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        remedy = "Install the full standard library, or give data.train_file a JSONL file of title and text"
        got = f"<Python {sys.version.split()[0]} without pydoc_data>"
        raise InputError(message("data.train_file", "be on this machine", got, remedy, NAME)) from error
    rows: dict[str, dict[str, str]] = {}
    for topic in sorted(topics):
        for paragraph in _BLANK_LINES.split(topics[topic]):
            text = " ".join(paragraph.split())
            if text not in rows and _is_prose(text):
                rows[text] = {"id": f"{topic}-{len(rows):04d}", "title": topic, "text": text}
    return list(rows.values())


def _is_prose(text: str) -> bool:
    words = text.split()
    plain = sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words)
    long_enough = len(words) >= MIN_WORDS and plain >= MIN_PLAIN_SHARE * len(words)
    return long_enough and not any(mark in text for mark in _MARKUP)
