"""What a trial measures: data are made, a model is trained, its heads are scored and compared with the reference's."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from rhstudy.configs import digest, digest_view
from rhstudy.data.budget import check_equal
from rhstudy.data.knobs import Knobs, preset
from rhstudy.errors import StudyError, message, require
from rhstudy.heads.compare import head_measures
from rhstudy.heads.files import load_scores
from rhstudy.models.load import LoadedModel
from rhstudy.models.warm import loading_s
from rhstudy.plan import arm_training, held_out_data, train_data
from rhstudy.stages import detect, finetune, make_data
from rhstudy.stages.ahead import BuildAhead
from rhstudy.stages.checkpoints import Checkpoints
from rhstudy.stages.detect import DetectConfig, ScoringSettings
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.stages.measurement import rows_to_measure
from rhstudy.stages.subject import require_stage
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.course import Budget, Course, Unlimited, spent
from rhstudy.sweep.equal_rows import with_equal_rows
from rhstudy.sweep.objectives import SCORED
from rhstudy.sweep.pruning import steps_of
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult
from rhstudy.types import Estimate, HeadScores

MEASURES = {"head_recall": "recall", "weighted_head_recall": "weighted_recall"}
"""Kinds of recall -> their names among `head_measures`."""

REFERENCE_TAG = "rhstudy.run.detect.reference"
"""Tag of the sweep's run: the detect run of the reference that it made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one trial gave.

    Attributes:
        value: of the (first) objective, the mean over the seeds; NaN with its reason where a seed has none.
        further: of the other objectives.
        numbers: everything worth a curve or a column, what constraints limit among it.
        runs: role -> run id, for links.
    """

    value: Estimate
    further: tuple[Estimate, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Measure(Protocol):
    """Measures a recipe; runs that it makes are nested under the trial's."""

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        """Measure `knobs` for the trial whose run is `run_id`; raises whatever goes wrong."""


MakeMeasure = Callable[[SweepConfig, Recorder, str], Measure]
"""From a sweep, its recorder and its run id to what measures its trials."""


