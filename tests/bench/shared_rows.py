"""Every row of the local copies of the public data sets, built once or rejected with a reason, and counted.

    python tests/bench/shared_rows.py --data ../shared/data --num-tokens 4096

A row is a question, or an insight of a SummHay topic. Every example is checked for leaks. Prints one JSON record: per
file rows, built ones by number of needles, and for the others how often which reason was given.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from transformers import AutoTokenizer

import rhstudy
from rhstudy.data.assemble import Label, assemble
from rhstudy.data.corpus import pool_of
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, UnbuildableRowError
from rhstudy.data.haystack import PassageHaystack, PassagePool
from rhstudy.data.leaks import check_leaks
from rhstudy.data.rows import read_passages, read_source
from rhstudy.data.tasks.registry import Task, TaskName, task_named
from rhstudy.seeding import generator

FILES: tuple[tuple[TaskName, str], ...] = (
    ("mdqa", "mdqa/train.jsonl"),
    ("mdqa", "mdqa/eval.jsonl"),
    ("musique", "musique/train.jsonl"),
    ("musique", "musique/eval.jsonl"),
    ("musique", "two_wiki_multihop/train.jsonl"),
    ("musique", "two_wiki_multihop/eval.jsonl"),
    ("musique", "hotpotqa/train.jsonl"),
    *(("summhay", f"summhay/news{number}.json") for number in (1, 2, 3, 4)),
)
PASSAGES = "wikipedia_passages/passages.jsonl"


def reasons_of(task: Task, facts: list[Fact], pool: PassagePool, encoder: Encoder, num_tokens: int) -> Iterator[Any]:
    """For each fact the number of its needles, or why it cannot be built."""
    haystack = PassageHaystack(pool)
    for fact in facts:
        rng = generator(0, "rows", fact.fact_id)
        try:
            fitted, stream = task.fit(fact, haystack.distractors(fact, rng.spawn(1)[0]), num_tokens, encoder)
            label = Label(example_id=fact.fact_id, task=task.name, recipe="real")
            example = assemble(fitted, stream, task.documents, encoder, num_tokens, rng, label)
        except UnbuildableRowError as error:
            yield str(error)
            continue
        check_leaks([example])
        yield len(example.needles)


def kind_of(reason: str) -> str:
    """A reason without what it says of its row."""
    return re.sub(r"^data\.train_file", "row", re.sub(r", got .*", "", reason, flags=re.DOTALL))


def counted(task: Task, path: Path, pool: PassagePool | None, encoder: Encoder, num_tokens: int) -> dict[str, Any]:
    """Counts of one file."""
    start = time.perf_counter()
    rows = task.read_facts(read_source(str(path), "data.train_file"), "data.train_file", "skip")
    found = list(reasons_of(task, rows.facts, pool or pool_of(rows.facts), encoder, num_tokens))
    reasons = [*rows.rejected.values(), *(item for item in found if isinstance(item, str))]
    built = [item for item in found if isinstance(item, int)]
    return {
        "num_rows": len(rows.facts) + len(rows.rejected),
        "num_built": len(built),
        "num_by_needles": {str(count): number for count, number in sorted(Counter(built).items())},
        "reasons": dict(Counter(map(kind_of, reasons)).most_common()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tokenizer", default=str(Path(rhstudy.__file__).parent / "models" / "tiny"))
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--tasks", nargs="+", default=["mdqa", "musique", "summhay"])
    given = parser.parse_args()
    encoder = Encoder(AutoTokenizer.from_pretrained(given.tokenizer))
    pool = PassagePool(read_passages(str(given.data / PASSAGES))[0])
    found = {}
    for task, path in FILES:
        if task in given.tasks:
            own = None if task == "summhay" else pool
            found[path] = counted(task_named(task), given.data / path, own, encoder, given.num_tokens)
    print(json.dumps({"num_tokens": given.num_tokens, "tokenizer": Path(given.tokenizer).name, "files": found}))


if __name__ == "__main__":
    main()
