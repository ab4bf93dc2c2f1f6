"""Stage `evaluate`: greedy answers on the real task -> F1, exact match and gold-answer loss per example."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig
from rhstudy.errors import InputError, message
from rhstudy.evaluation.answering import AnsweringSettings, answer_group
from rhstudy.evaluation.answers import summarize_predictions
from rhstudy.models.load import LoadedModel
from rhstudy.stages.measurement import run_measurement
from rhstudy.stages.partial import PartialRows
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult, StageRun
from rhstudy.types import Example, Prediction

STAGE = "evaluate"
PREDICTIONS = "predictions.jsonl"
TABLE = "predictions.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data`.
        part: ``eval`` in a study; ``dev`` for any choice of settings.
        checkpoint: run id or artifact folder of `finetune`; empty evaluates the untuned model.
        model: the base model.
        context: context extension, as in training.
        answering: how answers are generated.
        tracking: where the run is recorded.
    """

    data: str = field(metadata=INPUT)
    part: str = "eval"
    checkpoint: str = field(default="", metadata=INPUT)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(config: EvaluateConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Answer, mark and record.

    Writes ``predictions.jsonl`` (one row an example), the same for reading as ``predictions.csv``, ``subject.json``.

    Raises:
        InputError: bad references or settings.
    """
    return run_measurement(
        STAGE,
        config,
        recorder,
        lambda loaded, _subject, examples, _data, stage_run: _evaluate(config, loaded, examples, stage_run),
        role="eval_data",
        num_examples=config.answering.num_examples,
        seed=0,
        parent_run_id=parent_run_id,
        run_name=run_name,
    )


def _evaluate(
    config: EvaluateConfig, loaded: LoadedModel, examples: Sequence[Example], run: StageRun
) -> Mapping[str, Any]:
    with PartialRows(run.work_dir / PREDICTIONS) as done:
        bar = tqdm(total=len(examples), initial=len(done.rows), desc=STAGE, unit="example", disable=None)
        with bar:
            for group in config.answering.groups(loaded.model, examples):
                if not all(example.example_id in done for example in group):
                    done.add([dataclasses.asdict(item) for item in answer_group(loaded, group, config.answering)])
                    bar.update(len(group))
        predictions = [_prediction(done.row(example.example_id)) for example in examples]
        seconds = done.seconds()
    write_predictions(run.output_dir / PREDICTIONS, predictions)
    write_table(run.output_dir / TABLE, examples, predictions)
    found = summarize_predictions(predictions)
    return {
        "f1": found.f1.value,
        "exact_match": found.exact_match.value,
        "real_nll": found.gold_nll.value,
        **{name: estimate.value for name, estimate in found.further().items()},
        "num_examples": found.num_examples,
        "num_unscored": found.num_unscored,
        "evaluation_s": seconds,
        "eval_prompt_tokens_per_s": sum(example.num_prompt_tokens for example in examples) / seconds,
    }


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON object a line, in the order of the examples."""
    path.write_text("".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in predictions), encoding="utf-8")


def write_table(path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    """Question, prediction, gold answers, marks and cluster as CSV, which the MLflow UI shows as a table."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["example_id", "question", "prediction", "answers", "f1", "exact_match", "gold_nll", "cluster"])
        for example, item in zip(examples, predictions, strict=True):
            answers = " | ".join(item.answers)
            marks = [round(item.f1, 4), item.exact_match, round(item.gold_nll, 4)]
            table.writerow([item.example_id, example.question, item.text, answers, *marks, item.cluster])


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote.

    Raises:
        InputError: a line that is no prediction.
    """
    predictions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            predictions.append(_prediction(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            remedy = "Give the artifacts of an evaluate stage"
            raise InputError(
                message("predictions", "be one JSON row an example", line[:80], remedy, f"{path}:{number}")
            ) from error
    return predictions


def _prediction(row: Mapping[str, Any]) -> Prediction:
    return Prediction(**{**row, "answers": tuple(row["answers"])})