class RecallByStages:
    """Recall of the reference's heads, by the stages make-data, finetune and detect for each seed.

    Args:
        config: the sweep.
        recorder: where runs are recorded.
        sweep_id: the sweep's run.
        ahead: builds the data of the seeds to come, or None.
    """

    def __init__(self, config: SweepConfig, recorder: Recorder, sweep_id: str, ahead: BuildAhead | None = None) -> None:
        config = with_equal_rows(config)
        self._config, self._recorder, self._ahead = config, recorder, ahead
        rows = held_out_data(config, "score")
        self._score_rows = make_data.run(rows, recorder, parent_run_id=sweep_id, run_name="make-data score rows")
        self._num_tokens: dict[Budget, tuple[str, float]] = {}
        reference = self._named_reference() if config.reference else self._made_reference(sweep_id)
        self._reference, self._reference_digest = load_scores(reference.path), reference.content_digest
        defined = recalls_of(self._reference, self._reference, config.scoring)["head_recall"]
        remedy = f"Lower scoring.threshold, or train the reference longer: {defined.reason}"
        require(not defined.reason, "reference", "have retrieval heads", "<head_recall NaN>", remedy)

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        """See `Measure`."""
        found: list[dict[str, Estimate]] = []
        runs: dict[str, str] = {}
        for seed, following in itertools.zip_longest(self._config.seeds, self._config.seeds[1:]):
            arm = _Arm(knobs=knobs, seed=seed, following=following, parent=run_id, course=course)
            detected, costs = self._detected(arm, self._checkpoints(course, found))
            runs[f"detect.seed{seed}"] = detected.run_id
            found.append({**self._scored(load_scores(detected.artifacts.path)), **costs})
            if self._config.report_at or len(self._config.seeds) > 1:
                self._report(course, found, 1.0)
        means = _means(found)
        first, *others = (means[name] for name in self._config.goals)
        numbers = {name: mean.value for name, mean in means.items()}
        return Measured(value=first, further=tuple(others), numbers=numbers, runs=runs)

    def _checkpoints(self, course: Course, earlier: Sequence[Mapping[str, Estimate]]) -> Checkpoints | None:
        """What is asked of a training in its midst; `earlier` is what the seeds before it gave."""
        if not self._config.report_at:
            return None
        before, rows = list(earlier), self._score_rows.artifacts

        def measure(loaded: LoadedModel) -> dict[str, float]:
            scoring = self._config.scoring
            with spent(course.costs, "checkpoints_s"):
                examples = rows_to_measure(rows, "score", self._config.model, loaded, scoring.num_examples)
                scores = scoring.score(loaded, examples, data_digest=rows.content_digest, cuda_graphs=False)
                found = {name: value.value for name, value in self._scored(scores).items()}
            return {name: found[name] for name in SCORED if not np.isnan(found[name])}

        def tell(share: float, values: Mapping[str, float]) -> None:
            self._report(course, [*before, {name: Estimate(value) for name, value in values.items()}], share)

        content = digest(rows.content_digest, self._reference_digest, digest_view(self._config.scoring))
        return Checkpoints(fractions=self._config.report_at, content=content, measure=measure, tell=tell)

    def _report(self, course: Course, found: Sequence[Mapping[str, Estimate]], share: float) -> None:
        """Tell what the last seed gives after a share of its training: for Wilcoxon's test, else the mean so far."""
        shares, seeds = (*self._config.report_at, 1.0), len(self._config.seeds)
        step = steps_of(self._config.report_at, seeds)[len(found) - 1][shares.index(share)]
        shown = found[-1:] if self._config.pruner == "wilcoxon" else found
        means = _means([{name: one[name] for name in SCORED if name in found[-1]} for one in shown])
        course.report(step, {name: mean.value for name, mean in means.items()})

    def _scored(self, scores: HeadScores) -> dict[str, Estimate]:
        """Both recalls, and their rivals of equal cost."""
        scoring = self._config.scoring
        return {
            **recalls_of(scores, self._reference, scoring),
            "real_nll": Estimate(float(np.mean(scores.real_nll))),
            "num_retrieval_heads": Estimate(len(scoring.heads(scores))),
        }

    def _made_reference(self, sweep_id: str) -> ArtifactFolder:
        """The sweep's own reference, named by its run: every worker compares with the same model, kept or not."""
        known = self._recorder.get_run(sweep_id).tags.get(REFERENCE_TAG, "")
        if known:
            return resolve(self._recorder, known)
        data = self._config.data
        knobs = preset(self._config.reference_recipe, data.task)
        course = Unlimited(budget=Budget(num_examples=data.num_examples, num_tokens=data.num_tokens))
        arm = _Arm(knobs=knobs, seed=self._config.reference_seed, following=None, parent=sweep_id, course=course)
        detected, _ = self._detected(arm)
        self._recorder.log_metrics(sweep_id, {f"reference_{name}": value for name, value in course.costs.items()})
        self._recorder.set_tags(sweep_id, {REFERENCE_TAG: detected.run_id})
        return detected.artifacts

    def _named_reference(self) -> ArtifactFolder:
        artifacts = resolve(self._recorder, self._config.reference)
        require_stage(artifacts, "reference", detect.STAGE)
        same = load_scores(artifacts.path).data_digest == self._score_rows.artifacts.content_digest
        remedy = "Detect the reference's heads on the same rows, or leave reference out and the sweep makes it"
        require(same, "reference", "be scored on the sweep's score rows", self._config.reference, remedy)
        return artifacts

    def _detected(self, arm: _Arm, checkpoints: Checkpoints | None = None) -> tuple[StageResult, dict[str, Estimate]]:
        """Heads of a model trained on a recipe, and what that cost; what is done already is reused."""
        config, costs, name, loaded_s = self._config, arm.course.costs, arm.name, loading_s()
        with spent(costs, "make_data_s"):
            made = self._made(arm)
        num_tokens = self._tokens(arm, made)
        arm.course.known({"train_tokens": num_tokens})
        with spent(costs, "finetune_s"):
            tuned = finetune.run(
                arm_training(config, made.run_id, arm.seed), self._recorder, parent_run_id=arm.parent,
                run_name=f"finetune {name}", checkpoints=checkpoints,
            )  # fmt: skip
        scoring = detect_config(config, self._score_rows.run_id, tuned.run_id)
        with spent(costs, "detect_s"):
            found = detect.run(scoring, self._recorder, parent_run_id=arm.parent, run_name=f"detect {name}")
        costs["load_s"] = costs.get("load_s", 0.0) + loading_s() - loaded_s
        seconds = config.training.num_processes * tuned.summary["training_s"] + found.summary["scoring_s"]
        return found, {"gpu_seconds": Estimate(float(seconds)), "train_tokens": Estimate(num_tokens)}

    def _made(self, arm: _Arm) -> StageResult:
        """The arm's training data; those of the seed that follows are begun meanwhile."""
        config = self._data(arm, arm.seed)
        if self._ahead:
            self._ahead.settle(config)
        made = make_data.run(config, self._recorder, parent_run_id=arm.parent, run_name=f"make-data {arm.name}")
        if self._ahead and arm.following is not None:
            self._ahead.begin(self._data(arm, arm.following))
        return made

    def _data(self, arm: _Arm, seed: int) -> MakeDataConfig:
        asked = train_data(self._config, arm.knobs, seed)
        return dataclasses.replace(asked, data=arm.course.budget.of(asked.data))

    def _tokens(self, arm: _Arm, made: StageResult) -> float:
        """Tokens that the arm trains on in an epoch: of one budget as many for every recipe of a sweep."""
        card = json.loads(made.artifacts.file(make_data.CARD).read_text(encoding="utf-8"))
        num_tokens, budget = float(card["parts"]["train"]["num_tokens_total"]), arm.course.budget
        first, tokens = self._num_tokens.setdefault(budget, (arm.name, num_tokens))
        prompt_tokens = budget.num_tokens - self._config.data.num_reserved_tokens
        check_equal(arm.name, num_tokens, first, tokens, prompt_tokens)
        return num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arm:
    """A recipe with one of its seeds, and the seed after it."""

    knobs: Knobs
    seed: int
    following: int | None
    parent: str
    course: Course

    @property
    def name(self) -> str:
        return f"{self.knobs.name}/seed{self.seed}"


def recalls_of(scores: HeadScores, reference: HeadScores, scoring: ScoringSettings) -> dict[str, Estimate]:
    """Both recalls of the reference's heads by one model."""
    measures = head_measures(scores, reference, scoring.threshold, scoring.top_k)
    return {name: measures[short] for name, short in MEASURES.items()}


def detect_config(config: SweepConfig, score_rows: str, checkpoint: str) -> DetectConfig:
    """How a sweep scores the heads of a checkpoint (empty: of the untuned model) on its score rows."""
    return DetectConfig(
        data=score_rows, checkpoint=checkpoint, model=config.model, context=config.context, scoring=config.scoring,
        tracking=config.tracking,
    )  # fmt: skip


def _means(found: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {name: mean_estimate([one[name] for one in found]) for name in found[0]}


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
