"""What building data costs: wall time and peak memory of whole `make-data` runs, and of the same run again.

    python tests/bench/make_data.py --train-file mdqa --recipes real templated_in_filler symbolic

Each recipe is built in a process of its own (loading, BM25 index, prompts with spans, leak check, card, Parquet), then
asked for again, which must be a cache hit. Times are of the stage, without starting Python and its libraries; CPU times
(all threads) tell what a busy machine hides; memory is the process's peak. Prints one JSON record: per recipe seconds,
peak bytes, seconds of the second run, the longest and shortest prompt, and the ratio of its time to the first recipe's.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import tokenizers

from rhstudy.configs import ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.stages.make_data import CARD, MakeDataConfig, run
from rhstudy.tracking.opening import open_recorder


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mdqa")
    parser.add_argument("--train-file", default="mdqa")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", nargs="+", default=["real"])
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--num-tokens", type=int, default=32768)
    parser.add_argument("--num-cores", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(given: argparse.Namespace) -> dict[str, Any]:
    """One recipe, built and asked for again, in this process."""
    data = DataConfig(
        task=given.task, recipe=given.recipes[0], train_file=given.train_file,
        num_examples=given.num_examples, num_tokens=given.num_tokens,
    )  # fmt: skip
    config = MakeDataConfig(data=data, model=ModelConfig(name=given.model), tracking=TrackingConfig(recorder="folder"))
    recorder = open_recorder(config.tracking)
    seconds, cores, reused, card = [], [], [], {}
    for _ in range(2):
        start, used = time.perf_counter(), time.process_time()
        result = run(config, recorder)
        seconds.append(round(time.perf_counter() - start, 3))
        cores.append(round(time.process_time() - used, 3))
        reused.append(result.reused)
        card = json.loads(result.artifacts.file(CARD).read_text(encoding="utf-8"))
    if reused != [False, True]:
        raise SystemExit(f"the second run must be a cache hit, got reused {reused}")
    return {
        "recipe": given.recipes[0],
        "build_s": seconds[0],
        "build_cpu_s": cores[0],
        "cache_hit_s": seconds[1],
        "cache_hit_cpu_s": cores[1],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_prompt_tokens": card["parts"]["train"]["num_prompt_tokens"],
        "num_documents": card["parts"]["train"]["num_documents"],
        "num_leaks": card["parts"]["train"]["num_leaks"],
    }


def measured(given: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """`build` in a fresh process, on `num_cores` cores."""
    cores = sorted(os.sched_getaffinity(0))[: given.num_cores]
    plain = {key: value for key, value in vars(given).items() if key not in ("child", "recipes", "num_cores")}
    flags = [item for key, value in plain.items() for item in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--recipes", recipe, *flags]
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
    return dict(json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    given = options()
    if given.child:
        print(json.dumps(build(given)))
        return
    recipes = [measured(given, recipe) for recipe in given.recipes]
    for found in recipes:
        found["ratio_to_first"] = round(found["build_s"] / recipes[0]["build_s"], 3)
        found["cpu_ratio_to_first"] = round(found["build_cpu_s"] / recipes[0]["build_cpu_s"], 3)
    machine = {"python": platform.python_version(), "tokenizers": tokenizers.__version__}
    print(json.dumps({"options": vars(given), "recipes": recipes, **machine, "load_1min": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
