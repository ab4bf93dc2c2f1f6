"""Every corner of every task at several lengths: budgets, spans and leaks of what was built, and what it costs.

    python tests/bench/budgets.py --lengths 4096 32768 --num-examples 8
    python tests/bench/budgets.py --lengths 131072 --num-examples 4 --recipes real high_high --tasks mdqa musique

Each example is looked at again: every needle's tokens are decoded and must spell its text and its answer, and the leak
checker runs a second time. Prints a table and one JSON record a cell: prompt tokens beside those asked for, training
tokens beside those of the first recipe, documents a prompt, CPU seconds an example (the first one apart: it pays for
the pool's index and the tokens of its passages).
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

from rhstudy.configs import ModelConfig, cache_root
from rhstudy.data.budget import budget_facts, check_equal
from rhstudy.data.build import Build
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import CORNERS
from rhstudy.data.leaks import leaking_passages
from rhstudy.data.named import with_named_sources
from rhstudy.keeping import keeping
from rhstudy.models.load import load_tokenizer
from rhstudy.types import Example

TASKS = ("mdqa", "musique", "summhay")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of data sets and of their tasks")
    parser.add_argument("--recipes", nargs="+", default=list(CORNERS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 32768])
    parser.add_argument("--num-examples", type=int, default=8)
    parser.add_argument("--passages-file", default="", help="pool of passages; empty takes the data set's own")
    parser.add_argument("--model", default="smollm2-135m")
    return parser.parse_args()


def require_spelled(example: Example, tokenizer: Any) -> None:
    """Raise unless the tokens of every needle and answer spell what the prompt shows there."""
    for needle in example.needles:
        for chars, tokens in (
            (needle.char_span, needle.token_span),
            (needle.answer_char_span, needle.answer_token_span),
        ):
            text = example.prompt[slice(*chars)]
            if not text or text not in tokenizer.decode(example.prompt_ids[slice(*tokens)]):
                raise SystemExit(f"{example.example_id}: tokens {tokens} do not spell {text[:80]!r}")


def cell(config: DataConfig, tokenizer: Any) -> dict[str, Any]:
    """One recipe built and looked at."""
    build = Build(dataclasses.replace(config, num_workers=1), tokenizer)  # times are of this process
    seconds, mark = [], time.process_time()
    num_needles = num_leaks = 0
    for example in build.examples("train"):
        seconds.append(time.process_time() - mark)
        require_spelled(example, tokenizer)
        num_needles, num_leaks = num_needles + len(example.needles), num_leaks + len(leaking_passages(example))
        mark = time.process_time()
    card = build.card()
    part = card["parts"]["train"]
    facts = budget_facts(part, config.num_examples, config.num_tokens)
    return {
        "prompt_tokens": facts["num_prompt_tokens_found"],
        "deviation": facts["deviation"],
        "training_tokens": part["num_tokens_total"],
        "documents": round(part["num_documents"]["mean"], 1),
        "needles": num_needles,
        "leaks": num_leaks,
        "dropped_rows": len(card["dropped_rows"].get("train", {})),
        "first_cpu_s": round(seconds[0], 2),
        "next_cpu_s": round(sum(seconds[1:]) / max(1, len(seconds) - 1), 3),
    }


def cells(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    tokenizer = load_tokenizer(ModelConfig(name=given.model))
    for name in given.tasks:
        for num_tokens in given.lengths:
            reference = 0
            for recipe in given.recipes:
                asked = DataConfig(
                    task=name, train_file=name, recipe=recipe, num_tokens=num_tokens, num_examples=given.num_examples,
                    parts=("train",), on_bad_row="skip", passages_file=given.passages_file,
                )  # fmt: skip
                found = cell(with_named_sources(asked, cache_root("")), tokenizer)
                reference = reference or found["training_tokens"]
                excess = check_equal(recipe, found["training_tokens"], given.recipes[0], reference, num_tokens)
                yield {"task": name, "num_tokens": num_tokens, "recipe": recipe, "excess": round(excess, 6), **found}


def main() -> None:
    given = options()
    print("| task | tokens | recipe | prompts | training | documents | needles | leaks | CPU s an example |")
    print("|---|---|---|---|---|---|---|---|---|")
    with keeping():
        for item in cells(given):
            print(
                f"| {item['task']} | {item['num_tokens']:,} | {item['recipe']} | {item['deviation']:+.2%} | "
                f"{item['excess']:+.2%} | {item['documents']} | {item['needles']} | {item['leaks']} | "
                f"{item['next_cpu_s']} |",
                flush=True,
            )
            print(json.dumps(item), file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"options": vars(given), "peak_bytes": peak, "load_1min": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
