"""What evaluation costs: ours beside as many plain prefills, and beside `generate`, one example at a time.

    python tests/bench/evaluation.py --num-tokens 16384 --num-examples 100

Random weights of the shape named, random prompts, no token that ends an answer, so that every answer has
`--num-new-tokens` tokens. `ours` answers, marks and measures the gold answers' loss of all examples; `plain` runs each
prompt once under SDPA, without a cache, for the logits of its last row; `generate` is transformers' own, on the first
`--num-slow` examples. Arms alternate within each repeat. Prints one JSON record: per arm the median time of an example,
peak memory, and the ratio of the medians to `plain` with a 95 % bootstrap interval over repeats.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from answering_arms import option_parser, parsed, print_record
from bench_shapes import compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = option_parser(__doc__, num_examples=100)
    parser.add_argument("--num-slow", type=int, default=4)
    return parsed(parser)


def main() -> None:
    given = options()
    model = random_model(given)
    examples = random_examples(given, model.config.vocab_size, given.num_examples)
    tokenizer = word_tokenizer()
    loaded = LoadedModel(model=model, tokenizer=tokenizer, layout=anatomy(model), label=given.shape, digest="")
    settings = AnsweringSettings(max_new_tokens=given.num_new_tokens, batch_size=given.batch_size)
    ids = [torch.tensor([example.prompt_ids], device=given.device) for example in examples]
    sizes: set[int] = set()

    def ours() -> int:
        for group in settings.groups(model, examples):
            sizes.add(len(group))
            found = answer_group(loaded, group, settings)
            lengths = {item.num_new_tokens for item in found}
            if lengths != {given.num_new_tokens}:
                raise SystemExit(f"answers ended early: {lengths}")
        return len(examples)

    @torch.inference_mode()
    def plain() -> int:
        model.set_attn_implementation("sdpa")
        for prompt in ids:
            model(input_ids=prompt, use_cache=False, logits_to_keep=1)
        return len(ids)

    @torch.inference_mode()
    def generate() -> int:
        model.set_attn_implementation("sdpa")
        for prompt in ids[: given.num_slow]:
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=given.num_new_tokens, do_sample=False
            )
        return given.num_slow

    arms: dict[str, Callable[[], int]] = {"plain": plain, "ours": ours}
    if given.num_slow:
        arms["generate"] = generate
    record = compared(given, arms, lambda: synchronised(given.device))
    print_record(record, given, {"batch_sizes": sorted(sizes)})


if __name__ == "__main__":
    main()
