"""The study: recipes x seeds -> make-data, finetune, detect, evaluate for each arm, then one analysis.

Runs are nested study > arm > stage. Finished stages are reused by digest, so a study killed at any moment and started
again goes on where it was; an arm that fails does not stop the others. A part of a study, for one of several machines,
measures its arms and compares nothing: the whole study, run afterwards, finds them done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rhstudy.configs import ContextConfig, digest, digest_view
from rhstudy.data.budget import check_equal
from rhstudy.errors import InterruptedRunError, StudyError, UnreachableStoreError, message
from rhstudy.keeping import keeping
from rhstudy.plan import (
    ArmConfig,
    StudyConfig,
    arm_training,
    arms_of_part,
    builds_ahead,
    held_out_data,
    patch_config,
    patch_pairs,
    train_data,
)
from rhstudy.stages import analyze, detect, evaluate, finetune, intervene, make_data, patch, report
from rhstudy.stages.ahead import BuildAhead, building_ahead
from rhstudy.stages.analyze import AnalyzeConfig, ArmRuns
from rhstudy.stages.detect import DetectConfig
from rhstudy.stages.evaluate import EvaluateConfig
from rhstudy.stages.inputs import model_inputs, resolved_data, source_inputs
from rhstudy.stages.intervene import InterveneConfig
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.stages.report import ReportConfig
from rhstudy.tracking.groups import group_run, keep_end_time
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult

STAGE = "study"
ARM = "arm"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What a study leaves.

    Attributes:
        run_id: of the study.
        analysis: every estimate; its summary is the study's.
        report: the page that gathers analysis, head map and knockouts.
        knockouts: the `intervene` results, by arm; those with its own heads before those with the reference's.
        patches: the `patch` results, null patches first.
    """

    run_id: str
    analysis: StageResult
    report: StageResult
    knockouts: tuple[StageResult, ...] = ()
    patches: tuple[StageResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """What a part of a study leaves: arms measured, nothing compared.

    Attributes:
        run_id: of the part.
        part: (K, N).
        arms: names of its arms.
        reused: whether all of it had been done before.
    """

    run_id: str
    part: tuple[int, ...]
    arms: tuple[str, ...]
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedArm:
    """An arm's run, its checkpoint (empty: untuned) and the two measurements that the analysis reads."""

    run_id: str
    checkpoint: str
    runs: ArmRuns


def run(config: StudyConfig, recorder: Recorder) -> StudyResult | PartResult:
    """Run the study, or the part of it that is asked for; errors as `run_whole`."""
    return run_part(config, recorder) if config.is_part else run_whole(config, recorder)


def run_whole(config: StudyConfig, recorder: Recorder) -> StudyResult:
    """Run the whole study.

    Raises:
        InputError: bad input, before any arm is trained where that can be known.
        StudyError: some arms failed; the others are finished, and analyzed where the reference is among them.
    """
    with _opened(config, recorder) as study:
        finished = study.measure()
        study.patch(finished)
        analysis, page = study.conclude(finished)
    knockouts, patches = tuple(study.knockouts), tuple(study.patches)
    return StudyResult(run_id=study.study_id, analysis=analysis, report=page, knockouts=knockouts, patches=patches)


def run_part(config: StudyConfig, recorder: Recorder) -> PartResult:
    """Measure the arms of one part; errors as `run_whole`.

    Knockouts of the reference's heads are left to the whole study unless the reference is among these arms.
    """
    with _opened(config, recorder) as study:
        finished = study.measure()
        if study.failures:
            raise study.failure()
    return PartResult(run_id=study.study_id, part=config.part, arms=tuple(finished), reused=study.all_reused)


@contextlib.contextmanager
def _opened(config: StudyConfig, recorder: Recorder) -> Iterator[_Study]:
    """The study's run for the length of the block."""
    config = dataclasses.replace(config, data=resolved_data(config.data, config.model))
    with (
        group_run(recorder, config.run_name, digest=_study_digest(config), config=config) as study_id,
        keeping(),
        building_ahead(recorder, builds_ahead(config.build_ahead, config.model)) as ahead,
    ):
        study = _Study(config, recorder, study_id, ahead)
        yield study
    keep_end_time(recorder, study_id, confirmed_only=study.all_reused)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames of a kept error hold: a model, its optimizer, gradients. Its run has the traceback."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _study_digest(config: StudyConfig) -> str:
    contents = {**source_inputs(config.data), **model_inputs(config.model)}
    part = [list(config.part)] if config.is_part else []
    return digest(STAGE, digest_view(config), {name: item.content_digest for name, item in contents.items()}, *part)


class _Study:
    """The run of one study: its arms, what failed, its analysis."""

    def __init__(self, config: StudyConfig, recorder: Recorder, study_id: str, ahead: BuildAhead | None) -> None:
        self.config, self.recorder, self.study_id, self.ahead = config, recorder, study_id, ahead
        self.arms = arms_of_part(config)
        self.failures: dict[str, Exception] = {}
        self.num_tokens: dict[str, float] = {}
        self.knockouts: list[StageResult] = []
        self.patches: list[StageResult] = []
        self.eval_data = ""
        self.reference_heads = ""
        self.causal_runs: list[str] = []
        self.all_reused = True

    def measure(self) -> dict[str, _FinishedArm]:
        """Every arm of this machine, by name; those that fail are left out and noted."""
        data = make_data.with_equal_rows(self.config.data, self.config.all_recipes, self.config.model)
        self.config = dataclasses.replace(self.config, data=data)
        score_rows, eval_rows = self._held_out("score"), self._held_out("eval")
        self.eval_data = eval_rows.run_id
        finished: dict[str, _FinishedArm] = {}
        for number, arm in enumerate(self.arms, 1):
            _log.info("arm %d of %d: %s", number, len(self.arms), arm.name)
            try:
                finished[arm.name] = self._arm(arm.name, arm, score_rows, eval_rows)
            except (InterruptedRunError, UnreachableStoreError):
                raise
            except Exception as error:  # one arm's failure, of whatever kind, is no reason to lose the others
                self._note_failure(arm.name, error)
        return finished

    def patch(self, finished: Mapping[str, _FinishedArm]) -> None:
        """Patch between the finished arms, where asked for; a pair that fails is noted and costs no other."""
        null = ""
        for pair in patch_pairs(self.config):
            if not {pair.donor, pair.recipient} <= finished.keys():
                continue
            donor, recipient = (
                (arm.checkpoint, arm.runs.detect) for arm in (finished[pair.donor], finished[pair.recipient])
            )
            config = patch_config(self.config, pair, data=self.eval_data, donor=donor, recipient=recipient, null=null)
            try:
                result = patch.run(config, self.recorder, parent_run_id=self.study_id, run_name=f"patch {pair.name}")
            except (InterruptedRunError, UnreachableStoreError):
                raise
            except Exception as error:
                self._note_failure(f"{pair.name} patching", error)
                continue
            null = null or (result.run_id if pair.is_null else "")
            self.patches.append(result)
            self.causal_runs += [result.run_id] if pair.real_model == "donor" and not pair.is_null else []
            self.all_reused = self.all_reused and result.reused

    def conclude(self, finished: Mapping[str, _FinishedArm]) -> tuple[StageResult, StageResult]:
        """Analysis and report of the finished arms, where the reference is one of them; raises when an arm failed."""
        result = self._compare(finished)
        if self.failures or result is None:
            raise self.failure()
        return result

    def _compare(self, finished: Mapping[str, _FinishedArm]) -> tuple[StageResult, StageResult] | None:
        reference = finished.get(self.config.reference_arm)
        if reference is None:
            return None
        analysis = self._analyze([arm.runs for arm in finished.values()])
        self._log_headlines({name: arm.run_id for name, arm in finished.items()}, analysis)
        config = ReportConfig(
            analysis=analysis.run_id,
            detect=reference.runs.detect,
            knockouts=tuple(result.run_id for result in self.knockouts),
            patches=tuple(result.run_id for result in self.patches),
            title=self.config.name,
            tracking=self.config.tracking,
        )
        return analysis, report.run(config, self.recorder, parent_run_id=self.study_id, run_name="report")

    def failure(self) -> StudyError:
        """The error of a study of which arms failed."""
        first = next(iter(self.failures.values()))
        got = f"<{len(self.failures)} failed: {', '.join(self.failures)}>"
        remedy = "Mend the cause and start the same command again: finished stages are reused"
        kind = type(first) if isinstance(first, StudyError) else StudyError
        text = message("arms", f"all finish ({len(self.arms)})", got, remedy, f"{type(first).__name__}: {first}")
        error = kind(text)
        error.__cause__ = first
        return error

    def _held_out(self, part: Literal["score", "eval"]) -> StageResult:
        """The real rows of one part; a run each, so that more eval rows leave the head scores as they are."""
        rows = held_out_data(self.config, part)
        return make_data.run(rows, self.recorder, parent_run_id=self.study_id, run_name=f"make-data {part} rows")

    def _arm(self, name: str, arm: ArmConfig, score_rows: StageResult, eval_rows: StageResult) -> _FinishedArm:
        identity = digest(ARM, digest_view(arm))
        tags = {"rhstudy.recipe": arm.recipe, "rhstudy.model": self.config.model.name}
        with group_run(
            self.recorder, name, digest=identity, stage=ARM, parent_run_id=self.study_id, config=arm, tags=tags
        ) as arm_id:
            checkpoint = self._train(name, arm, arm_id) if arm.knobs is not None else ""
            measured = self._measure(name, arm, arm_id, checkpoint, score_rows, eval_rows)
            detected, evaluated = measured[:2]
            facts = {**detected.summary, **evaluated.summary}
            keys = ("f1", "exact_match", "num_retrieval_heads", "num_heads")
            shown = "  %s: F1 %.3f, exact match %.3f, %d retrieval heads of %d"
            _log.info(shown, name, *(facts[key] for key in keys))
            links = {"rhstudy.run.detect": detected.run_id, "rhstudy.run.evaluate": evaluated.run_id}
            self.recorder.set_tags(arm_id, links | {"rhstudy.run.finetune": checkpoint})
        reused = all(result.reused for result in measured)
        self.all_reused = self.all_reused and reused
        self.knockouts += measured[2:]
        self.causal_runs += [result.run_id for result in measured[2:] if name == self.config.reference_arm]
        keep_end_time(self.recorder, arm_id, confirmed_only=reused)
        runs = ArmRuns(detect=detected.run_id, evaluate=evaluated.run_id)
        return _FinishedArm(run_id=arm_id, checkpoint=checkpoint, runs=runs)

    def _measure(
        self, name: str, arm: ArmConfig, arm_id: str, checkpoint: str, score_rows: StageResult, eval_rows: StageResult
    ) -> list[StageResult]:
        """Head scores and answers of an arm, and the knockouts that are asked for."""
        config = self.config
        shared: dict[str, Any] = {
            "checkpoint": checkpoint,
            "model": config.model,
            "context": config.context if arm.context == config.context.label else ContextConfig(),
            "tracking": config.tracking,
        }

        def nested(stage: str) -> dict[str, str]:
            return {"parent_run_id": arm_id, "run_name": f"{stage} {name}"}

        scoring = DetectConfig(data=score_rows.run_id, scoring=config.scoring, **shared)
        detected = detect.run(scoring, self.recorder, **nested(detect.STAGE))
        shared |= {"data": eval_rows.run_id, "answering": config.answering}
        evaluated = evaluate.run(EvaluateConfig(**shared), self.recorder, **nested(evaluate.STAGE))
        if name == config.reference_arm:
            self.reference_heads = detected.run_id
        measured = [detected, evaluated]
        for what, heads in self._knocked_out(arm, detected.run_id).items():
            knockout = InterveneConfig(
                heads=heads, score_data=score_rows.run_id, knockout=config.knockout, seed=config.seed, **shared
            )
            try:
                measured.append(intervene.run(knockout, self.recorder, **nested(f"{intervene.STAGE} {what}")))
            except (InterruptedRunError, UnreachableStoreError):
                raise
            except Exception as error:  # what was measured of an arm is not lost with its knockout
                self._note_failure(f"{name} knockout of {what}", error)
        return measured

    def _knocked_out(self, arm: ArmConfig, own: str) -> dict[str, str]:
        """Whose heads are knocked out of this arm -> their detect run; the reference's only once it was measured."""
        is_reference = arm.name == self.config.reference_arm
        chosen = {"all": True, "reference": is_reference, "none": False}[self.config.knockout_arms]
        others = {"the reference's heads": self.reference_heads} if self.reference_heads and not is_reference else {}
        return {"its own heads": own, **others} if chosen else {}

    def _note_failure(self, name: str, error: Exception) -> None:
        _log.error("arm %s failed: %s: %s", name, type(error).__name__, error)
        self.failures[name] = error
        _forget_frames(error)

    def _train(self, name: str, arm: ArmConfig, arm_id: str) -> str:
        data = self._train_data(arm)
        if self.ahead:
            self.ahead.settle(data)
        made = make_data.run(data, self.recorder, parent_run_id=arm_id, run_name=f"make-data {name}")
        following = [later for later in self.arms[self.arms.index(arm) + 1 :] if later.knobs is not None]
        if self.ahead and following:
            self.ahead.begin(self._train_data(following[0]))
        card = json.loads(made.artifacts.file(make_data.CARD).read_text(encoding="utf-8"))
        self._check_budget(name, card["parts"]["train"]["num_tokens_total"], arm_id)
        tuned = finetune.run(
            arm_training(self.config, made.run_id, arm.seed),
            self.recorder,
            parent_run_id=arm_id,
            run_name=f"finetune {name}",
        )
        return tuned.run_id

    def _train_data(self, arm: ArmConfig) -> MakeDataConfig:
        return train_data(self.config, arm.knobs, arm.seed)

    def _check_budget(self, name: str, num_tokens: float, arm_id: str) -> None:
        """Every recipe of a study trains on equally many tokens; one that does not is an error with the numbers."""
        self.num_tokens[name] = num_tokens
        first, reference = next(iter(self.num_tokens.items()))
        self.recorder.log_metrics(arm_id, {"num_train_tokens": num_tokens})
        data = self.config.data
        check_equal(name, num_tokens, first, reference, data.num_tokens - data.num_reserved_tokens)

    def _analyze(self, arms: list[ArmRuns]) -> StageResult:
        config = AnalyzeConfig(
            arms=tuple(arms),
            interventions=tuple(self.causal_runs),
            task=self.config.data.task,
            reference_recipe=self.config.reference_recipe,
            threshold=self.config.scoring.threshold,
            top_k=self.config.scoring.top_k,
            statistics=self.config.statistics,
            seed=self.config.seed,
            tracking=self.config.tracking,
        )
        return analyze.run(config, self.recorder, parent_run_id=self.study_id, run_name="analyze")

    def _log_headlines(self, arm_ids: Mapping[str, str], result: StageResult) -> None:
        """Put each arm's headline numbers on its run, so that the arms' runs compare in one table."""
        for name, numbers in analyze.arm_numbers(result.artifacts).items():
            self.recorder.log_metrics(arm_ids[name], numbers)
        numeric: dict[str, Any] = {key: value for key, value in result.summary.items() if isinstance(value, float)}
        self.recorder.log_metrics(self.study_id, numeric)
        self.recorder.set_tags(self.study_id, {"mlflow.note.content": analyze.report_text(result.artifacts)})


def summary_text(study: StudyResult | PartResult) -> str:
    """What a study ends with: the report of its analysis; for a part, what comes next."""
    if isinstance(study, StudyResult):
        return analyze.report_text(study.analysis.artifacts)
    number, count = study.part
    return (
        f"part {number} of {count} is done (arms {', '.join(study.arms)}); when all are, run the study without --part: "
        "it reuses them"
    )
