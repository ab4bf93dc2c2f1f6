"""How fast training steps are, beside Hugging Face's Trainer (+ PEFT) with its defaults: one JSON object on stdout.

    python tests/bench/finetune.py                                   all arms, one GPU
    python tests/bench/finetune.py --arms attention-16k attention-4k
    python tests/bench/finetune.py --small --device cpu              a try-out on tiny shapes

Arms: `attention-16k` and `attention-4k` train the attention modules of the 135M shape whole, `lora-16k` and `lora-4k`
adapters beside them, on steps of 8 examples of random ids; `qlora-8b` is our QLoRA step of the 8B shape at 32k tokens,
alone. Random weights, equal rows in equal order, equal rates. Both sides hold what is trained in float32, the rest in
bfloat16, and compute under autocast; all else of the Trainer is its default (fused AdamW, whole logits, no
checkpointing; batches of 8, cut in halves with accumulation where they do not fit). Ours runs with compiled layers (as
`training.compile` does in a study; compiling is part of the first step, which is not timed) and, as `plain`, without;
not for qlora-8b, whose layers are quantised. The sides alternate, with
`--num-rounds` turns of 1 step to warm up and `--num-steps` timed ones. Times are per step, taken at its end on the GPU;
`speedup` is the ratio of the median times, theirs over ours, with a 95 % bootstrap interval over timed steps.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import transformers
from bench_shapes import random_examples, random_model, ratio_of_medians, synchronised
from tiny_models import word_tokenizer
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from rhstudy.models.adapters import adapter_config
from rhstudy.models.anatomy import anatomy, attention_modules
from rhstudy.models.load import LoadedModel
from rhstudy.training.batching import num_sequence_tokens
from rhstudy.training.config import TrainingConfig
from rhstudy.training.context import unfreeze_attention
from rhstudy.training.flops import peak_flops, step_flops
from rhstudy.training.loop import finetune, plan_steps
from rhstudy.types import Example

END_ID, NUM_ROWS, RATE, RANK, ALPHA = 2, 5, 3e-4, 16, 32
ARMS: dict[str, dict[str, Any]] = {
    "attention-16k": {"shape": "smollm2-135m", "num_tokens": 16384, "batch_size": 8, "method": "attention"},
    "attention-4k": {"shape": "smollm2-135m", "num_tokens": 4096, "batch_size": 8, "method": "attention"},
    "lora-16k": {"shape": "smollm2-135m", "num_tokens": 16384, "batch_size": 8, "method": "lora"},
    "lora-4k": {"shape": "smollm2-135m", "num_tokens": 4096, "batch_size": 8, "method": "lora"},
    "qlora-8b": {"shape": "llama3-8b", "num_tokens": 32768, "batch_size": 1, "method": "qlora"},
}
Measured = tuple[list[float], dict[str, Any]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--num-steps", type=int, default=5, help="timed steps of each turn")
    parser.add_argument("--num-rounds", type=int, default=2, help="turns of each side; qlora-8b has one")
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--packing", action="store_true", help="ours packs instead of padding")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the tiny shape and 1/64 of the tokens")
    return parser.parse_args()


def arm_options(given: argparse.Namespace, name: str) -> argparse.Namespace:
    """What an arm is about, beside the command line's."""
    arm = argparse.Namespace(**vars(given), **ARMS[name], num_rows=NUM_ROWS)
    if given.small:
        arm.shape, arm.num_tokens = "tiny", max(160, arm.num_tokens // 64)
    return arm


def rows_of(arm: argparse.Namespace, vocabulary: int) -> list[Example]:
    return random_examples(arm, vocabulary, arm.batch_size * (arm.num_steps + 1))


def model_of(arm: argparse.Namespace) -> PreTrainedModel:
    model = random_model(arm)
    return quantised(model, getattr(torch, arm.dtype)) if arm.method == "qlora" else model


def quantised(model: PreTrainedModel, compute: torch.dtype) -> PreTrainedModel:
    """Every linear layer but the LM head in nf4, twice quantised, as `load_model` gives it, in place."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = model.get_output_embeddings()
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in found:
        if layer is head:
            continue
        new = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=compute, quant_type="nf4",
                         device="meta")  # fmt: skip
        weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        new.weight = weight.to(layer.weight.device)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, new)
        layer.weight.data = torch.empty(0)
    model.is_loaded_in_4bit = True  # what PEFT asks
    return model


def ours(arm: argparse.Namespace, *, compiled: bool = False) -> Measured:
    """Seconds of each timed step, and what else is reported."""
    model = model_of(arm)
    rows = rows_of(arm, model.config.vocab_size)
    loaded = LoadedModel(
        model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label=arm.shape, digest=""
    )  # fmt: skip
    config = TrainingConfig(
        method="attention" if arm.method == "attention" else "lora",
        lora_rank=RANK,
        lora_alpha=ALPHA,
        optimizer="adamw_8bit" if arm.method == "qlora" else "adamw",
        gradient_checkpointing="on" if arm.method == "qlora" else "auto",
        learning_rate=RATE,
        warmup_fraction=0.0,
        batch_size=arm.batch_size,
        packing=arm.packing,
        compile="on" if compiled else "off",
        save_every_steps=10**6,
    )
    elapsed: list[float] = []
    tokens = [sum(num_sequence_tokens(rows[i]) for i in step) for step in plan_steps(len(rows), config, 0)]

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        elapsed.append(sum(tokens[: step + 1]) / metrics["tokens_per_s"])

    with tempfile.TemporaryDirectory() as work:
        result = finetune(loaded, rows, config, seed=0, work_dir=Path(work), on_step=on_step)
    sequences = [(num_sequence_tokens(row), len(row.answer_ids) + 1) for row in rows]
    facts = {
        "mean_loss": statistics.fmean(result.losses),
        "peak_gpu_bytes": result.peak_gpu_bytes,
        "gradient_checkpointing": result.gradient_checkpointing,
        "step_tokens": result.num_tokens / len(tokens),
        "step_flops": step_flops(model, set(result.weights)).of(sequences) / len(tokens),
    }
    return [end - begin for begin, end in pairwise(elapsed)], facts


class InOrder(Trainer):
    """The Trainer, with rows in the order given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)


