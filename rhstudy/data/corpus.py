"""Everything read from files for one data set: the split rows and the passages, each read once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhstudy.data.config import DataConfig
from rhstudy.data.facts import Fact, Passage
from rhstudy.data.haystack import PassagePool
from rhstudy.data.rows import read_passages, read_source
from rhstudy.data.splits import Splits, split_facts
from rhstudy.data.tasks.registry import Task, task_named
from rhstudy.keeping import kept

_FILES = ("train_file", "eval_file", "passages_file")


@dataclass(frozen=True)
class Corpus:
    """Rows and passages.

    Attributes:
        task: what is asked of the rows.
        splits: the four parts.
        passages: for haystacks.
        sources: option -> reference, sha256 and number of rows.
        rejected: option -> row id -> reason, for rows left out while reading.
    """

    task: Task
    splits: Splits
    passages: Sequence[Passage]
    sources: Mapping[str, Mapping[str, Any]]
    rejected: Mapping[str, Mapping[str, str]]

    @functools.cached_property
    def pool(self) -> PassagePool:
        """The passages' BM25 index, made on first use."""
        return PassagePool(self.passages)

    def held_out_from(self, part: str) -> list[Fact]:
        """Facts that prompts of `part` must not show: those of every other part for train, none for the others."""
        others = [name for name in self.splits.parts if name != part] if part == "train" else []
        return [fact for name in others for fact in self.splits.parts[name]]


def load_corpus(config: DataConfig) -> Corpus:
    """Read the sources of `config` and cut the splits; inside `rhstudy.keeping.keeping`, the same ones only once.

    Raises:
        InputError: as `read_source`, `Task.read_facts`, `read_passages` and `split_facts`.
    """
    stamps = [_stamp(getattr(config, key)) for key in _FILES]
    if None in stamps:
        return _read_corpus(config)
    key = (config.task, *stamps, config.split_seed, config.on_bad_row)
    return kept("corpus", key, lambda: _read_corpus(config))


def _read_corpus(config: DataConfig) -> Corpus:
    task = task_named(config.task)
    facts: dict[str, list[Fact]] = {}
    sources: dict[str, dict[str, Any]] = {}
    rejected: dict[str, Mapping[str, str]] = {}
    for key in ("train_file", "eval_file"):
        reference = getattr(config, key)
        if not reference:
            continue
        source = read_source(reference, f"data.{key}")
        rows = task.read_facts(source, f"data.{key}", config.on_bad_row)
        facts[key], rejected[key] = rows.facts, rows.rejected
        sources[key] = {"reference": reference, "sha256": source.sha256, "num_rows": len(source.rows)}
    if config.passages_file:
        passages, sha256 = read_passages(config.passages_file)
        sources["passages_file"] = {"reference": config.passages_file, "sha256": sha256, "num_rows": len(passages)}
    else:
        passages = own_passages(fact for rows in facts.values() for fact in rows)
    splits = split_facts(facts["train_file"], facts.get("eval_file"), config.split_seed)
    return Corpus(task, splits, passages, sources, rejected)


def pool_of(facts: Iterable[Fact]) -> PassagePool:
    """A pool of the rows' own passages."""
    return PassagePool(own_passages(facts))


def own_passages(facts: Iterable[Fact]) -> list[Passage]:
    """Every passage of the rows, once, in their order."""
    return list(dict.fromkeys(passage for fact in facts for passage in _shown(fact)))


def _shown(fact: Fact) -> list[Passage]:
    """The passages of a row."""
    return [*(gold.passage for gold in reversed(fact.golds)), *fact.given]


def source_digests(config: DataConfig) -> dict[str, str]:
    """Option -> sha256 of what it refers to; what a stage's digest must take beside the config."""
    return {key: _sha256(getattr(config, key), f"data.{key}") for key in _FILES if getattr(config, key)}


def _sha256(reference: str, option: str) -> str:
    stamp = _stamp(reference)
    if stamp is None:
        return read_source(reference, option).sha256
    return kept("source digests", (option, *stamp), lambda: read_source(reference, option).sha256, most=8)


def _stamp(reference: str) -> tuple[str, int, int] | None:
    """What changes when a file changes; None for what is no file and may change without a sign."""
    if not reference:
        return ("", 0, 0)
    try:
        status = Path(reference).stat()
    except (OSError, ValueError):  # a path may hold no zero byte
        return None
    return (reference, status.st_size, status.st_mtime_ns) if Path(reference).is_file() else None
