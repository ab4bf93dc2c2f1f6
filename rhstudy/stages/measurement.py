"""What `detect`, `evaluate` and `intervene` share: one model, the rows of one part, the record of what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.examples_file import read_examples
from rhstudy.keeping import kept
from rhstudy.models.load import LoadedModel
from rhstudy.stages.inputs import checkpoint_input, examples_path, model_inputs, tokenizer_input
from rhstudy.stages.make_data import STAGE as MAKE_DATA
from rhstudy.stages.subject import Subject, lent_subject, require_stage, write_subject
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage
from rhstudy.types import Example

_PART_OF_ID = re.compile(r"^(?:train-\d+|score|dev|eval)-")


@runtime_checkable
class MeasurementConfig(Protocol):
    """The fields the stage configs have in common."""

    @property
    def data(self) -> str:
        """Run id or artifact folder of `make-data`."""

    @property
    def part(self) -> str:
        """Which part to measure on."""

    @property
    def checkpoint(self) -> str:
        """Run id or artifact folder of `finetune`; empty for the untuned model."""

    @property
    def model(self) -> ModelConfig:
        """The base model."""

    @property
    def context(self) -> ContextConfig:
        """Context extension, as in training."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where the run is recorded."""


Measure = Callable[[LoadedModel, Subject, Sequence[Example], ArtifactFolder, StageRun], Mapping[str, Any]]
"""Called with the model, what it is, the rows, their data set and the run; returns the headline numbers."""


def rows_of(example_ids: Iterable[str]) -> set[str]:
    """The rows behind examples: their ids without the part they were built for, so that a row is itself in any part."""
    return {_PART_OF_ID.sub("", name) for name in example_ids}


def rows_to_measure(
    data: ArtifactFolder, part: str, model: ModelConfig, loaded: LoadedModel, num_examples: int
) -> Sequence[Example]:
    """The first `num_examples` rows of a part, 0 = all; read once for all stages that measure on them.

    Raises:
        InputError: a data set without the part, or of another tokenizer than that of `loaded`.
    """
    rows = examples_path(data, part)
    content = (data.content_digest, rows.name, tokenizer_input(model)["tokenizer"].content_digest)
    examples: Sequence[Example] = kept("examples", content, lambda: read_examples(rows, loaded.tokenizer), most=2)
    return examples[: num_examples or len(examples)]


def run_measurement(
    stage: str,
    config: MeasurementConfig,
    recorder: Recorder,
    measure: Measure,
    *,
    role: str,
    num_examples: int,
    seed: int,
    parent_run_id: str,
    run_name: str,
    further_inputs: Mapping[str, ArtifactFolder] | None = None,
) -> StageResult:
    """Run `measure` as a stage; ``subject.json`` and the arm's tags are written for it.

    Args:
        stage: name of the stage.
        config: its config.
        recorder: where the run is recorded.
        measure: does the work.
        role: of the data set among the stage's inputs, for instance ``score_data``.
        num_examples: how many rows, from the first; 0 = all.
        seed: enters the stage digest.
        parent_run_id: the run to nest under; empty for a top-level run.
        run_name: shown to people; empty names stage and part.
        further_inputs: what else the stage reads, by role; enters the stage digest.

    Raises:
        InputError: bad references, a data set without the part, or a model that does not load.
    """
    data = resolve(recorder, config.data)
    require_stage(data, MAKE_DATA, "data")
    examples_path(data, config.part)
    checkpoint = checkpoint_input(recorder, config.checkpoint)
    spec = StageSpec(
        stage=stage,
        run_name=run_name or f"{stage} {config.part}",
        config=config,
        inputs={role: data, **checkpoint, **model_inputs(config.model), **(further_inputs or {})},
        seed=seed,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )

    def body(run: StageRun) -> Mapping[str, Any]:
        with lent_subject(config.model, config.context, checkpoint.get("checkpoint")) as (loaded, subject):
            examples = rows_to_measure(data, config.part, config.model, loaded, num_examples)
            run.set_tags(subject.tags())
            write_subject(run.output_dir, subject)
            return measure(loaded, subject, examples, data, run)

    return run_stage(recorder, spec, body)