class Clock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.times.append(synchronised(self.device))


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded on the right, with the mask that transformers' collators give."""
    width = max(len(row["input_ids"]) for row in rows)
    filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        key: torch.tensor([[*row[key], *[value] * (width - len(row[key]))] for row in rows])
        for key, value in filled.items()
    }


def trainer_row(row: Example) -> dict[str, list[int]]:
    ids = [*row.prompt_ids, *row.answer_ids, END_ID]
    labels = [*[-100] * len(row.prompt_ids), *row.answer_ids, END_ID]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def theirs(arm: argparse.Namespace) -> Measured:
    """As `ours`; batches are halved until they fit."""
    size = arm.batch_size
    while True:
        try:
            return _theirs(arm, size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
        freed()


def _theirs(arm: argparse.Namespace, size: int) -> Measured:
    model: Any = random_model(arm)
    rows = rows_of(arm, model.config.vocab_size)
    order = [index for step in plan_steps(len(rows), TrainingConfig(batch_size=arm.batch_size), 0) for index in step]
    if arm.method == "attention":
        unfreeze_attention(model)
    else:
        from peft import get_peft_model

        attention = [name for name, _ in attention_modules(model).values()]
        names = [f"{name}.{part}_proj" for name in attention for part in "qkvo"]
        model = get_peft_model(model, adapter_config(names, rank=RANK, alpha=ALPHA))
    clock = Clock(arm.device)
    with tempfile.TemporaryDirectory() as work:
        arguments = TrainingArguments(
            output_dir=work, per_device_train_batch_size=size, gradient_accumulation_steps=arm.batch_size // size,
            learning_rate=RATE, num_train_epochs=1, bf16=arm.dtype == "bfloat16", use_cpu=arm.device == "cpu",
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data: Any = [trainer_row(rows[index]) for index in order]
        trainer = InOrder(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock])
        if arm.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        outcome = trainer.train()
    facts = {
        "mean_loss": outcome.training_loss,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if arm.device != "cpu" else None,
        "examples_a_pass": size,
    }
    return [end - begin for begin, end in pairwise(clock.times)], facts


def freed() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measured(arm: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns (qlora: ours once)."""
    compiled = functools.partial(ours, compiled=True)
    sides: dict[str, Callable[[argparse.Namespace], Measured]] = {"ours": compiled, "plain": ours, "trainer": theirs}
    if arm.method == "qlora":
        sides, arm.num_rounds = {"ours": ours}, 1
    elif arm.packing:
        del sides["plain"]
        sides["ours"] = ours
    times: dict[str, list[float]] = {name: [] for name in sides}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(arm.num_rounds):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            freed()
            spent, facts[name] = sides[name](arm)
            times[name] += spent
    peak, reason = peak_flops(torch.device(arm.device), getattr(torch, arm.dtype))
    num_tokens, num_flops = facts["ours"]["step_tokens"], facts["ours"]["step_flops"]
    facts = {name: {key: value for key, value in told.items() if "step_" not in key} for name, told in facts.items()}
    record: dict[str, Any] = {"step_tokens": num_tokens, "step_flops": num_flops}
    for name, spent in times.items():
        middle = statistics.median(spent)
        mfu = num_flops / middle / peak
        record[name] = {
            "step_s": middle, "slowest_s": max(spent), "fastest_s": min(spent), "num_timed_steps": len(spent),
            "tokens_per_s": num_tokens / middle, "mfu": None if reason else mfu, **facts[name],
        }  # fmt: skip
    if reason:
        record["mfu_undefined"] = reason
    if "trainer" in times:
        record["speedup"] = ratio_of_medians(times["trainer"], times["ours"])
    if "plain" in times:
        record["speedup_plain"] = ratio_of_medians(times["trainer"], times["plain"])
    return record


def run_arm(given: argparse.Namespace, name: str) -> dict[str, Any]:
    arm = arm_options(given, name)
    if arm.method == "qlora":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            return {"skipped": "bitsandbytes is not installed"}
    if arm.method != "attention":
        try:
            import peft  # noqa: F401
        except ImportError:
            return {"skipped": "peft is not installed"}
    return measured(arm)


def main() -> None:
    given = options()
    began = time.perf_counter()
    record: dict[str, Any] = {
        "options": vars(given),
        "device": torch.cuda.get_device_name() if given.device != "cpu" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "arms": {},
    }
    for name in given.arms:
        record["arms"][name] = run_arm(given, name)
        print(f"{name}: {json.dumps(record['arms'][name])}", file=sys.stderr, flush=True)
    record["total_s"] = time.perf_counter() - began
    print(json.dumps(record))


if __name__ == "__main__":
    main()
