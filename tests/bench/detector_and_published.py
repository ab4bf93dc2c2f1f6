"""The detector beside the published program of Wu et al. 2024, on equal prompts, steps, dtype and prefill kernel.

    python tests/bench/detector_and_published.py --checkout RETRIEVAL_HEAD --published-python V/bin/python \
        --num-tokens 4096 --num-steps 50

V is the environment that published_program.py describes; the program runs unmodified there, in a process of its own,
between two rounds of ours. Both sides run one random model of the shape named, saved once, on the same random prompts:

    decode           ours in mode `published_code`, every quirk on: prefill, then `--num-steps` greedy steps
    teacher_forced   ours in its default mode: one pass over prompt and answer (`--num-rows` tokens)
    published        theirs: prefill, then `--num-steps` greedy steps

Prints one JSON record: median seconds of an example and of its parts (theirs: their own prefill, decode and scoring,
without the search for the needle), peak memory, and how many times longer theirs takes, from medians.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import transformers
from bench_shapes import SHAPES, random_examples, random_model, synchronised
from tiny_hub import VOCABULARY, bpe_tokenizer

from rhstudy.heads.detect import Detector, run_detector
from rhstudy.heads.published_code import PublishedQuirks
from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel
from rhstudy.types import Example

DRIVER = Path(__file__).with_name("published_program.py")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, help="a checkout of the published program")
    parser.add_argument("--published-python", required=True, help="command of a Python with its requirements")
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--num-steps", type=int, default=50, help="decoding steps of both")
    parser.add_argument("--num-rows", type=int, default=17, help="answer tokens of teacher forcing")
    parser.add_argument("--num-examples", type=int, default=4)
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    return parser.parse_args()


def ours(loaded: LoadedModel, examples: list[Example], detector: Detector, device: str) -> dict[str, list[float]]:
    """Seconds of each example, and peak memory."""
    seconds, peaks = [], []
    for example in examples:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = synchronised(device)
        list(run_detector(loaded, [example], detector))
        seconds.append(synchronised(device) - began)
        peaks.append(float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0)
    return {"total_s": seconds, "peak_bytes": peaks}


def theirs(given: argparse.Namespace, folder: Path, examples: list[Example]) -> dict[str, list[float]]:
    """The same of the published program, with its parts."""
    prompts = [
        {"prompt_ids": list(example.prompt_ids), "real_needle": "an answer of some words", "needle": "", "question": ""}
        for example in examples
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    command = [
        *shlex.split(given.published_python), str(DRIVER), "timed", "--checkout", given.checkout,
        "--model", str(folder / "model"), "--prompts", str(folder / "prompts.json"), "--dtype", given.dtype,
        "--device", given.device, "--num-steps", str(given.num_steps), "--repeats", str(given.num_repeats),
        "--warmups", "1", "--times-only", "--num-threads", str(torch.get_num_threads()),
        "--out", str(folder / "timed.json"),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    found = json.loads((folder / "timed.json").read_text(encoding="utf-8"))
    steps = {instance["num_new_tokens"] for instance in found["instances"]}
    if steps != {given.num_steps}:
        raise SystemExit(f"the published program made {sorted(steps)} steps, not {given.num_steps}: it met its stop id")
    parts = ("prefill_s", "decode_s", "scoring_s", "peak_bytes")
    values = {part: [float(instance[part]) for instance in found["instances"]] for part in parts}
    totals = [one + other for one, other in zip(values["prefill_s"], values["decode_s"], strict=True)]
    return {**values, "total_s": totals}


def main() -> None:
    given = options()
    model = random_model(given)
    tokenizer = bpe_tokenizer()
    loaded = LoadedModel(model=model, tokenizer=tokenizer, layout=anatomy(model), label=given.shape, digest="")
    # Ids the tokenizer knows: the published program asks it for the token of every id it scores.
    examples = random_examples(given, VOCABULARY, given.num_examples)
    everything = PublishedQuirks(stop_ids=(), rouge_gate=False)
    detectors = {
        "decode": Detector(mode="published_code", published=everything, max_new_tokens=given.num_steps),
        "teacher_forced": Detector(),
    }
    arms: dict[str, dict[str, list[float]]] = {name: {"total_s": [], "peak_bytes": []} for name in detectors}

    def rounds(number: int) -> None:
        for _ in range(number):
            for name, detector in detectors.items():
                for part, values in ours(loaded, examples, detector, given.device).items():
                    arms[name][part] += values

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        rounds(1)
        arms = {arm: {part: [] for part in values} for arm, values in arms.items()}  # the first was for warming up
        rounds(given.num_repeats)
        arms["published"] = theirs(given, folder, examples)
        rounds(given.num_repeats)
    medians = {arm: {part: statistics.median(found) for part, found in parts.items()} for arm, parts in arms.items()}
    record: dict[str, Any] = {
        "options": {**vars(given), "checkout": "", "published_python": ""},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "num_timed": {arm: len(parts["total_s"]) for arm, parts in arms.items()},
        "spread_s": {arm: [min(parts["total_s"]), max(parts["total_s"])] for arm, parts in arms.items()},
        "arms": medians,
        "published_over": {
            arm: {part: medians["published"][part] / medians[arm][part] for part in medians[arm] if medians[arm][part]}
            for arm in detectors
        },
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
