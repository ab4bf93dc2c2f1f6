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
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from answering_arms import add_conditions, evaluations, option_parser, parsed, print_record, random_heads
from bench_shapes import compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.interventions.answering import answer_under
from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import MODES, SCOPES
from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = option_parser(__doc__, num_examples=100)
    add_conditions(parser)
    parser.add_argument("--mode", default="zero_output", choices=MODES)
    parser.add_argument("--scope", default="decode", choices=SCOPES)
    return parsed(parser)


def random_conditions(given: argparse.Namespace, loaded: LoadedModel) -> list[Condition]:
    """The empty one, and random heads."""
    size = min(given.num_heads, loaded.layout.num_total_heads)
    return [
        Condition(
            condition_id=f"random{number}",
            kind="random",
            dose=given.num_heads if number else 0,
            heads=heads if number else (),
            mode=given.mode,
            scope=given.scope,
        )
        for number, heads in enumerate(random_heads(loaded.layout, size, given.num_conditions))
    ]


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
    cost = evaluations(record, given.num_conditions)
    print_record({**record, **cost}, given, {"batch_sizes": sorted(sizes)})


if __name__ == "__main__":
    main()
