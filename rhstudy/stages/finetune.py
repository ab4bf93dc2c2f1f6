"""Stage `finetune`: context extended, attention or adapters trained on answer tokens -> a safetensors checkpoint.

``training.num_processes`` above 1 trains on as many GPUs of this host (see `rhstudy.training.processes`); several hosts
are not supported. Whatever the number, this process alone records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.examples_file import read_examples
from rhstudy.errors import PrunedTrialError, require
from rhstudy.figures import training_loss_curve
from rhstudy.models.adapters import save_adapter
from rhstudy.models.load import CHECKPOINT_CARD, CHECKPOINT_WEIGHTS, load_tokenizer, model_label
from rhstudy.models.warm import Trained, lent_model, let_go
from rhstudy.stages.checkpoints import Checkpoints, Watch
from rhstudy.stages.inputs import examples_path, model_inputs
from rhstudy.stages.make_data import CARD
from rhstudy.stages.make_data import STAGE as MAKE_DATA
from rhstudy.stages.subject import require_stage
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage, stages_are_launched
from rhstudy.training.config import TrainingConfig, require_processes, require_trainable
from rhstudy.training.loop import OnStep, TrainingResult, finetune, plan_steps
from rhstudy.training.pauses import NO_PAUSES
from rhstudy.training.processes import Job, finetune_in_processes, require_one_start
from rhstudy.training.state import STATE_FILE

STAGE = "finetune"
TRAINING_LOG = "training.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data` with part ``train``.
        model: the base model.
        context: context extension, applied before training and kept in the checkpoint.
        training: optimisation.
        seed: root seed of the order of examples.
        tracking: where the run is recorded.
    """

    data: str = field(metadata=INPUT)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(
    config: FinetuneConfig,
    recorder: Recorder,
    *,
    parent_run_id: str = "",
    run_name: str = "",
    checkpoints: Checkpoints | None = None,
) -> StageResult:
    """Fine-tune and record.

    Writes ``attention.safetensors`` (or PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``),
    ``checkpoint.json`` and ``training.jsonl`` (loss by step).

    With `checkpoints` the model is measured in mid-training, in this process: ``checkpoints.jsonl``. The weights do not
    depend on that. Training that they end is KILLED and leaves no state to go on from.

    Raises:
        InputError: bad data reference, model or settings; more processes than GPUs, or than 1 with `checkpoints`;
            started by `torchrun`.
        PrunedTrialError: `checkpoints` ended the training.
        StudyError: loss not finite, out of memory, a frozen parameter moved, a training process ended early.
    """
    require_one_start()
    here = checkpoints is None or not stages_are_launched()
    remedy = "Leave --runtime out, or report_at empty"
    require(here, "report_at", "be empty where stages run in containers", "<checkpoints>", remedy)
    data = resolve(recorder, config.data)
    require_stage(data, MAKE_DATA, "data")
    examples_path(data, "train")
    spec = StageSpec(
        stage=STAGE,
        run_name=run_name or f"{STAGE} {data.summary().get('recipe', '')} seed {config.seed}",
        config=config,
        inputs={"train_data": data, **model_inputs(config.model)},
        seed=config.seed,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )
    result = run_stage(recorder, spec, lambda stage_run: _finetune(config, data, stage_run, checkpoints))
    if result.reused and checkpoints:
        checkpoints.tell_kept(result.artifacts)
    return result


def _finetune(
    config: FinetuneConfig, data: ArtifactFolder, run: StageRun, checkpoints: Checkpoints | None
) -> Mapping[str, Any]:
    require_trainable(config.model, config.training)
    require_processes(config.model, config.training)
    num_new_steps = 0

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal num_new_steps
        num_new_steps += 1
        run.log_metrics(metrics, step)

    rows = examples_path(data, "train")
    if config.training.num_processes == 1:
        num_examples, result = _train_here(config, rows, run, on_step, checkpoints)
    else:
        must, remedy = "be 1 where heads are scored in mid-training", "Leave sweep.report_at empty"
        require(checkpoints is None, "training.num_processes", must, config.training.num_processes, remedy)
        num_examples, result = _train_in_processes(config, rows, run.work_dir, on_step)
    if result.process_peaks:
        run.log_metrics(result.process_peaks)
    for step, loss in enumerate(result.losses[: len(result.losses) - num_new_steps]):
        run.log_metrics({"loss": loss}, step)  # steps of an earlier try that was killed: the curve is whole
    _write_weights(config, result, run)
    _write_card(config, data, result, run)
    losses = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(result.losses))
    (run.output_dir / TRAINING_LOG).write_text(losses)
    run.log_figure("training_loss", lambda: training_loss_curve(range(len(result.losses)), {"loss": result.losses}))
    return _headline(result, num_examples)


