"""What the conditions of patching cost, beside plain evaluations of the same examples in the same run.

    python tests/bench/patching.py --num-tokens 16384 --num-examples 16 --num-conditions 40 --positions answer_rows
    python tests/bench/patching.py --num-tokens 16384 --num-examples 16 --num-conditions 4 --positions all_positions

Random weights of the shape named, a donor whose attention weights were moved, random prompts, no token that ends an
answer. `evaluation` answers all examples with the recipient and measures their gold answers' loss, as the stage
`evaluate` does; `conditions` runs the donor's prompts once and puts `--num-heads` random heads of it into the recipient
under each condition, the first of them empty. Arms alternate within each repeat. Prints one JSON record, as
`tests/bench/interventions.py`; `same` says whether a condition patched alone gives the tokens it gives among others.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from answering_arms import add_conditions, evaluations, option_parser, parsed, print_record, random_heads
from bench_shapes import compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer
from transformers import PreTrainedModel

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.interventions.patch_plan import PatchCondition
from rhstudy.interventions.patch_runs import PatchRuns, batch_that_fits
from rhstudy.models.anatomy import anatomy, attention_modules
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = option_parser(__doc__, num_examples=16)
    add_conditions(parser)
    parser.add_argument("--positions", default="answer_rows", choices=["all_positions", "answer_rows"])
    return parsed(parser)


def moved(recipient: PreTrainedModel) -> PreTrainedModel:
    donor = copy.deepcopy(recipient)
    draw = torch.Generator(device=recipient.device).manual_seed(1)
    with torch.no_grad():
        for _, module in attention_modules(donor).values():
            for weight in module.parameters():
                weight.mul_(1 + 0.5 * torch.randn(weight.shape, generator=draw, device=weight.device))
    return donor


def random_conditions(given: argparse.Namespace, model: PreTrainedModel) -> list[PatchCondition]:
    layout = anatomy(model)
    drawn = random_heads(layout, min(given.num_heads, layout.num_total_heads - 1), given.num_conditions - 1)
    return [
        PatchCondition(condition_id="recipient", kind="recipient"),
        *(
            PatchCondition(condition_id=f"random{number}", kind="random", positions=given.positions, heads=heads)
            for number, heads in enumerate(drawn, start=1)
        ),
    ]


def main() -> None:
    given = options()
    recipient = random_model(given)
    donor = moved(recipient)
    examples = random_examples(given, recipient.config.vocab_size, given.num_examples)
    loaded = LoadedModel(
        model=recipient, tokenizer=word_tokenizer(), layout=anatomy(recipient), label=given.shape, digest=""
    )
    patches = random_conditions(given, recipient)
    heads = sorted({head for condition in patches for head in condition.heads})
    whole = len(heads) if given.positions == "all_positions" else 0
    size = given.batch_size or batch_that_fits(recipient, given.num_tokens + given.num_new_tokens, whole)
    settings = AnsweringSettings(max_new_tokens=given.num_new_tokens, batch_size=size)

    def runs() -> Iterator[PatchRuns]:
        for group in settings.groups(recipient, examples):
            yield PatchRuns(
                donor,
                recipient,
                [example.prompt_ids for example in group],
                [example.answer_ids for example in group],
                heads,
                max_new_tokens=given.num_new_tokens,
                stop_ids=frozenset(),
                positions=[given.positions],
            )

    def evaluation() -> int:
        for group in settings.groups(recipient, examples):
            answer_group(loaded, group, settings)
        return len(examples)

    @torch.inference_mode()
    def conditions() -> int:
        for run in runs():
            answered = dict(run.answers(patches))
            lengths = {len(tokens) for one in answered.values() for tokens in one.tokens}
            if len(answered) != len(patches) or lengths != {given.num_new_tokens}:
                raise SystemExit(f"answers ended early: {lengths}")
        return len(examples)

    @torch.inference_mode()
    def same() -> bool:
        run, last = next(runs()), patches[-1]
        among = dict(run.answers(patches))[last].tokens
        return among == run.patched(last.heads, given.positions).tokens

    record = compared(given, {"evaluation": evaluation, "conditions": conditions}, lambda: synchronised(given.device))
    cost = {**evaluations(record, given.num_conditions), "same": same()}
    print_record({**record, **cost}, given, {"batch_size": size})


if __name__ == "__main__":
    main()
