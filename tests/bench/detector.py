"""What watching every head costs: the detector beside a plain SDPA forward and beside eager `output_attentions`.

    python tests/bench/detector.py --shape smollm2-135m --num-tokens 32768
    python tests/bench/detector.py --shape smollm2-135m --num-tokens 4096 --eager
    python tests/bench/detector.py --shape smollm2-135m --num-tokens 4096 --num-examples 80 --direct --replayed
    python tests/bench/detector.py --shape llama3-8b --num-tokens 32768 --num-repeats 3

Random weights of the shape named, random prompts, equal ids, dtype and SDPA kernel for every arm; the plain forward
gets its ids on the device, computes as many logits rows as there are answer rows and keeps no cache. Where the detector
records its pass as a CUDA graph (once in each repeat, inside the time), `--direct` shows it without and `--replayed`
does the same to the plain forward. Arms alternate within each repeat, in turned order every second time. A repeat runs
`--num-examples` examples and is timed as a whole, with one synchronisation at its end. Prints one JSON record: per arm
the median time of an example and of its parts, peak memory, and, against `plain`, the ratio of the medians with a 95 %
bootstrap interval over repeats.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import transformers
from bench_shapes import SHAPES, random_examples, random_model, ratio_of_medians, synchronised
from tiny_models import word_tokenizer

from rhstudy.heads.detect import Detector, run_detector
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import prefill
from rhstudy.models.gold_pass import gold_batch
from rhstudy.models.graphs import CudaGraphs
from rhstudy.models.load import LoadedModel
from rhstudy.models.probe import ArgmaxObserver, observe


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--num-rows", type=int, default=17, help="answer tokens of each example")
    parser.add_argument("--num-examples", type=int, default=0, help="of one repeat; 0 = about 131,072 tokens")
    parser.add_argument("--num-repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--spread", type=int, default=0, help="prompts are up to this many tokens shorter")
    parser.add_argument("--direct", action="store_true", help="also the detector without CUDA graphs")
    parser.add_argument("--replayed", action="store_true", help="also the plain forward as a CUDA graph")
    parser.add_argument("--decode", action="store_true", help="also decode greedily, watched and not")
    parser.add_argument("--eager", action="store_true", help="also eager attention with output_attentions")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


class Bench:
    """The arms; each runs all examples once and returns the seconds of its parts per example."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.model = random_model(given)
        number = given.num_examples or max(1, 2**17 // given.num_tokens)
        self.examples = random_examples(given, self.model.config.vocab_size, number)
        self.loaded = LoadedModel(
            model=self.model, tokenizer=word_tokenizer(), layout=anatomy(self.model), label=given.shape, digest=""
        )
        size = given.batch_size
        self.groups = [self.examples[start : start + size] for start in range(0, number, size)]
        self.ids = [
            gold_batch([item.prompt_ids for item in group], [item.answer_ids for item in group], 0).ids.to(given.device)
            for group in self.groups
        ]
        self.arms: dict[str, Callable[[], dict[str, float]]] = {"plain": self.plain, "teacher_forced": self.watched}
        if given.direct:
            self.arms["teacher_forced_direct"] = lambda: self.watched(cuda_graphs=False)
        if given.replayed:
            self.arms["plain_replayed"] = self.replayed
        if given.decode:
            self.arms |= {"plain_decode": self.plain_decode, "decode": self.watched_decode}
        if given.eager:
            self.arms["eager_output_attentions"] = self.eager

    def plain(self) -> dict[str, float]:
        self.model.set_attn_implementation("sdpa")
        return self._whole(lambda ids: self.model(input_ids=ids, logits_to_keep=self.given.num_rows, use_cache=False))

    def replayed(self) -> dict[str, float]:
        self.model.set_attn_implementation("sdpa")

        def run(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.model(input_ids=ids, logits_to_keep=self.given.num_rows, use_cache=False).logits,)

        return self._whole(CudaGraphs(run, self.model.device))

    def eager(self) -> dict[str, float]:
        self.model.set_attn_implementation("eager")

        def run(ids: torch.Tensor) -> None:
            out = self.model(input_ids=ids, logits_to_keep=self.given.num_rows, use_cache=False, output_attentions=True)
            rows = slice(ids.shape[1] - 1 - self.given.num_rows, ids.shape[1] - 1)
            torch.stack([layer[:, :, rows].float().argmax(dim=-1) for layer in out.attentions])

        return self._whole(run)

    def _whole(self, run: Callable[[torch.Tensor], Any]) -> dict[str, float]:
        began = synchronised(self.given.device)
        with torch.inference_mode():
            for ids in self.ids:
                run(ids)
        return {"total_s": (synchronised(self.given.device) - began) / len(self.examples)}

    def watched(self, cuda_graphs: bool = True) -> dict[str, float]:
        detector = Detector(batch_size=self.given.batch_size, cuda_graphs=cuda_graphs)
        make_observable(self.model)
        began = synchronised(self.given.device)
        for _ in run_detector(self.loaded, self.examples, detector):
            pass
        return {"total_s": (synchronised(self.given.device) - began) / len(self.examples)}

    def plain_decode(self) -> dict[str, float]:
        self.model.set_attn_implementation("sdpa")
        return self._decode(watch=False)

    def watched_decode(self) -> dict[str, float]:
        make_observable(self.model)
        return self._decode(watch=True)

    @torch.inference_mode()
    def _decode(self, watch: bool) -> dict[str, float]:
        device, steps = self.given.device, self.given.num_rows
        spent = {"prefill_s": 0.0, "decode_s": 0.0, "scoring_s": 0.0}
        for group in self.groups:
            began = synchronised(device)
            batch = pad_batch([item.prompt_ids for item in group], [[]] * len(group), 0, device)
            last = batch.num_prompt - 1
            observer = ArgmaxObserver(range(last, last + steps))
            seen = observer if watch else None
            with observe(self.model, observer) if watch else torch.inference_mode():
                start = prefill(self.model, batch, observer=seen)
                filled = synchronised(device)
                greedy(self.model, start, max_new_tokens=steps, stop_ids=frozenset(), observer=seen)
                decoded = synchronised(device)
            if watch:
                observer.argmax().cpu()
            ended = synchronised(device)
            for name, seconds in zip(spent, (filled - began, decoded - filled, ended - decoded), strict=True):
                spent[name] += seconds / len(self.examples)
        return {**spent, "total_s": sum(spent.values())}


def main() -> None:
    given = options()
    bench = Bench(given)
    cuda = given.device.startswith("cuda")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in bench.arms}
    peaks: dict[str, int] = {}
    for repeat in range(given.num_repeats + 1):
        for name, arm in list(bench.arms.items())[:: 1 if repeat % 2 else -1]:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            found = arm()
            if repeat:  # the first is for libraries to warm up
                times[name].append(found)
                peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated() if cuda else 0)
    record: dict[str, Any] = {
        "options": vars(given),
        "num_examples": len(bench.examples),
        "num_heads": bench.loaded.layout.num_total_heads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "arms": {name: _arm(name, times, peaks) for name in times},
    }
    print(json.dumps(record))


def _arm(name: str, times: dict[str, list[dict[str, float]]], peaks: dict[str, int]) -> dict[str, Any]:
    baseline = "plain_decode" if name == "decode" else "plain"
    own, other = ([found["total_s"] for found in times[arm]] for arm in (name, baseline))
    return {
        **{part: statistics.median(found[part] for found in times[name]) for part in times[name][0]},
        "peak_bytes": peaks[name],
        "fastest_s": min(own),
        f"time_over_{baseline}": ratio_of_medians(own, other),
        f"peak_over_{baseline}": peaks[name] / peaks[baseline] if peaks[baseline] else None,
    }


if __name__ == "__main__":
    main()