def _headline(result: TrainingResult, num_examples: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "train_loss": result.train_loss,
        "weight_change_norm": result.weight_change_norm,
        "num_examples": num_examples,
        "num_steps": len(result.losses),
        "num_tokens": result.num_tokens,
        "training_s": result.seconds,
        "train_tokens_per_s": result.tokens_per_s,
        "train_mfu": result.mfu,
    }
    if result.mfu_reason:
        facts["train_mfu_undefined"] = result.mfu_reason
    if result.peak_gpu_bytes is not None:
        facts["train_peak_gpu_bytes"] = result.peak_gpu_bytes
    return facts


def _write_weights(config: FinetuneConfig, result: TrainingResult, run: StageRun) -> None:
    training = config.training
    if training.method == "attention":
        save_file(result.weights, run.output_dir / CHECKPOINT_WEIGHTS)
        return
    base = model_label(config.model)
    save_adapter(run.output_dir, result.weights, rank=training.lora_rank, alpha=training.lora_alpha, base=base)


def _train_here(
    config: FinetuneConfig, rows: Path, run: StageRun, on_step: OnStep, checkpoints: Checkpoints | None
) -> tuple[int, TrainingResult]:
    training, work_dir = config.training, run.work_dir
    trained: Trained = "attention" if training.method == "attention" else "adapters"
    with lent_model(config.model, config.context, trained=trained) as loaded:
        examples = read_examples(rows, loaded.tokenizer)
        num_steps = len(plan_steps(len(examples), training, config.seed))
        watch = Watch(checkpoints, run, num_steps, loaded) if checkpoints else None
        try:
            pauses = watch.pauses() if watch else NO_PAUSES
            result = finetune(
                loaded, examples, training, seed=config.seed, work_dir=work_dir, on_step=on_step, pauses=pauses
            )
        except PrunedTrialError:
            (work_dir / STATE_FILE).unlink(missing_ok=True)
            raise
    if watch:
        watch.keep()
    return len(examples), result


def _train_in_processes(
    config: FinetuneConfig, rows: Path, work_dir: Path, on_step: OnStep
) -> tuple[int, TrainingResult]:
    let_go()  # the workers' GPUs are this process' too
    # Read here too: rows of another tokenizer are refused before any process starts.
    num_examples = len(read_examples(rows, load_tokenizer(config.model)))
    job = Job(
        model=config.model,
        context=config.context,
        training=config.training,
        seed=config.seed,
        examples_file=str(rows),
        work_dir=str(work_dir),
    )
    return num_examples, finetune_in_processes(job, num_examples, on_step=on_step)


def _write_card(config: FinetuneConfig, data: ArtifactFolder, result: TrainingResult, run: StageRun) -> None:
    recipe = json.loads(data.file(CARD).read_text(encoding="utf-8"))["recipe"]
    card = {
        "base_model": model_label(config.model),
        "base_digest": model_inputs(config.model)["base_model"].content_digest,
        "rope_theta": config.context.rope_theta,
        "scaling": config.context.scaling,
        "factor": config.context.factor,
        "quantization": config.model.quantization,
        "dtype": str(next(iter(result.weights.values())).dtype),
        "trained": "attention modules" if config.training.method == "attention" else "adapters (LoRA)",
        "num_parameters": sum(tensor.numel() for tensor in result.weights.values()),
        "recipe": recipe["name"],
        "recipe_digest": recipe["digest"],
        "contains_real": recipe["contains_real"],
        "data_digest": data.content_digest,
        "seed": config.seed,
        "train_loss": result.train_loss,
        "weight_change_norm": result.weight_change_norm,
    }
    (run.output_dir / CHECKPOINT_CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
