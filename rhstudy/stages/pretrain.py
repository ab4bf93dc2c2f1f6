"""Stage `pretrain`: a small decoder from nothing, on literal cues over real passages -> a model folder in hub layout.

The shipped model `tiny` was made by it: see sweeps/tiny-base.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rhstudy.configs import INPUT, NO_DIGEST, TrackingConfig, digest
from rhstudy.data.facts import Passage
from rhstudy.data.layout import document_text
from rhstudy.data.rows import read_passages
from rhstudy.errors import require
from rhstudy.figures import training_loss_curve
from rhstudy.models.load import resolve_device
from rhstudy.models.tokenizer import train_tokenizer
from rhstudy.stages.inputs import outside_content
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage
from rhstudy.training.pretraining import (
    ArchitectureConfig,
    PretrainingConfig,
    PretrainingResult,
    copy_accuracy,
    new_decoder,
    pretrain,
    sequence_maker,
    split_passages,
)

STAGE = "pretrain"
CARD = "pretraining.json"
TRAINING_LOG = "training.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Config of the stage.

    Attributes:
        passages_file: JSONL of ``title`` and ``text``.
        architecture: of the decoder.
        pretraining: optimisation.
        device: ``auto`` is the first GPU when there is one, else the CPU.
        seed: root seed of weights and sequences.
        tracking: where the run is recorded.
    """

    passages_file: str = field(metadata=INPUT)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    device: str = field(default="auto", metadata=NO_DIGEST)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require(bool(self.passages_file), "passages_file", "be given", self.passages_file, "Name a JSONL file")


def run(config: PretrainConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Pretrain and record.

    Writes ``model.safetensors`` (bfloat16), ``config.json``, the tokenizer, ``pretraining.json``, ``training.jsonl``.

    Raises:
        InputError: unreadable passages or bad settings.
        StudyError: loss not finite.
    """
    passages, sha256 = read_passages(config.passages_file, "passages_file")
    device = resolve_device(config.device)
    spec = StageSpec(
        stage=STAGE,
        run_name=run_name or f"{STAGE} seed {config.seed}",
        config=config,
        inputs={
            "passages": outside_content("source", Path(config.passages_file), sha256),
            "numerics": outside_content("numerics", Path(config.passages_file), digest(device.type)),
        },
        seed=config.seed,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )
    return run_stage(recorder, spec, lambda stage_run: _pretrain(config, passages, sha256, device, stage_run))


def _pretrain(
    config: PretrainConfig, passages: Sequence[Passage], sha256: str, device: torch.device, run: StageRun
) -> Mapping[str, Any]:
    run.log_input("passages", sha256, config.passages_file, "source")
    shape = config.architecture
    trained_on, held_out = split_passages(passages)
    tokenizer = train_tokenizer(map(document_text, trained_on), shape.vocabulary_size, shape.num_context_tokens)
    model = new_decoder(shape, int(tokenizer.eos_token_id), config.seed)
    module: torch.nn.Module = model  # the model's own `to` is wrapped in a way that types cannot follow
    module.to(device)
    maker, check = (
        sequence_maker(some, tokenizer, shape.num_context_tokens, config.seed) for some in (trained_on, held_out)
    )
    curve = _Curve(run)
    result = pretrain(model, maker, config.pretraining, work_dir=run.work_dir, on_step=curve.log)
    curve.complete(result)
    _round_weights(model)
    lengths = [shape.num_context_tokens * factor for factor in (1, 2, 4)]
    accuracy = {f"copy_accuracy_{length}": share for length, share in copy_accuracy(model, check, lengths).items()}
    module.to(torch.bfloat16)
    model.save_pretrained(run.output_dir)
    tokenizer.save_pretrained(run.output_dir)
    facts = {
        "num_parameters": model.num_parameters(),
        "num_passages": len(trained_on),
        "num_passages_held_out": len(held_out),
        **_facts(result),
        **accuracy,
    }
    _write(config, sha256, result, facts, run)
    return facts | {"training_s": result.seconds, "train_tokens_per_s": result.num_tokens / result.seconds}


def _round_weights(model: PreTrainedModel) -> None:
    """What is measured is what is saved: weights in bfloat16, but not RoPE's frequencies, which are never saved."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


class _Curve:
    """The tracked curve: a point in ten steps, for there are thousands; training.jsonl has them all."""

    def __init__(self, run: StageRun) -> None:
        self._run, self._first = run, -1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log `metrics` of `step`."""
        self._first = step if self._first < 0 else self._first
        if step % 10 == 0:
            self._run.log_metrics(metrics, step)

    def complete(self, result: PretrainingResult) -> None:
        """Log the steps of an earlier try that was killed: the curve is whole."""
        earlier = len(result.curve) if self._first < 0 else self._first
        for step, (text, answers) in enumerate(result.curve[:earlier]):
            if step % 10 == 0:
                self._run.log_metrics({"text_loss": text, "answer_loss": answers}, step)


def _facts(result: PretrainingResult) -> dict[str, Any]:
    last = result.curve[-max(1, len(result.curve) // 20) :]
    text, answers = (sum(point[part] for point in last) / len(last) for part in (0, 1))
    return {
        "text_loss": text,
        "answer_loss": answers,
        "num_steps": len(result.curve),
        "num_tokens": result.num_tokens,
    }


def _write(
    config: PretrainConfig, sha256: str, result: PretrainingResult, facts: Mapping[str, Any], run: StageRun
) -> None:
    known = {key: None if math.isnan(value) else value for key, value in facts.items()}  # NaN is no JSON
    card = {"passages_sha256": sha256, "seed": config.seed, **known}
    text = json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (run.output_dir / CARD).write_text(text, encoding="utf-8")
    rows = ({"step": step, "text_loss": loss[0], "answer_loss": loss[1]} for step, loss in enumerate(result.curve))
    (run.output_dir / TRAINING_LOG).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    losses = {"text": [point[0] for point in result.curve], "answers": [point[1] for point in result.curve]}
    run.log_figure("training_loss", lambda: training_loss_curve(range(len(result.curve)), losses))
