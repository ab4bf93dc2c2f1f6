"""Four parts that share no passage and no title: `train`, `score`, `dev` (cut from one file) and `eval`.

Rows linked by an equal gold passage or an equal title stay together. The cut depends on the rows and `split_seed`
alone, never on the study's seed or on how many rows a part is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rhstudy.data.answers import leak_text
from rhstudy.data.facts import Fact
from rhstudy.errors import StudyError, message, require

PARTS = ("train", "score", "dev", "eval")
SHARES: Mapping[str, float] = {"score": 0.15, "dev": 0.10, "eval": 0.15}
"""Share of the rows that each held-out part gets; `eval` only when no file of its own was given."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The four parts, each in an order fixed by `split_seed`.

    Attributes:
        parts: part name -> facts.
        num_dropped: rows of the train file dropped because their passage or title is in the eval file.
    """

    parts: Mapping[str, Sequence[Fact]]
    num_dropped: int


def passage_keys(fact: Fact) -> tuple[str, ...]:
    """What makes two rows inseparable: their gold passages' texts and titles, case and punctuation ignored; the group.

    Rows that cite share documents with all rows of their topic, and are told apart by that alone.
    """
    group = (f"group {fact.group}",) if fact.group else ()
    if fact.cites and group:
        return group
    passages = [gold.passage for gold in reversed(fact.golds)]
    kinds = (("text" + leak_text(passage.text), "title" + leak_text(passage.title)) for passage in passages)
    return (*(key for pair in kinds for key in pair), *group)


def _group(facts: Sequence[Fact]) -> list[list[Fact]]:
    """Connected components of rows under equal text or title (union-find)."""
    parent = list(range(len(facts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, fact in enumerate(facts):
        for key in passage_keys(fact):
            parent[root(index)] = root(first.setdefault(key, index))
    groups: dict[int, list[Fact]] = {}
    for index, fact in enumerate(facts):
        groups.setdefault(root(index), []).append(fact)
    return list(groups.values())


def _rank(fact: Fact, split_seed: int) -> str:
    named = f"{split_seed}\x1f{fact.question}\x1f{fact.passage.text}"
    return hashlib.sha256(named.encode()).hexdigest()


def _ordered_groups(facts: Sequence[Fact], split_seed: int) -> list[list[Fact]]:
    groups = [sorted(group, key=lambda fact: _rank(fact, split_seed)) for group in _group(facts)]
    return sorted(groups, key=lambda group: _rank(group[0], split_seed))


def split_facts(train: Sequence[Fact], evaluation: Sequence[Fact] | None, split_seed: int) -> Splits:
    """Cut the four parts.

    Args:
        train: rows of the train file; without `evaluation`, all rows.
        evaluation: rows of the eval file, or None to cut `eval` from `train` too.
        split_seed: decides the cut, >= 0.

    Returns:
        The parts. Rows of `train` that are linked to a row of `evaluation` are left out and counted.

    Raises:
        InputError: too few rows for every part to get one.
        StudyError: two parts share a passage or title (a defect of this module).
    """
    held = {key for fact in evaluation or () for key in passage_keys(fact)}
    groups = _ordered_groups(train, split_seed)
    kept = [group for group in groups if held.isdisjoint(key for fact in group for key in passage_keys(fact))]
    num_rows = sum(map(len, kept))
    parts: dict[str, list[Fact]] = {name: [] for name in PARTS}
    wanted = [name for name in ("score", "dev", "eval") if name != "eval" or evaluation is None]
    for group in kept:
        short = [name for name in wanted if len(parts[name]) < SHARES[name] * num_rows]
        parts[short[0] if short else "train"] += group
    if evaluation is not None:
        parts["eval"] = [fact for group in _ordered_groups(evaluation, split_seed) for fact in group]
    for name in PARTS:
        require(
            bool(parts[name]),
            f"data part {name}",
            "have at least one row",
            f"<{num_rows} rows in {len(kept)} groups of equal passage or title>",
            "Give a file with more rows",
        )
    check_disjoint(parts)
    return Splits(parts, len(train) - num_rows)


def check_disjoint(parts: Mapping[str, Sequence[Fact]]) -> None:
    """Raise when two parts share a gold passage or a title.

    Raises:
        StudyError: names the two rows.
    """
    owner: dict[str, tuple[str, str]] = {}
    for name, facts in parts.items():
        for fact in facts:
            for key in passage_keys(fact):
                part, other = owner.setdefault(key, (name, fact.fact_id))
                if part != name:
                    got = f"<{part} row {other} and {name} row {fact.fact_id}>"
                    raise StudyError(message("data parts", "share no passage or title", got, "Report this defect"))
