"""What a trial measures: data are made, a model is trained, its heads are scored and compared with the reference's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from rhstudy.data.budget import check_equal
from rhstudy.data.knobs import Knobs, preset
from rhstudy.errors import StudyError, message, require
from rhstudy.heads.compare import head_measures
from rhstudy.heads.files import load_scores
from rhstudy.plan import arm_training, held_out_data, train_data
from rhstudy.stages import detect, finetune, make_data
from rhstudy.stages.detect import DetectConfig
from rhstudy.stages.subject import require_stage
from rhstudy.sweep.config import SweepConfig
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult
from rhstudy.types import Estimate, HeadScores

MEASURES = {"head_recall": "recall", "weighted_head_recall": "weighted_recall"}
"""Objective -> its name among `head_measures`."""

REFERENCE_TAG = "rhstudy.run.detect.reference"
"""Tag of the sweep's run: the detect run of the reference that it made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one trial gave.

    Attributes:
        value: of the objective, the mean over the seeds; NaN with its reason where a seed has none.
        numbers: everything else worth a curve or a column.
        runs: role -> run id, for links.
    """

    value: Estimate
    numbers: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Measure(Protocol):
    """Measures a recipe; runs that it makes are nested under the trial's."""

    def __call__(self, knobs: Knobs, run_id: str) -> Measured:
        """Measure `knobs` for the trial whose run is `run_id`; raises whatever goes wrong."""


MakeMeasure = Callable[[SweepConfig, Recorder, str], Measure]
"""From a sweep, its recorder and its run id to what measures its trials."""


class RecallByStages:
    """Recall of the reference's heads, by the stages make-data, finetune and detect for each seed."""

    def __init__(self, config: SweepConfig, recorder: Recorder, sweep_id: str) -> None:
        self._config, self._recorder = config, recorder
        rows = held_out_data(config, "score")
        self._score_rows = make_data.run(rows, recorder, parent_run_id=sweep_id, run_name="make-data score rows")
        self._num_tokens: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._reference = self._named_reference() if config.reference else self._made_reference(sweep_id)
        defined = self._recall(self._reference)
        remedy = f"Lower scoring.threshold, or train the reference longer: {defined.reason}"
        require(not defined.reason, "reference", "have retrieval heads", f"<{config.objective} NaN>", remedy)

    def __call__(self, knobs: Knobs, run_id: str) -> Measured:
        """See `Measure`."""
        self._seconds = {}
        values: list[Estimate] = []
        runs: dict[str, str] = {}
        numbers: dict[str, list[float]] = {}
        for seed in self._config.seeds:
            found = self._detected(knobs, seed, run_id)
            runs[f"detect.seed{seed}"] = found.run_id
            scores = load_scores(found.artifacts.path)
            values.append(self._recall(scores))
            measured = {**self._others(scores), **self._cheap_rivals(found)}
            for name, value in measured.items():
                numbers.setdefault(name, []).append(value)
        means = {name: float(np.mean(found)) for name, found in numbers.items()}
        return Measured(value=mean_estimate(values), numbers={**means, **self._seconds}, runs=runs)

    def _others(self, scores: HeadScores) -> dict[str, float]:
        """Both recalls, whichever is the objective."""
        scoring = self._config.scoring
        measures = head_measures(scores, self._reference, scoring.threshold, scoring.top_k)
        return {name: measures[short].value for name, short in MEASURES.items()}

    @staticmethod
    def _cheap_rivals(found: StageResult) -> dict[str, float]:
        names = ("real_nll", "num_retrieval_heads")
        return {name: float(found.summary[name]) for name in names if found.summary.get(name) is not None}

    def _recall(self, scores: HeadScores) -> Estimate:
        scoring = self._config.scoring
        measures = head_measures(scores, self._reference, scoring.threshold, scoring.top_k)
        return measures[MEASURES[self._config.objective]]

    def _made_reference(self, sweep_id: str) -> HeadScores:
        """The sweep's own reference, named by its run: every worker compares with the same model, kept or not."""
        known = self._recorder.get_run(sweep_id).tags.get(REFERENCE_TAG, "")
        if known:
            return load_scores(resolve(self._recorder, known).path)
        knobs = preset(self._config.reference_recipe, self._config.data.task)
        found = self._detected(knobs, self._config.reference_seed, sweep_id)
        self._recorder.set_tags(sweep_id, {REFERENCE_TAG: found.run_id})
        return load_scores(found.artifacts.path)

    def _named_reference(self) -> HeadScores:
        artifacts = resolve(self._recorder, self._config.reference)
        require_stage(artifacts, "reference", detect.STAGE)
        scores = load_scores(artifacts.path)
        rows = self._score_rows.artifacts.content_digest
        remedy = "Detect the reference's heads on the same rows, or leave reference out and the sweep makes it"
        same = scores.data_digest == rows
        require(same, "reference", "be scored on the sweep's score rows", self._config.reference, remedy)
        return scores

    def _detected(self, knobs: Knobs, seed: int, parent: str) -> StageResult:
        """Heads of a model trained on `knobs`; what is done already is reused."""
        config, name = self._config, f"{knobs.name}/seed{seed}"
        made = self._timed(
            "make_data_s",
            lambda: make_data.run(
                train_data(config, knobs, seed), self._recorder, parent_run_id=parent, run_name=f"make-data {name}"
            ),
        )
        self._check_budget(name, made)
        tuned = self._timed(
            "finetune_s",
            lambda: finetune.run(
                arm_training(config, made.run_id, seed), self._recorder, parent_run_id=parent,
                run_name=f"finetune {name}",
            ),
        )  # fmt: skip
        scoring = DetectConfig(
            data=self._score_rows.run_id, checkpoint=tuned.run_id, model=config.model, context=config.context,
            scoring=config.scoring, tracking=config.tracking,
        )  # fmt: skip
        return self._timed(
            "detect_s",
            lambda: detect.run(scoring, self._recorder, parent_run_id=parent, run_name=f"detect {name}"),
        )

    def _timed(self, name: str, stage: Callable[[], StageResult]) -> StageResult:
        began = time.monotonic()
        result = stage()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
        return result

    def _check_budget(self, name: str, made: StageResult) -> None:
        """Every recipe of a sweep trains on equally many tokens."""
        card = json.loads(made.artifacts.file(make_data.CARD).read_text(encoding="utf-8"))
        num_tokens = float(card["parts"]["train"]["num_tokens_total"])
        self._num_tokens.setdefault(name, num_tokens)
        first, tokens = next(iter(self._num_tokens.items()))
        data = self._config.data
        check_equal(name, num_tokens, first, tokens, data.num_tokens - data.num_reserved_tokens)


def mean_estimate(values: Sequence[Estimate]) -> Estimate:
    """Mean of defined values; undefined, with the first reason, where one is."""
    reasons = [item.reason for item in values if item.reason]
    if reasons:
        return Estimate.undefined(reasons[0])
    return Estimate(float(np.mean([item.value for item in values])))


def require_defined(objective: str, value: Estimate) -> float:
    """The value of a trial.

    Raises:
        StudyError: it is NaN.
    """
    if np.isnan(value.value):
        reason = value.reason or "the measurement gave no reason"
        raise StudyError(message(objective, "be a number", "<NaN>", f"The trial has no value: {reason}"))
    return value.value
