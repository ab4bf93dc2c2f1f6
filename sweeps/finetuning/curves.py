"""Learning curves of every way to fine-tune, on the same rows in the same order.

question: do all variants of context extension and fine-tuning learn, and how do their losses compare?
command:  python sweeps/finetuning/curves.py gpu | smollm2-cpu | tiny-cpu
time:     smollm2-cpu and tiny-cpu side by side: 24 minutes on two busy CPU cores; gpu: not run yet
expected: attention-only with 8-bit moments as with float32 ones; adapters close behind; NF4 costs this small model
          something at the start; linear scaling changes every position most and begins worst

`gpu`: SmolLM2-135M on real MDQA at 10,240 tokens, beyond its native 8,192. `smollm2-cpu`: the same model and task at
320 tokens, far inside the native window: what a variant costs and gains in a few steps, no statement about extension.
`tiny-cpu`: the shipped model `tiny`, 256 tokens native, on literal cue retrieval at 1,024.

Each variant is a run of the stage `finetune` on one run of `make-data`; finished runs are reused, so a run that was
killed goes on, and a variant whose library is missing is left out and said. On a machine without data or network
``--data`` takes the artifact folder of a `make-data` run (one seed) and ``--model`` the model's folder; without
matplotlib no figure is drawn there, ``--draw`` does it later from NAME.csv.

One pass over the rows: a step's loss is on rows that were not trained on before. Writes NAME.csv (variant, seed, step,
loss), NAME.png (mean over seeds, running mean of three steps) and NAME.jsonl into this folder, or into ``--output``.
Nothing is tuned here: whole attention modules take 3e-4 as in sweeps/first-light, on `tiny` 1e-3 as in the quickstart;
adapters about three times as much.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.errors import InputError
from rhstudy.figures import save_png, training_loss_curve
from rhstudy.stages import finetune, make_data
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.training.config import TrainingConfig

HERE = Path(__file__).parent
MDQA = {"recipe": "real", "train_file": "mdqa"}
CUES = {"recipe": "real", "train_file": "python-docs", "task": "cue_retrieval"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Model, data and length of one set of curves; `theta` is the raised base, `factor` what the others scale by."""

    model: str
    data: Mapping[str, Any]
    theta: float
    factor: float
    seeds: tuple[int, ...]
    batch_size: int
    rate: float = 3e-4
    adapter_rate: float = 1e-3


