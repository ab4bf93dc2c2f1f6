"""The study: recipes x seeds -> make-data, finetune, detect, evaluate for each arm, then one analysis.

Runs are nested study > arm > stage. Finished stages are reused by digest, so a study killed at any moment and started
again goes on where it was; an arm that fails does not stop the others.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rhstudy.configs import NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, digest, digest_view
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs, preset
from rhstudy.errors import InterruptedRunError, StudyError, UnreachableStoreError, message, require
from rhstudy.interventions.conditions import KnockoutSettings
from rhstudy.stages import analyze, detect, evaluate, finetune, intervene, make_data, report
from rhstudy.stages.analyze import AnalyzeConfig, ArmRuns
from rhstudy.stages.detect import DetectConfig, ScoringSettings
from rhstudy.stages.evaluate import AnsweringSettings, EvaluateConfig
from rhstudy.stages.finetune import FinetuneConfig
from rhstudy.stages.inputs import model_inputs, resolved_data, source_inputs
from rhstudy.stages.intervene import InterveneConfig
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.stages.report import ReportConfig
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.tracking.groups import group_run, keep_end_time
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult
from rhstudy.training.loop import TrainingConfig

STAGE = "study"
ARM = "arm"
TOKEN_TOLERANCE = 0.01
_log = logging.getLogger(__name__)

Baseline = Literal["untuned", "untuned_native"]
KnockoutArms = Literal["none", "reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """A whole study.

    Attributes:
        name: run name of the study.
        recipes: preset recipes, each an arm per seed.
        custom_recipes: recipes of one's own, each an arm per seed.
        seeds: root seeds of the arms: data draw and order of examples.
        ceiling_seeds: further seeds of the reference recipe alone, for the noise ceiling.
        reference_recipe: the recipe of the real-data model.
        baselines: ``untuned`` (RoPE raised as in training) and ``untuned_native`` (RoPE as shipped).
        data: budgets and sources; recipe, parts and seed are set per arm.
        model: the base model.
        context: context extension of every trained arm.
        training: optimisation.
        scoring: how heads are scored, on the ``score`` part.
        answering: how answers are generated, on the ``eval`` part.
        knockout_arms: whose retrieval heads are knocked out, on the ``eval`` part: ``reference``, or ``none``.
        knockout: doses and controls.
        statistics: levels, draws and the verdict rule.
        seed: of the analysis and of the random heads.
        part: for several machines with one tracking server: (2, 3) begins with the second of three parts of the arms
            and takes the others' arms last, as far as they are not done by then.
        tracking: where runs are recorded.
    """

    name: str = "study"
    recipes: tuple[str, ...] = ("real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic")
    custom_recipes: tuple[Knobs, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ceiling_seeds: tuple[int, ...] = (1,)
    reference_recipe: str = "real"
    baselines: tuple[Baseline, ...] = ("untuned",)
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    knockout_arms: KnockoutArms = "none"
    knockout: KnockoutSettings = field(default_factory=KnockoutSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    seed: int = 0
    part: tuple[int, ...] = field(default=(1, 1), metadata=NO_DIGEST)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        remedy = "Say 1 2 on one machine and 2 2 on the other"
        valid = len(self.part) == 2 and 1 <= self.part[0] <= self.part[1]
        require(valid, "part", "be K N with K from 1 to N", self.part, remedy)
        names = [knobs.name for knobs in self.all_recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "recipes", "have different names", twice, "Rename one of them")
        digests = [knobs.digest for knobs in self.all_recipes]
        same = [name for name, found in zip(names, digests, strict=True) if digests.count(found) > 1]
        require(not same, "recipes", "differ in more than their names", same, "Drop one of them")
        remedy = "Add it to recipes: it is what the others are compared with"
        require(self.reference_recipe in names, "reference_recipe", f"be one of {names}", self.reference_recipe, remedy)
        require(bool(self.seeds), "seeds", "hold at least one seed", self.seeds, "Use seeds = [0]")
        for name in ("seeds", "ceiling_seeds"):
            given = getattr(self, name)
            require(all(seed >= 0 for seed in given), name, "all be at least 0", given, "Give seeds of 0 or more")

    @property
    def all_recipes(self) -> tuple[Knobs, ...]:
        """Preset and custom recipes as knobs."""
        return (*(preset(name) for name in self.recipes), *self.custom_recipes)

    @property
    def reference_arm(self) -> tuple[str, int]:
        """(recipe, seed) of the real-data model."""
        return self.reference_recipe, min(self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """What tells one arm from another; the params of an arm's run.

    Attributes:
        recipe: name of the recipe, or of the baseline.
        seed: root seed of data draw and order.
        knobs: the recipe; None for a baseline.
        rope_theta: RoPE base frequency; 0 = as shipped.
    """

    recipe: str
    seed: int
    knobs: Knobs | None
    rope_theta: float

    @property
    def name(self) -> str:
        """``recipe/seedN``."""
        return f"{self.recipe}/seed{self.seed}"


def plan_arms(config: StudyConfig) -> Iterator[ArmConfig]:
    """Every arm, the reference first: an interrupted study has what the others are compared with."""
    theta = config.context.rope_theta
    ordered = sorted(config.all_recipes, key=lambda knobs: knobs.name != config.reference_recipe)
    for knobs in ordered:
        extra = config.ceiling_seeds if knobs.name == config.reference_recipe else ()
        for seed in dict.fromkeys((*config.seeds, *extra)):
            yield ArmConfig(recipe=knobs.name, seed=seed, knobs=knobs, rope_theta=theta)
    for baseline in dict.fromkeys(config.baselines if theta else config.baselines and ("untuned_native",)):
        native = baseline == "untuned_native"
        yield ArmConfig(recipe=baseline, seed=0, knobs=None, rope_theta=0.0 if native else theta)


def work_order(arms: Sequence[ArmConfig], part: tuple[int, ...]) -> list[ArmConfig]:
    """`arms` in the order in which the machine of `part` takes them: its own, then the others' from the end.

    From the end, because whoever has those began at the front: machines meet when little is left to wait for.
    """
    own = arms[part[0] - 1 :: part[1]]
    return [*own, *(arm for arm in reversed(arms) if arm not in own)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What a study leaves.

    Attributes:
        run_id: of the study.
        analysis: every estimate; its summary is the study's.
        report: the page that gathers analysis, head map and knockouts.
        knockouts: the `intervene` results, the reference's alone so far.
    """

    run_id: str
    analysis: StageResult
    report: StageResult
    knockouts: tuple[StageResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedArm:
    """An arm's run and the two measurements that the analysis reads."""

    run_id: str
    runs: ArmRuns


def run(config: StudyConfig, recorder: Recorder) -> StudyResult:
    """Run the study.

    Raises:
        InputError: bad input, before any arm is trained where that can be known.
        StudyError: some arms failed; the others are finished, and analyzed where the reference is among them.
    """
    config = dataclasses.replace(config, data=resolved_data(config.data, config.model))
    with group_run(recorder, config.name, digest=_study_digest(config), config=config) as study_id:
        study = _Study(config, recorder, study_id)
        analysis, page = study.run()
    keep_end_time(recorder, study_id, confirmed_only=study.all_reused)
    return StudyResult(run_id=study_id, analysis=analysis, report=page, knockouts=tuple(study.knockouts))


def _study_digest(config: StudyConfig) -> str:
    contents = {**source_inputs(config.data), **model_inputs(config.model)}
    return digest(STAGE, digest_view(config), {name: item.content_digest for name, item in contents.items()})


class _Study:
    """The run of one study: its arms, what failed, its analysis."""

    def __init__(self, config: StudyConfig, recorder: Recorder, study_id: str) -> None:
        self.config, self.recorder, self.study_id = config, recorder, study_id
        self.failures: dict[str, Exception] = {}
        self.num_tokens: dict[str, float] = {}
        self.knockouts: list[StageResult] = []
        self.all_reused = True

    def run(self) -> tuple[StageResult, StageResult]:
        """Every arm, then the analysis and the report."""
        score_rows, eval_rows = self._held_out("score"), self._held_out("eval")
        arms = list(plan_arms(self.config))
        finished: dict[str, _FinishedArm] = {}
        for number, arm in enumerate(work_order(arms, self.config.part), 1):
            _log.info("arm %d of %d: %s", number, len(arms), arm.name)
            try:
                finished[arm.name] = self._arm(arm.name, arm, score_rows, eval_rows)
            except (InterruptedRunError, UnreachableStoreError):
                raise
            except Exception as error:  # one arm's failure, of whatever kind, is no reason to lose the others
                self._note_failure(arm.name, error)
        # In the order of the plan, so that the analysis is the same one on every machine.
        result = self._conclude({arm.name: finished[arm.name] for arm in arms if arm.name in finished})
        if self.failures or result is None:
            raise self._failure(len(arms))
        return result

    def _conclude(self, finished: Mapping[str, _FinishedArm]) -> tuple[StageResult, StageResult] | None:
        """Analysis and report of the finished arms; None without the reference."""
        recipe, seed = self.config.reference_arm
        reference = finished.get(f"{recipe}/seed{seed}")
        if reference is None:
            return None
        analysis = self._analyze([arm.runs for arm in finished.values()])
        self._log_headlines({name: arm.run_id for name, arm in finished.items()}, analysis)
        config = ReportConfig(
            analysis=analysis.run_id,
            detect=reference.runs.detect,
            knockouts=tuple(result.run_id for result in self.knockouts),
            title=self.config.name,
            tracking=self.config.tracking,
        )
        return analysis, report.run(config, self.recorder, parent_run_id=self.study_id, run_name="report")

    def _failure(self, num_arms: int) -> StudyError:
        first = next(iter(self.failures.values()))
        got = f"<{len(self.failures)} failed: {', '.join(self.failures)}>"
        remedy = "Mend the cause and start the same command again: finished stages are reused"
        kind = type(first) if isinstance(first, StudyError) else StudyError
        text = message("arms", f"all finish ({num_arms})", got, remedy, f"{type(first).__name__}: {first}")
        error = kind(text)
        error.__cause__ = first
        return error

    def _held_out(self, part: Literal["score", "eval"]) -> StageResult:
        """The real rows of one part; a run each, so that more eval rows leave the head scores as they are."""
        asked = self.config.data
        data = dataclasses.replace(
            asked,
            parts=(part,),
            recipe="",
            knobs=None,
            seed=0,
            num_examples=1,
            num_dev=0,
            num_score=asked.num_score if part == "score" else 0,
            num_eval=asked.num_eval if part == "eval" else 0,
        )
        return make_data.run(
            MakeDataConfig(data=data, model=self.config.model, tracking=self.config.tracking),
            self.recorder,
            parent_run_id=self.study_id,
            run_name=f"make-data {part} rows",
        )

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
        keep_end_time(self.recorder, arm_id, confirmed_only=reused)
        return _FinishedArm(run_id=arm_id, runs=ArmRuns(detect=detected.run_id, evaluate=evaluated.run_id))

    def _measure(
        self, name: str, arm: ArmConfig, arm_id: str, checkpoint: str, score_rows: StageResult, eval_rows: StageResult
    ) -> list[StageResult]:
        """Head scores and answers of an arm; for the reference also the knockout of its heads, where asked for."""
        config = self.config
        shared: dict[str, Any] = {
            "checkpoint": checkpoint,
            "model": config.model,
            "context": ContextConfig(rope_theta=arm.rope_theta),
            "tracking": config.tracking,
        }

        def nested(stage: str) -> dict[str, str]:
            return {"parent_run_id": arm_id, "run_name": f"{stage} {name}"}

        scoring = DetectConfig(data=score_rows.run_id, scoring=config.scoring, **shared)
        detected = detect.run(scoring, self.recorder, **nested(detect.STAGE))
        shared |= {"data": eval_rows.run_id, "answering": config.answering}
        evaluated = evaluate.run(EvaluateConfig(**shared), self.recorder, **nested(evaluate.STAGE))
        if config.knockout_arms == "none" or (arm.recipe, arm.seed) != config.reference_arm:
            return [detected, evaluated]
        knockout = InterveneConfig(heads=detected.run_id, knockout=config.knockout, seed=config.seed, **shared)
        try:
            return [detected, evaluated, intervene.run(knockout, self.recorder, **nested(intervene.STAGE))]
        except (InterruptedRunError, UnreachableStoreError):
            raise
        except Exception as error:  # what was measured of the reference is what every other arm is compared with
            self._note_failure(f"{name} knockout", error)
            return [detected, evaluated]

    def _note_failure(self, name: str, error: Exception) -> None:
        _log.error("arm %s failed: %s: %s", name, type(error).__name__, error)
        self.failures[name] = error

    def _train(self, name: str, arm: ArmConfig, arm_id: str) -> str:
        data = dataclasses.replace(self.config.data, parts=("train",), recipe="", knobs=arm.knobs, seed=arm.seed)
        made = make_data.run(
            MakeDataConfig(data=data, model=self.config.model, tracking=self.config.tracking),
            self.recorder,
            parent_run_id=arm_id,
            run_name=f"make-data {name}",
        )
        card = json.loads(made.artifacts.file(make_data.CARD).read_text(encoding="utf-8"))
        self._check_budget(name, card["parts"]["train"]["num_tokens_total"], arm_id)
        tuned = finetune.run(
            FinetuneConfig(
                data=made.run_id,
                model=self.config.model,
                context=self.config.context,
                training=self.config.training,
                seed=arm.seed,
                tracking=self.config.tracking,
            ),
            self.recorder,
            parent_run_id=arm_id,
            run_name=f"finetune {name}",
        )
        return tuned.run_id

    def _check_budget(self, name: str, num_tokens: float, arm_id: str) -> None:
        """Every recipe of a study trains on equally many tokens: say so where one does not."""
        self.num_tokens[name] = num_tokens
        reference = next(iter(self.num_tokens.values()))
        excess = num_tokens / reference - 1
        self.recorder.log_metrics(arm_id, {"num_train_tokens": num_tokens})
        if abs(excess) > TOKEN_TOLERANCE:
            note = f"trains on {excess:+.1%} tokens compared with {next(iter(self.num_tokens))}"
            _log.warning("%s %s", name, note)
            self.recorder.set_tags(arm_id, {"rhstudy.warning": note})

    def _analyze(self, arms: list[ArmRuns]) -> StageResult:
        config = AnalyzeConfig(
            arms=tuple(arms),
            task=self.config.data.task,
            reference_recipe=self.config.reference_recipe,
            threshold=self.config.scoring.threshold,
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


def summary_text(study: StudyResult) -> str:
    """What a study ends with: the report of its analysis."""
    return analyze.report_text(study.analysis.artifacts)
