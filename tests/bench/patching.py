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
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import torch
import transformers
from bench_shapes import SHAPES, compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer
from transformers import PreTrainedModel

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.interventions.patch_plan import PatchCondition
from rhstudy.interventions.patch_runs import PatchRuns, batch_that_fits
from rhstudy.models.anatomy import anatomy, attention_modules
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=16384)
    parser.add_argument("--num-rows", type=int, default=5, help="gold answer tokens of each example")
    parser.add_argument("--num-new-tokens", type=int, default=20)
    parser.add_argument("--num-examples", type=int, default=16)
    parser.add_argument("--num-conditions", type=int, default=40)
    parser.add_argument("--num-heads", type=int, default=10, help="heads of each condition")
    parser.add_argument("--positions", default="answer_rows", choices=["all_positions", "answer_rows"])
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def moved(recipient: PreTrainedModel) -> PreTrainedModel:
    donor = copy.deepcopy(recipient)
    draw = torch.Generator(device=recipient.device).manual_seed(1)
    with torch.no_grad():
        for _, module in attention_modules(donor).values():
            for weight in module.parameters():
                weight.mul_(1 + 0.5 * torch.randn(weight.shape, generator=draw, device=weight.device))
    return donor


def random_conditions(given: argparse.Namespace, model: PreTrainedModel) -> list[PatchCondition]:
    rng, layout = np.random.default_rng(0), anatomy(model)
    found = [PatchCondition(condition_id="recipient", kind="recipient")]
    for number in range(1, given.num_conditions):
        drawn = rng.choice(layout.num_total_heads, min(given.num_heads, layout.num_total_heads - 1), replace=False)
        heads = tuple(sorted((int(head) // layout.num_heads, int(head) % layout.num_heads) for head in drawn))
        name = f"random{number}"
        found.append(PatchCondition(condition_id=name, kind="random", positions=given.positions, heads=heads))
    return found


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
    ratio = record["arms"]["conditions"]["time_over_evaluation"]["ratio"]
    record |= {
        "evaluations": ratio,
        "evaluations_per_condition": ratio / given.num_conditions,
        "same": same(),
        "options": vars(given),
        "batch_size": size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
