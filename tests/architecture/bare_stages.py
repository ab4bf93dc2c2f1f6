"""Run as a script: make-data, finetune, detect, evaluate, intervene and patch on a machine that has torch, transformers
and safetensors alone (with what those need), into plain folders. Prints one JSON object.

    python bare_stages.py WORLD OUTPUT
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import json
import sys
from pathlib import Path

BLOCKED = [
    "mlflow",
    "optuna",
    "docker",
    "datasets",
    "statsmodels",
    "pandas",
    "scipy",
    "matplotlib",
    "bitsandbytes",
    "peft",
    "tyro",
    "jaxtyping",
    "psutil",
    "faker",
    "bm25s",
    "gguf",
    "rich",
    "sklearn",
    "pyarrow",
]
STAGES = ("make_data", "finetune", "detect", "evaluate", "intervene", "patch", "analyze")


class Absent(importlib.abc.MetaPathFinder):
    """Makes the blocked libraries look as if they were not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(world: Path, output: Path) -> None:
    sys.meta_path.insert(0, Absent())
    # Libraries that look for optional ones by their distribution must not find them either.
    import importlib.util as finder

    find = finder.find_spec
    finder.find_spec = lambda name, package=None: None if name.partition(".")[0] in BLOCKED else find(name, package)
    stages = {name: importlib.import_module(f"rhstudy.stages.{name}") for name in STAGES}
    importlib.import_module("rhstudy.study")

    from rhstudy.configs import ModelConfig, TrackingConfig
    from rhstudy.data.config import DataConfig
    from rhstudy.data.knobs import Knobs
    from rhstudy.tracking.opening import open_recorder

    tracking = TrackingConfig(recorder="folder", folder=str(output / "runs"), work_dir=str(output / "work"))
    recorder = open_recorder(tracking)
    model = ModelConfig(name=str(world / "model"), cache_dir=str(output / "cache"), device="cpu")
    # Passages for haystacks are found with BM25, which is a library of its own; repeated filler needs none.
    knobs = Knobs(name="real_in_filler", context_diversity="repeated_filler")
    data = DataConfig(knobs=knobs, train_file=str(world / "data" / "train.jsonl"), num_tokens=256, num_examples=4)

    make, tune, detect, evaluate, intervene, patch = (stages[name] for name in STAGES[:6])
    made = make.run(make.MakeDataConfig(data=data, model=model, tracking=tracking), recorder)
    tuned = tune.run(tune.FinetuneConfig(data=made.run_id, model=model, tracking=tracking), recorder)
    subject = {"data": made.run_id, "checkpoint": tuned.run_id, "model": model, "part": "train", "tracking": tracking}
    detected = detect.run(detect.DetectConfig(**subject), recorder)
    evaluated = evaluate.run(evaluate.EvaluateConfig(**subject), recorder)
    # Heads are tested on other rows than those that chose them.
    others = make.run(
        make.MakeDataConfig(data=dataclasses.replace(data, seed=1), model=model, tracking=tracking), recorder
    )
    knocked = intervene.run(
        intervene.InterveneConfig(**{**subject, "data": others.run_id, "heads": detected.run_id}), recorder
    )
    twin = {"donor_checkpoint": tuned.run_id, "donor_heads": detected.run_id, "heads": detected.run_id}
    patched = patch.run(patch.PatchConfig(**{**subject, "data": others.run_id, **twin}), recorder)
    runs = [recorder.get_run(result.run_id) for result in (made, tuned, detected, evaluated, knocked, patched)]
    facts = {
        "statuses": [run.status for run in runs],
        "necessity": runs[-2].tags.get("rhstudy.necessity", ""),
        "f1_baseline": runs[-2].metrics.get("f1_baseline"),
        "patching": runs[-1].tags.get("rhstudy.patching", ""),
        "f1_recipient": runs[-1].metrics.get("f1_recipient"),
        "figures": [run.tags.get("rhstudy.figures", "") for run in runs],
        "loaded": sorted(set(BLOCKED) & {name.partition(".")[0] for name in sys.modules}),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
