"""How long one whole arm of a study takes in a warm process: data, fine-tuning, head scores, answers, all recorded.

    python tests/bench/study_arm.py --data ../shared/data --model smollm2-135m

Runs a study on MDQA (`--data` holds mdqa/ and wikipedia_passages/) in this process, with the next arm's data built
ahead where `--build-ahead` says so. The first arm reads everything for the first time; the record has the wall-clock
seconds of every trained arm and of its stages, from the runs themselves, and the median over the arms after the first.
An arm's seconds include recording, checkpoint and artifacts; the analysis at the end is apart. Prints one JSON record.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import transformers

from rhstudy import study
from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.plan import StudyConfig
from rhstudy.stages.detect import ScoringSettings
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.recorder import Recorder, RunRecord
from rhstudy.training.config import TrainingConfig


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cache", default="")
    parser.add_argument("--recipes", nargs="+", default=["real", "templated_in_passages", "templated_in_filler"])
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--num-examples", type=int, default=320)
    parser.add_argument("--num-rows", type=int, default=80, help="rows scored, and as many answered")
    parser.add_argument("--build-ahead", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="keep the base in memory")
    parser.add_argument("--recorder", default="mlflow" if importlib.util.find_spec("mlflow") else "folder")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def config_of(given: argparse.Namespace, folder: Path) -> StudyConfig:
    files = {
        "train_file": "mdqa/train.jsonl",
        "eval_file": "mdqa/eval.jsonl",
        "passages_file": "wikipedia_passages/passages.jsonl",
    }
    paths = {key: str(given.data / name) for key, name in files.items()}
    rows = {"num_score": given.num_rows, "num_eval": given.num_rows, "num_examples": given.num_examples}
    return StudyConfig(
        name="timed",
        recipes=tuple(given.recipes),
        ceiling_seeds=(),
        baselines=(),
        data=DataConfig(task="mdqa", num_tokens=given.num_tokens, num_dev=0, **rows, **paths),
        model=ModelConfig(name=given.model, device=given.device, cache_dir=given.cache),
        context=ContextConfig(rope_theta=300_000.0),
        training=TrainingConfig(batch_size=8),
        scoring=ScoringSettings(batch_size=1),
        answering=AnsweringSettings(max_new_tokens=20),
        build_ahead=given.build_ahead,
        tracking=TrackingConfig(
            recorder=given.recorder, uri=f"sqlite:///{folder}/mlflow.db", folder=str(folder / "runs"),
            work_dir=str(folder / "work"), system_metrics=False,
        ),
    )  # fmt: skip


def arms_of(recorder: Recorder) -> list[dict[str, Any]]:
    """Seconds of every arm and of its stages, in the order in which they ran."""
    runs = recorder.find_runs()
    found = []
    for arm in sorted((run for run in runs if run.tags["rhstudy.stage"] == "arm"), key=lambda run: run.start_time_s):
        stages = [run for run in runs if run.parent_run_id == arm.run_id]
        told = {run.tags["rhstudy.stage"]: round(_seconds(run), 3) for run in stages}
        metrics = {key: value for run in stages for key, value in run.metrics.items()}
        rates = {key: round(value, 1) for key, value in metrics.items() if key.endswith("tokens_per_s")}
        found.append({"arm": arm.name, "arm_s": round(_seconds(arm), 3), "stages_s": told, **rates})
    return found


def _seconds(run: RunRecord) -> float:
    return (run.end_time_s or 0.0) - run.start_time_s


def main() -> None:
    given = options()
    with tempfile.TemporaryDirectory() as name:
        config = config_of(given, Path(name))
        if not given.keep:
            study.keeping = contextlib.nullcontext  # type: ignore[assignment]
        began = time.monotonic()
        recorder = open_recorder(config.tracking)
        study.run(config, recorder)
        seconds = time.monotonic() - began
        arms = arms_of(recorder)
    record = {
        "bench": "study_arm",
        **{key: value for key, value in vars(given).items() if key not in ("data", "cache")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "num_threads": torch.get_num_threads(),
        "training": dataclasses.asdict(config.training),
        "study_s": round(seconds, 2),
        "arms": arms,
        "warm_arm_s": round(statistics.median(arm["arm_s"] for arm in arms[1:]), 3) if len(arms) > 1 else None,
    }
    print(json.dumps(record, default=str))


if __name__ == "__main__":
    main()
