"""What the benchmarks share: shapes with random weights, random prompts, arms timed in turns, ratios with intervals."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from rhstudy.types import Example, Needle, Span

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "smollm2-135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "llama3-8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                  "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip


def random_model(given: argparse.Namespace) -> PreTrainedModel:
    """The shape with random weights, in evaluation mode."""
    config = LlamaConfig(**SHAPES[given.shape], max_position_embeddings=4 * given.num_tokens, pad_token_id=0,
                         bos_token_id=1, eos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    with torch.device(given.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given.dtype))
    model.train(False)
    model.requires_grad_(False)
    return model


def random_examples(given: argparse.Namespace, vocabulary: int, number: int) -> list[Example]:
    """Prompts of random ids with a needle of 100 tokens that holds the answer."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(number):
        num_prompt = given.num_tokens - given.num_rows - int(rng.integers(0, given.spread + 1))
        prompt = rng.integers(3, min(vocabulary, 50000), num_prompt).tolist()
        start = int(rng.integers(0, len(prompt) - 100))
        place = Span(start + 10, start + 10 + given.num_rows)
        span = Span(start, start + 100)
        needle = Needle(char_span=span, token_span=span, answer_char_span=place, answer_token_span=place)
        made.append(
            Example(
                example_id=f"random-{index}",
                task="random",
                recipe="random",
                question="?",
                answers=("a",),
                prompt="p",
                answer=" a",
                needles=(needle,),
                prompt_ids=tuple(prompt),
                answer_ids=tuple(prompt[slice(*place)]),
            )
        )
    return made


def synchronised(device: str) -> float:
    """The time when the device has done everything so far."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def compared(
    given: argparse.Namespace, arms: Mapping[str, Callable[[], int]], clock: Callable[[], float]
) -> dict[str, Any]:
    """Run each arm `given.num_repeats` times in turns, after once to warm up.

    Args:
        given: has `num_repeats` and `device`.
        arms: the first is the baseline; each returns how many examples it ran.
        clock: seconds, when the device has done everything.

    Returns:
        Per arm: median and least seconds an example, peak memory, ratio of the medians to the baseline's.
    """
    cuda = given.device.startswith("cuda")
    times: dict[str, list[float]] = {name: [] for name in arms}
    peaks = dict.fromkeys(arms, 0)
    for repeat in range(given.num_repeats + 1):
        for name, arm in list(arms.items())[:: 1 if repeat % 2 else -1]:
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            began = clock()
            number = arm()
            spent = (clock() - began) / number
            if repeat:
                times[name].append(spent)
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() if cuda else 0)
    baseline = next(iter(arms))
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "arms": {
            name: {
                "example_s": statistics.median(values),
                "fastest_s": min(values),
                "peak_bytes": peaks[name],
                f"time_over_{baseline}": ratio_of_medians(values, times[baseline]),
            }
            for name, values in times.items()
        },
    }


def ratio_of_medians(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians of two arms timed in turns, with a 95 % bootstrap interval over repeats."""
    draws = np.random.default_rng(0).integers(0, len(own), (2000, len(own)))
    resampled = np.median(np.asarray(own)[draws], axis=1) / np.median(np.asarray(other)[draws], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    ratio = float(np.median(own) / np.median(other))
    return {"ratio": ratio, "low": float(low), "high": float(high), "num_repeats": len(own)}
