"""What the conditions of a knockout cost, beside plain evaluations of the same examples in the same run.

    python tests/bench/interventions.py --num-tokens 16384 --num-examples 100 --num-conditions 40 --mode zero_output

Random weights of the shape named, random prompts, no token that ends an answer, so that every answer has
`--num-new-tokens` tokens. `evaluation` answers all examples and measures their gold answers' loss, as the stage
`evaluate` does; `conditions` does so under `--num-conditions` knockouts of `--num-heads` random heads each, the first
of them empty. Arms alternate within each repeat. Prints one JSON record: per arm the median time of an example, peak
memory, and the ratio of the medians to `evaluation` with a 95 % bootstrap interval over repeats; `evaluations` is the
ratio of `conditions`, `evaluations_per_condition` what one of them cost.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import torch
import transformers
from bench_shapes import SHAPES, compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.interventions.answering import answer_under
from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import MODES, SCOPES
from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=16384)
    parser.add_argument("--num-rows", type=int, default=5, help="gold answer tokens of each example")
    parser.add_argument("--num-new-tokens", type=int, default=20)
    parser.add_argument("--num-examples", type=int, default=100)
    parser.add_argument("--num-conditions", type=int, default=40)
    parser.add_argument("--num-heads", type=int, default=10, help="heads of each condition")
    parser.add_argument("--mode", default="zero_output", choices=MODES)
    parser.add_argument("--scope", default="decode", choices=SCOPES)
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def random_conditions(given: argparse.Namespace, loaded: LoadedModel) -> list[Condition]:
    """The empty one, and random heads."""
    rng, layout = np.random.default_rng(0), loaded.layout
    found = []
    for number in range(given.num_conditions):
        drawn = rng.choice(layout.num_total_heads, min(given.num_heads, layout.num_total_heads), replace=False)
        heads = tuple(sorted((int(head) // layout.num_heads, int(head) % layout.num_heads) for head in drawn))
        found.append(
            Condition(
                condition_id=f"random{number}",
                kind="random",
                dose=given.num_heads if number else 0,
                heads=heads if number else (),
                mode=given.mode,
                scope=given.scope,
            )
        )
    return found


def main() -> None:
    given = options()
    model = random_model(given)
    examples = random_examples(given, model.config.vocab_size, given.num_examples)
    loaded = LoadedModel(model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label=given.shape, digest="")
    settings = AnsweringSettings(max_new_tokens=given.num_new_tokens, batch_size=given.batch_size)
    knockouts, layout = random_conditions(given, loaded), loaded.layout
    means = torch.zeros(layout.num_layers, layout.num_heads, layout.head_dim)
    sizes: set[int] = set()

    def evaluation() -> int:
        for group in settings.groups(model, examples):
            lengths = {item.num_new_tokens for item in answer_group(loaded, group, settings)}
            if lengths != {given.num_new_tokens}:
                raise SystemExit(f"answers ended early: {lengths}")
        return len(examples)

    def conditions() -> int:
        for group in settings.groups(model, examples):
            sizes.add(len(group))
            answered = list(answer_under(loaded, group, knockouts, max_new_tokens=given.num_new_tokens, means=means))
            lengths = {len(tokens) for one in answered for tokens in one.generated}
            if len(answered) != len(knockouts) or lengths != {given.num_new_tokens}:
                raise SystemExit(f"answers ended early: {lengths}")
        return len(examples)

    record = compared(given, {"evaluation": evaluation, "conditions": conditions}, lambda: synchronised(given.device))
    ratio = record["arms"]["conditions"]["time_over_evaluation"]["ratio"]
    record |= {
        "evaluations": ratio,
        "evaluations_per_condition": ratio / given.num_conditions,
        "options": vars(given),
        "batch_sizes": sorted(sizes),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
