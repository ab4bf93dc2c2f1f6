"""What the benchmarks of evaluation, knockouts and patching share: their options, random heads, the end of a record."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from bench_shapes import SHAPES

from rhstudy.models.anatomy import Anatomy


def option_parser(description: str | None, num_examples: int) -> argparse.ArgumentParser:
    """The options that all of them have; `num_examples` is the default of one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=16384)
    parser.add_argument("--num-rows", type=int, default=5, help="gold answer tokens of each example")
    parser.add_argument("--num-new-tokens", type=int, default=20)
    parser.add_argument("--num-examples", type=int, default=num_examples)
    return parser


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that measure under conditions."""
    parser.add_argument("--num-conditions", type=int, default=40)
    parser.add_argument("--num-heads", type=int, default=10, help="heads of each condition")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, with the options that come last in every record."""
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def random_heads(layout: Anatomy, count: int, draws: int) -> list[tuple[tuple[int, int], ...]]:
    """`draws` sets of `count` random heads as (layer, query head), each in order; always the same ones."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(layout.num_total_heads, count, replace=False) for _ in range(draws)]
    return [
        tuple(sorted((int(head) // layout.num_heads, int(head) % layout.num_heads) for head in one)) for one in drawn
    ]


def print_record(record: Mapping[str, Any], given: argparse.Namespace, further: Mapping[str, Any]) -> None:
    """One JSON object: what was measured, what was asked for, and by which versions."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**record, "options": vars(given), **further, **versions}))


def evaluations(record: Mapping[str, Any], num_conditions: int) -> dict[str, Any]:
    """What all conditions, and one of them, cost in plain evaluations."""
    ratio = record["arms"]["conditions"]["time_over_evaluation"]["ratio"]
    return {"evaluations": ratio, "evaluations_per_condition": ratio / num_conditions}