SETTINGS = {
    "gpu": Setting(
        model="smollm2-135m", data={**MDQA, "num_tokens": 10240, "num_examples": 320}, theta=3e5, factor=2.0,
        seeds=(0,), batch_size=8,
    ),
    "smollm2-cpu": Setting(
        model="smollm2-135m", data={**MDQA, "num_tokens": 320, "num_examples": 20, "on_bad_row": "skip"}, theta=3e5,
        factor=2.0, seeds=(0,), batch_size=2,
    ),
    "tiny-cpu": Setting(
        model="tiny", data={**CUES, "num_tokens": 1024, "num_examples": 64}, theta=1.5e5, factor=4.0, seeds=(0, 1),
        batch_size=4, rate=1e-3, adapter_rate=3e-3,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from attention-only training of the model as shipped."""

    training: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "none"


def variants(setting: Setting) -> dict[str, Variant]:
    """Every variant by name."""
    whole = {"learning_rate": setting.rate}
    adapters = {"method": "lora", "learning_rate": setting.adapter_rate}
    scaled = {
        f"attention, {kind} x{setting.factor:g}": Variant(
            training=whole, context={"scaling": kind, "factor": setting.factor}
        )
        for kind in ("linear", "ntk", "yarn")
    }
    return {
        "attention": Variant(training=whole),
        "attention, 8-bit AdamW": Variant(training={**whole, "optimizer": "adamw_8bit"}),
        "LoRA, attention": Variant(training=adapters),
        "LoRA, all": Variant(training={**adapters, "lora_targets": "all"}),
        "QLoRA, attention": Variant(training={**adapters, "optimizer": "adamw_8bit"}, quantization="nf4"),
        f"attention, theta {setting.theta:g}": Variant(training=whole, context={"rope_theta": setting.theta}),
        **scaled,
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the setting's own")
    parser.add_argument("--only", nargs="*", help="names of variants; default: all")
    parser.add_argument("--data", default="", help="artifact folder or run id of make-data, of the one seed given")
    parser.add_argument("--model", default="", help="folder of the setting's model in hub layout")
    parser.add_argument("--draw", action="store_true", help="only draw the figure from NAME.csv")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--runs", default="runs", help="folder recorder and unfinished work")
    return parser.parse_args()


def main() -> None:
    """Train every variant and write curves after each, so that what is there can be looked at."""
    given = options()
    setting = SETTINGS[given.name]
    if given.draw:
        draw(given.output / given.name)
        return
    tracking = TrackingConfig(recorder="folder", folder=given.runs, work_dir=str(Path(given.runs) / "work"))
    recorder = open_recorder(tracking)
    chosen, model = variants(setting), given.model or setting.model
    records: list[dict[str, Any]] = []
    losses: dict[str, dict[int, list[float]]] = {}
    for seed in given.seeds or setting.seeds:
        made = given.data or build(setting, model, seed, tracking, recorder)
        for name in given.only or chosen:
            variant = chosen[name]
            config = finetune.FinetuneConfig(
                data=made,
                model=ModelConfig(name=model, quantization=variant.quantization),
                context=ContextConfig(**variant.context),
                training=TrainingConfig(batch_size=setting.batch_size, **variant.training),
                seed=seed,
                tracking=tracking,
            )
            try:
                done = finetune.run(config, recorder, run_name=f"{name}, seed {seed}")
            except InputError as error:
                print(f"{name} left out: {error}", file=sys.stderr, flush=True)
                continue
            lines = done.artifacts.file(finetune.TRAINING_LOG).read_text().splitlines()
            losses.setdefault(name, {})[seed] = [json.loads(line)["loss"] for line in lines]
            records.append(record(name, seed, given.name, done.artifacts.summary(), losses[name][seed]))
            write(given.output / given.name, losses, records)
            print(json.dumps(records[-1]), flush=True)


def build(setting: Setting, model: str, seed: int, tracking: TrackingConfig, recorder: Recorder) -> str:
    """The run that made the rows of `seed`."""
    data = DataConfig(**setting.data, seed=seed)
    config = make_data.MakeDataConfig(data=data, model=ModelConfig(name=model), tracking=tracking)
    return make_data.run(config, recorder).run_id


def record(name: str, seed: int, setting: str, summary: Mapping[str, Any], losses: Sequence[float]) -> dict[str, Any]:
    """What NAME.jsonl keeps of a variant."""
    third = max(1, len(losses) // 3)
    kept = ("num_steps", "num_tokens", "training_s", "train_tokens_per_s", "weight_change_norm", "train_peak_gpu_bytes")
    mfu = {} if "train_mfu_undefined" in summary else {"train_mfu": summary["train_mfu"]}
    return {
        "setting": setting,
        "variant": name,
        "seed": seed,
        "first_third_loss": statistics.fmean(losses[:third]),
        "last_third_loss": statistics.fmean(losses[-third:]),
        **{key: summary[key] for key in kept if key in summary},
        **mfu,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write(
    target: Path, losses: Mapping[str, Mapping[int, Sequence[float]]], records: Sequence[Mapping[str, Any]]
) -> None:
    """The files of what is finished so far, named as `target` with their endings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", "step", "loss"])
        for name, by_seed in losses.items():
            for seed, values in by_seed.items():
                writer.writerows([name, seed, step, f"{value:.6f}"] for step, value in enumerate(values))
    target.with_suffix(".jsonl").write_text("".join(json.dumps(item) + "\n" for item in records), encoding="utf-8")
    with contextlib.suppress(ImportError):
        draw(target)


def draw(target: Path) -> None:
    """The figure of the CSV at `target`."""
    losses: dict[str, dict[str, list[float]]] = {}
    with target.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            losses.setdefault(row["variant"], {}).setdefault(row["seed"], []).append(float(row["loss"]))
    means = {
        name: smooth([statistics.fmean(step) for step in zip(*by_seed.values(), strict=True)])
        for name, by_seed in losses.items()
    }
    num_steps = len(next(iter(means.values())))
    save_png(training_loss_curve(range(num_steps), means), target.with_suffix(".png"))


def smooth(values: Sequence[float], width: int = 3) -> list[float]:
    """Running mean of the last `width` values."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


if __name__ == "__main__":
    main()
