"""The dose-response of a model fine-tuned on real data: its retrieval heads knocked out in every mode, beside controls.

question: does a model fine-tuned on real MDQA lose its answers with its top retrieval heads, and not with as many
          random heads of the same layers, whatever a knocked-out head puts out instead?
command:  python sweeps/knockout/run.py gpu --data DATA --model MODEL
time:     gpu: about 3 minutes of one H200; tiny-cpu: 3 minutes on two busy CPU cores
expected: F1 falls with the dose for the top heads in every mode and reaches that of the untuned model at 10 to 20
          heads; matched random sets cost less than 0.05 F1; answers from the gold passage alone and the loss on plain
          text change little

`gpu`: SmolLM2-135M at 4,096 tokens (native window 8,192), real MDQA, 320 training examples, 100 score rows, 100 eval
rows; k = 1, 2, 5, 10, 20 and |H|, 199 draws at 10 and 20 elsewhere, in decode scope; then with fewer draws and rows in
the scope prefill_and_decode. `tiny-cpu`: the same on the shipped model `tiny` at 1,024 tokens and literal cues, small.

Each step is a stage that is reused when it was finished and resumed when it was killed, so the same command goes on. On
a machine without data or network ``--data`` takes the artifact folder of the `make-data` step, made elsewhere with
``--only data``, and ``--model`` the model's folder. Nothing is tuned here: the rate is that of sweeps/first-light.

Writes ``NAME.jsonl`` (a line of headline numbers per step), ``NAME.md`` (the tables of the `intervene` runs) and
``NAME.tar.gz`` (all their files) into this folder, or into ``--output``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.interventions.conditions import KnockoutSettings
from rhstudy.stages import detect, finetune, intervene, make_data
from rhstudy.stages.knockout_page import knockout_text
from rhstudy.stages.outcomes import read_necessity
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.stage_run import StageResult
from rhstudy.training.config import TrainingConfig

HERE = Path(__file__).parent
MODES = ("zero_output", "mean_output", "uniform_attention", "block_needle")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One experiment; `everywhere` is what is knocked out in the scope prefill_and_decode, on its first rows."""

    model: str
    data: Mapping[str, Any]
    context: ContextConfig
    training: TrainingConfig
    max_new_tokens: int
    doses: tuple[int, ...]
    primary: tuple[int, int]
    num_draws: int
    everywhere: Mapping[str, Any]
    num_everywhere: int
    single_heads: int


SETTINGS = {
    "gpu": Setting(
        model="smollm2-135m",
        data={
            "task": "mdqa", "train_file": "mdqa", "num_tokens": 4096, "num_examples": 320, "num_score": 100,
            "num_eval": 100,
        },
        context=ContextConfig(),
        training=TrainingConfig(learning_rate=3e-4, batch_size=8),
        max_new_tokens=20,
        doses=(1, 2, 5, 10, 20),
        primary=(10, 199),
        num_draws=20,
        everywhere={"doses": (5, 10), "num_draws": 2, "num_primary_draws": 5, "modes": MODES[:3]},
        num_everywhere=50,
        single_heads=270,
    ),
    "tiny-cpu": Setting(
        model="tiny",
        data={
            "task": "cue_retrieval", "train_file": "python-docs", "num_tokens": 512, "num_examples": 16, "num_score": 8,
            "num_eval": 6,
        },
        context=ContextConfig(rope_theta=1.5e5),
        training=TrainingConfig(learning_rate=1e-3, batch_size=1),
        max_new_tokens=6,
        doses=(1, 2, 5),
        primary=(5, 7),
        num_draws=2,
        everywhere={"doses": (5,), "num_primary_draws": 2, "modes": MODES[:3]},
        num_everywhere=2,
        single_heads=8,
    ),
}  # fmt: skip


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SETTINGS))
    parser.add_argument("--data", default="", help="artifact folder of make-data with parts train, score, eval")
    parser.add_argument("--model", default="", help="folder of the setting's model in hub layout, or its .gguf file")
    parser.add_argument("--only", default="", choices=["", "data"], help="stop after the data")
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--runs", default="runs", help="folder recorder and unfinished work")
    return parser.parse_args()


