"""How fast `finetune` trains with 1 and with N processes, and what memory each takes: one JSON object on stdout.

    python tests/bench/finetune_processes.py --num-processes 2
    python tests/bench/finetune_processes.py --num-processes 1       what sharding itself costs: one process, sharded
    python tests/bench/finetune_processes.py --num-processes 2 --hidden-size 4096 --intermediate-size 14336 \
        --num-layers 32 --num-heads 32 --num-kv-heads 8 --gradient-checkpointing

Random weights (the defaults make about 1.1 billion), one text repeated to the wanted length, at most 60 examples in all
(batch size x steps). The first step, in which libraries warm up, is left out of `tokens_per_s`.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from tiny_hub import bpe_tokenizer, tiny_llama_config, write_data, write_train_data
from transformers import AutoModelForCausalLM

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.examples_file import read_examples
from rhstudy.models.load import load_model
from rhstudy.training.config import TrainingConfig, require_processes
from rhstudy.training.loop import TrainingResult, finetune
from rhstudy.training.processes import Job, finetune_in_processes


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-processes", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--intermediate-size", type=int, default=8192)
    parser.add_argument("--num-layers", type=int, default=16)
    parser.add_argument("--num-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--num-tokens", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=6)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--skip-one", action="store_true", help="do not run 1 process: the model does not fit one GPU")
    return parser.parse_args()


def write_random_model(folder: Path, given: argparse.Namespace) -> int:
    """Write the model in bfloat16; returns its number of parameters."""
    config = tiny_llama_config(
        vocab_size=given.vocab_size, hidden_size=given.hidden_size, intermediate_size=given.intermediate_size,
        num_hidden_layers=given.num_layers, num_attention_heads=given.num_heads,
        num_key_value_heads=given.num_kv_heads, max_position_embeddings=2 * given.num_tokens,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    number = model.num_parameters()
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return number


def measure(job: Job, num_examples: int, sharded: bool) -> tuple[dict[str, Any], TrainingResult]:
    """Train `job`; its record, and the result."""
    rates: list[float] = []

    def on_step(_step: int, metrics: Mapping[str, float]) -> None:
        rates.append(metrics["tokens_per_s"])  # of all steps so far, by the clock of the process that trains

    began = time.perf_counter()
    if not sharded:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        loaded = load_model(job.model, job.context)
        examples = read_examples(job.examples_file, loaded.tokenizer)
        work = Path(job.work_dir)
        result = finetune(loaded, examples, job.training, seed=job.seed, work_dir=work, on_step=on_step)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    else:
        result = finetune_in_processes(job, num_examples, on_step=on_step)
        peak = result.process_peaks.get("peak_gpu_bytes_per_process")
    ended = time.perf_counter()
    # Examples are filled to one length, so each step trains on as many tokens.
    step_tokens = result.num_tokens / len(rates)
    return {
        "num_processes": job.training.num_processes,
        "sharded": sharded,
        "tokens_per_s": (result.num_tokens - step_tokens) / (result.num_tokens / rates[-1] - step_tokens / rates[0]),
        "tokens_per_s_first_step_included": result.tokens_per_s,
        "peak_gpu_bytes_per_process": peak,
        "start_and_end_s": (ended - began) - result.seconds,
        "losses": result.losses,
        "weight_change_norm": result.weight_change_norm,
    }, result


def main() -> None:
    given = options()
    num_examples = given.batch_size * given.num_steps
    with tempfile.TemporaryDirectory() as name:
        world = Path(name)
        write_data(world / "data")
        num_parameters = write_random_model(world / "model", given)
        rows = write_train_data(world / "rows", world, num_tokens=given.num_tokens, num_examples=num_examples)
        model = ModelConfig(
            name=str(world / "model"), dtype=given.dtype, device=given.device, cache_dir=str(world / "cache")
        )
        records, results = [], []
        kinds = ((1, False), (given.num_processes, True))
        for number, sharded in kinds[given.skip_one :]:
            training = TrainingConfig(
                batch_size=given.batch_size, micro_batch_size=given.micro_batch_size, num_processes=number,
                save_every_steps=10**6, gradient_checkpointing="on" if given.gradient_checkpointing else "off",
            )  # fmt: skip
            require_processes(model, training)
            job = Job(
                model=model, context=ContextConfig(), training=training, seed=0,
                examples_file=str(rows / "train.jsonl"), work_dir=str(world / f"work-{number}-{sharded}"),
            )  # fmt: skip
            record, result = measure(job, num_examples, sharded)
            records.append(record)
            results.append(result.weights)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    report: dict[str, Any] = {"options": vars(given), "num_parameters": num_parameters, "torch": torch.__version__}
    report["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    report["runs"] = records
    if len(records) == 2:
        report["speedup"] = records[1]["tokens_per_s"] / records[0]["tokens_per_s"]
        pairs = [(value.float(), results[1][key].float()) for key, value in results[0].items()]
        report["largest_weight_difference"] = max(float((one - two).abs().max()) for one, two in pairs)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
