"""Learning curves of every way to fine-tune, on the same rows of real MDQA in the same order.

question: do all variants of context extension and fine-tuning learn, and how do their losses compare?
command:  python sweeps/finetuning/curves.py
time:     about 30 minutes on one CPU core
expected: attention-only with 8-bit moments as with float32 ones; adapters close behind; at 512 tokens, far inside the
          native window, scaled positions begin worse than shipped ones and training makes up for part of it

    python sweeps/finetuning/curves.py --num-tokens 10240 --num-examples 320 --batch-size 8 --seeds 0 1

Each variant is a run of the stage `finetune` on one run of `make-data`; finished runs are reused, so a run that was
killed goes on. One pass over the rows: a step's loss is on rows that were not trained on before. Writes ``curves.csv``
(variant, seed, step, loss), ``curves.png`` (mean over seeds, running mean of three steps) and ``results.jsonl`` into
this folder, or into ``--output``. Nothing is tuned: 3e-4 for whole attention modules as in the studies of
sweeps/first-light, 1e-3 for adapters.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.figures import save_png, training_loss_curve
from rhstudy.stages import finetune, make_data
from rhstudy.tracking.opening import open_recorder
from rhstudy.training.config import TrainingConfig

HERE = Path(__file__).parent
ADAPTERS = {"method": "lora", "learning_rate": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from attention-only training of the model as shipped."""

    training: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "none"


def variants(factor: float) -> dict[str, Variant]:
    """Every variant by name; theta is raised from 1e5 to 3e5 as in sweeps/first-light, the others scale by `factor`."""
    scaled = {kind: Variant(context={"scaling": kind, "factor": factor}) for kind in ("linear", "ntk", "yarn")}
    return {
        "attention": Variant(),
        "attention, 8-bit AdamW": Variant(training={"optimizer": "adamw_8bit"}),
        "LoRA, attention": Variant(training=ADAPTERS),
        "LoRA, all": Variant(training={**ADAPTERS, "lora_targets": "all"}),
        "QLoRA, attention": Variant(training={**ADAPTERS, "optimizer": "adamw_8bit"}, quantization="nf4"),
        "attention, theta 3e5": Variant(context={"rope_theta": 3e5}),
        **{f"attention, {kind} x{factor:g}": variant for kind, variant in scaled.items()},
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--train-file", default="mdqa")
    parser.add_argument("--num-tokens", type=int, default=512)
    parser.add_argument("--num-examples", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; default: all")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--runs", default="runs", help="folder recorder and unfinished work")
    return parser.parse_args()


def main() -> None:
    """Train every variant and write curves after each, so that what is there can be looked at."""
    given = options()
    tracking = TrackingConfig(recorder="folder", folder=given.runs, work_dir=str(Path(given.runs) / "work"))
    recorder = open_recorder(tracking)
    chosen = variants(given.factor)
    records: list[dict[str, Any]] = []
    losses: dict[str, dict[int, list[float]]] = {}
    for seed in given.seeds:
        data = DataConfig(
            recipe="real",
            train_file=given.train_file,
            num_tokens=given.num_tokens,
            num_examples=given.num_examples,
            seed=seed,
        )
        model = ModelConfig(name=given.model)
        made = make_data.run(make_data.MakeDataConfig(data=data, model=model, tracking=tracking), recorder)
        for name in given.only or chosen:
            variant = chosen[name]
            config = finetune.FinetuneConfig(
                data=made.run_id,
                model=ModelConfig(name=given.model, quantization=variant.quantization),
                context=ContextConfig(**variant.context),
                training=TrainingConfig(batch_size=given.batch_size, **variant.training),
                seed=seed,
                tracking=tracking,
            )
            done = finetune.run(config, recorder, run_name=f"{name}, seed {seed}")
            lines = done.artifacts.file(finetune.TRAINING_LOG).read_text().splitlines()
            losses.setdefault(name, {})[seed] = [json.loads(line)["loss"] for line in lines]
            records.append(record(name, seed, given, done.artifacts.summary(), losses[name][seed]))
            write(given.output, losses, records)
            print(json.dumps(records[-1]), flush=True)


def record(
    name: str, seed: int, given: argparse.Namespace, summary: Mapping[str, Any], losses: Sequence[float]
) -> dict[str, Any]:
    """What `results.jsonl` keeps of a variant."""
    third = max(1, len(losses) // 3)
    kept = ("num_steps", "num_tokens", "training_s", "train_tokens_per_s", "weight_change_norm", "train_peak_gpu_bytes")
    mfu = {} if "train_mfu_undefined" in summary else {"train_mfu": summary["train_mfu"]}
    return {
        "variant": name,
        "seed": seed,
        "first_third_loss": statistics.fmean(losses[:third]),
        "last_third_loss": statistics.fmean(losses[-third:]),
        **{key: summary[key] for key in kept if key in summary},
        **mfu,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()
                    if key not in ("output", "runs", "only")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def write(
    folder: Path, losses: Mapping[str, Mapping[int, Sequence[float]]], records: Sequence[Mapping[str, Any]]
) -> None:
    """The files of what is finished so far."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", "step", "loss"])
        for name, by_seed in losses.items():
            for seed, values in by_seed.items():
                writer.writerows([name, seed, step, f"{value:.6f}"] for step, value in enumerate(values))
    (folder / "results.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records), encoding="utf-8")
    means = {name: smooth([statistics.fmean(step) for step in zip(*by_seed.values(), strict=True)])
             for name, by_seed in losses.items()}  # fmt: skip
    num_steps = len(next(iter(means.values())))
    save_png(training_loss_curve(range(num_steps), means), folder / "curves.png")


def smooth(values: Sequence[float], width: int = 3) -> list[float]:
    """Running mean of the last `width` values."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


if __name__ == "__main__":
    main()
