"""What building data costs: wall time and peak memory of whole `make-data` runs, and of the same run again.

    python tests/bench/make_data.py --train-file mdqa --recipes real templated_in_filler symbolic

    python tests/bench/make_data.py --recipes all

Each recipe is built in a process of its own (loading, BM25 index, prompts with spans, leak check, card, Parquet), then
asked for again, which must be a cache hit. Times are of the stage, without starting Python and its libraries; CPU times
(all threads, and the processes that build prompts) tell what a busy machine hides. Memory is the peak of the whole
tree of processes, pages that they share counted once (Pss, looked at every half second), and that of the first process.
Prints one JSON record: per recipe seconds, peak bytes, seconds of the second run, the longest and shortest prompt, and
the ratio of its time to the first recipe's. ``--rounds`` builds all recipes in turn so many times, for machines
change their speed: median, least and most of the times and of the ratios within a round. ``all``: the paper's corners
and invented facts as contexts.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import tokenizers

from rhstudy.configs import ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import CORNERS, Knobs
from rhstudy.stages.make_data import CARD, MakeDataConfig, run
from rhstudy.tracking.opening import open_recorder

CONTEXTS: dict[str, dict[str, Any]] = {
    "real_in_templated": {"context_diversity": "templated"},
    "templated_in_templated": {"concept_expression": "templated", "context_diversity": "templated"},
    "diverse_in_templated": {"concept_expression": "templated_diverse", "context_diversity": "templated"},
    "templated_in_templated_4_words": {
        "concept_expression": "templated", "context_diversity": "templated", "answer_words": 4,
    },
    "world_in_templated_4_words": {
        "concept_expression": "templated", "context_diversity": "templated", "answer_words": 4,
        "entity_source": "faker_world",
    },
}  # fmt: skip
"""Invented facts as distractors: no preset has them; answers of a given length draw twenty names a fact."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mdqa")
    parser.add_argument("--train-file", default="mdqa")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", nargs="+", default=["real"])
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--num-tokens", type=int, default=32768)
    parser.add_argument("--num-cores", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(given: argparse.Namespace) -> dict[str, Any]:
    """One recipe, built and asked for again, in this process on `num_cores` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.num_cores])
    name = given.recipes[0]
    recipe = {"knobs": Knobs(name=name, **CONTEXTS[name])} if name in CONTEXTS else {"recipe": name}
    data = DataConfig(
        task=given.task, train_file=given.train_file, num_examples=given.num_examples, num_tokens=given.num_tokens,
        num_workers=given.num_workers, **recipe,
    )  # fmt: skip
    config = MakeDataConfig(data=data, model=ModelConfig(name=given.model), tracking=TrackingConfig(recorder="folder"))
    recorder = open_recorder(config.tracking)
    seconds, cores, reused, card = [], [], [], {}
    for _ in range(2):
        start, used = time.perf_counter(), cpu_seconds()
        result = run(config, recorder)
        seconds.append(round(time.perf_counter() - start, 3))
        cores.append(round(cpu_seconds() - used, 3))
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
        "first_process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_prompt_tokens": card["parts"]["train"]["num_prompt_tokens"],
        "num_documents": card["parts"]["train"]["num_documents"],
        "num_leaks": card["parts"]["train"]["num_leaks"],
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def tree_bytes(pid: int) -> int:
    """Memory of a process and all below it."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:  # it has ended
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return (int(found.group(1)) * 1024 if found else 0) + sum(tree_bytes(int(child)) for child in children)


class Peak(threading.Thread):
    """The most memory that a tree of processes was seen with."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.bytes, self.ended = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.bytes = max(self.bytes, tree_bytes(self.pid))


def measured(given: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """`build` in a fresh process."""
    plain = {key: value for key, value in vars(given).items() if key not in ("child", "recipes", "rounds")}
    flags = [item for key, value in plain.items() for item in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--recipes", recipe, *flags]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
        peak = Peak(process.pid)
        peak.start()
        output, _ = process.communicate()
        peak.ended.set()
    if process.returncode:
        raise SystemExit(f"{recipe}: status {process.returncode}")
    found = dict(json.loads(output.splitlines()[-1]))
    return {**found, "peak_bytes": peak.bytes, "load_1min": os.getloadavg()[0]}


def summed_up(number: int, rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What the rounds found of one recipe: the last record, its times as median, least and most."""
    found = dict(rounds[-1][number])
    for key, ratio in (("build_s", "ratio_to_first"), ("build_cpu_s", "cpu_ratio_to_first")):
        found[key] = spread([each[number][key] for each in rounds])
        found[ratio] = spread([each[number][key] / each[0][key] for each in rounds])
    found["peak_bytes"] = max(each[number]["peak_bytes"] for each in rounds)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    given = options()
    if given.child:
        print(json.dumps(build(given)))
        return
    names = [*CORNERS, *CONTEXTS] if given.recipes == ["all"] else given.recipes
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(given.rounds):
        rounds.append([])
        for name in names:
            rounds[-1].append(measured(given, name))
            print(json.dumps(rounds[-1][-1]), file=sys.stderr, flush=True)
    recipes = [summed_up(number, rounds) for number in range(len(names))]
    machine = {"python": platform.python_version(), "tokenizers": tokenizers.__version__}
    print(json.dumps({"options": vars(given), "recipes": recipes, **machine}))


if __name__ == "__main__":
    main()