def main() -> None:
    """Run the steps and write the files after each, so that what is finished is there."""
    given = options()
    given.output.mkdir(parents=True, exist_ok=True)
    records, folders, tables = [], {}, dict[str, str]()
    for name, done in steps(given, SETTINGS[given.name]):
        records.append(record(name, done))
        print(json.dumps(records[-1]), flush=True)
        lines = "".join(json.dumps(item) + "\n" for item in records)
        (given.output / f"{given.name}.jsonl").write_text(lines, encoding="utf-8")
        if name.startswith("intervene"):
            folders[name] = done.artifacts.path
            with contextlib.suppress(ImportError):  # no statsmodels on that machine
                tables[name] = knockout_text(read_necessity(done.artifacts), f"{given.name}/real/seed0")
            text = "\n\n".join(f"# {label}\n\n{table}" for label, table in tables.items())
            (given.output / f"{given.name}.md").write_text(f"{text}\n", encoding="utf-8")
            with tarfile.open(given.output / f"{given.name}.tar.gz", "w:gz") as archive:
                for label, folder in folders.items():
                    archive.add(folder, arcname=label.replace(" ", "-"))


def steps(given: argparse.Namespace, setting: Setting) -> Iterator[tuple[str, StageResult]]:
    """The stages, one after another, each with its name."""
    tracking = TrackingConfig(recorder="folder", folder=given.runs, work_dir=str(Path(given.runs) / "work"))
    recorder, model = open_recorder(tracking), ModelConfig(name=given.model or setting.model)
    data = given.data
    if not data:
        parts = DataConfig(**setting.data, recipe="real", parts=("train", "score", "eval"), on_bad_row="skip")
        made = make_data.run(make_data.MakeDataConfig(data=parts, model=model, tracking=tracking), recorder)
        yield "make-data", made
        data = str(made.artifacts.path)
    if given.only == "data":
        print(data)
        return
    shared: dict[str, Any] = {"data": data, "model": model, "context": setting.context, "tracking": tracking}
    tuned = finetune.run(finetune.FinetuneConfig(training=setting.training, **shared), recorder)
    yield "finetune", tuned
    shared["checkpoint"] = tuned.run_id
    detected = detect.run(detect.DetectConfig(**shared), recorder)
    yield "detect", detected
    shared |= {"heads": detected.run_id, "score_data": data}
    yield "intervene decode", intervene.run(decode_config(given, setting, shared), recorder)
    yield "intervene everywhere", intervene.run(everywhere_config(given, setting, shared), recorder)


def decode_config(given: argparse.Namespace, setting: Setting, shared: Mapping[str, Any]) -> intervene.InterveneConfig:
    """The dose-response, in decode scope."""
    dose, num_draws = setting.primary
    knockout = KnockoutSettings(
        doses=setting.doses, num_draws=setting.num_draws, primary_dose=dose, num_primary_draws=num_draws,
        modes=tuple(given.modes), single_heads=setting.single_heads,
    )  # fmt: skip
    answering = AnsweringSettings(max_new_tokens=setting.max_new_tokens)
    return intervene.InterveneConfig(knockout=knockout, answering=answering, **shared)


def everywhere_config(
    given: argparse.Namespace, setting: Setting, shared: Mapping[str, Any]
) -> intervene.InterveneConfig:
    """The other scope, in which every condition costs a run of the prompts of its own."""
    wanted = {**setting.everywhere, "modes": tuple(mode for mode in setting.everywhere["modes"] if mode in given.modes)}
    knockout = KnockoutSettings(
        scopes=("prefill_and_decode",), primary_dose=setting.primary[0], include_all_retrieval_heads=False, **wanted
    )
    answering = AnsweringSettings(max_new_tokens=setting.max_new_tokens, num_examples=setting.num_everywhere)
    return intervene.InterveneConfig(knockout=knockout, answering=answering, **shared)


def record(name: str, done: StageResult) -> dict[str, Any]:
    """What NAME.jsonl keeps of a step."""
    undefined = {key for key, value in done.summary.items() if isinstance(value, float) and math.isnan(value)}
    return {
        "step": name,
        "run_id": done.run_id,
        "reused": done.reused,
        **{key: None if key in undefined else value for key, value in done.summary.items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
