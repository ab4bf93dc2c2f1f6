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
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import transformers
from bench_shapes import SHAPES, compared, random_examples, random_model, synchronised
from tiny_models import word_tokenizer

from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=16384)
    parser.add_argument("--num-rows", type=int, default=5, help="gold answer tokens of each example")
    parser.add_argument("--num-new-tokens", type=int, default=20)
    parser.add_argument("--num-examples", type=int, default=100)
    parser.add_argument("--num-slow", type=int, default=4)
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


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
    record |= {
        "options": vars(given),
        "batch_sizes": sorted(sizes),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
