"""Stage `analyze`: detect and evaluate runs of many arms -> head recall against the real-data model, and its worth.

The arms may also come as a table of the user's own (`rhstudy.stats.table_file`); the analysis is the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rhstudy.configs import INPUT, NO_DIGEST, TrackingConfig
from rhstudy.errors import InputError, message, require
from rhstudy.evaluation.answers import summarize_predictions
from rhstudy.heads.compare import head_measures
from rhstudy.heads.files import load_scores
from rhstudy.heads.sets import MASS_MODES, RETRIEVAL_THRESHOLD, overlap, retrieval_heads
from rhstudy.stages.detect import STAGE as DETECT
from rhstudy.stages.evaluate import PREDICTIONS, read_predictions
from rhstudy.stages.evaluate import STAGE as EVALUATE
from rhstudy.stages.experiments import file_input, intervention_inputs, read_interventions
from rhstudy.stages.measurement import rows_of
from rhstudy.stages.subject import UNTUNED, Subject, read_subject, require_stage
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage
from rhstudy.types import Estimate, HeadScores, Prediction

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

STAGE = "analyze"
ANALYSIS = "analysis.json"
ARMS = "arms.csv"
REPORT = "report.md"
TABLES = "tables.tex"
OTHER_THRESHOLDS = (0.05, 0.2, 0.3)
OTHER_TOP_K = (5, 10, 20, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRuns:
    """The two measurements of one arm.

    Attributes:
        detect: run id or artifact folder of `detect`.
        evaluate: run id or artifact folder of `evaluate`, of the same model.
    """

    detect: str = field(metadata=INPUT)
    evaluate: str = field(metadata=INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeConfig:
    """Config of the stage.

    Attributes:
        arms: the arms to put side by side.
        table: instead of `arms` a CSV or Parquet file with a row per arm (`rhstudy analyze TABLE` for short).
        examples: with `table`, a CSV or Parquet file with a row per arm and example, for intervals over examples.
        interventions: run ids or artifact folders of `intervene` and `patch`, or files of outcomes
            (`rhstudy.stats.outcome_file`), for the claims that heads are necessary and sufficient.
        out: folder to copy the results to; empty leaves them among the artifacts of the run.
        task: name of the task in tables.
        reference_recipe: its lowest seed is the real-data model whose retrieval heads are to be recalled; its other
            seeds are the noise ceiling.
        threshold: mean score from which a head is a retrieval head.
        top_k: 0, or take this many heads of highest mean score instead; needed for attention mass.
        statistics: levels, draws and the verdict rule, declared before the run.
        seed: of permutations, resamples and power simulations.
        tracking: where the run is recorded.
    """

    arms: tuple[ArmRuns, ...] = field(default=(), metadata=INPUT)
    table: str = field(default="", metadata=INPUT)
    examples: str = field(default="", metadata=INPUT)
    interventions: tuple[str, ...] = field(default=(), metadata=INPUT)
    out: str = field(default="", metadata=NO_DIGEST)
    task: str = "mdqa"
    reference_recipe: str = "real"
    threshold: float = RETRIEVAL_THRESHOLD
    top_k: int = 0
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        given = bool(self.arms) or bool(self.table)
        remedy = "Add [[arms]] tables, or give a table: rhstudy analyze TABLE.csv --out DIR"
        require(given, "arms", "name at least one arm", len(self.arms), remedy)
        both = bool(self.arms) and bool(self.table)
        require(not both, "table", "be left out where arms are given", self.table, "Analyze one of them")
        stray = bool(self.examples) and not self.table
        require(not stray, "examples", "be given with a table", self.examples, "Arms that are runs bring their own")
        require(0 < self.threshold <= 1, "threshold", "lie in (0, 1]", self.threshold, "The field uses 0.1")
        require(self.top_k >= 0, "top_k", "be at least 0", self.top_k, "0 = by threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arm:
    """One arm as read: what it is, its head scores, its predictions."""

    subject: Subject
    scores: HeadScores
    predictions: Sequence[Prediction]


def run(config: AnalyzeConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Analyze and record.

    Writes ``analysis.json``, ``arms.csv``, ``report.md``, ``tables.tex`` and figures.

    Raises:
        InputError: bad references, no arm of the reference recipe, detect and evaluate of different models in one arm,
            arms of different base models, modes or rows, head scores and F1 that share rows, or a bad table.
    """
    inputs: dict[str, ArtifactFolder] = {
        name: file_input(path, name) for name, path in (("table", config.table), ("examples", config.examples)) if path
    }
    inputs |= intervention_inputs(config.interventions, recorder)
    for index, arm in enumerate(config.arms):
        inputs[f"arms.{index}.detect"] = resolve(recorder, arm.detect)
        inputs[f"arms.{index}.evaluate"] = resolve(recorder, arm.evaluate)
    spec = StageSpec(
        stage=STAGE,
        run_name=run_name or f"{STAGE} {Path(config.table).name if config.table else f'{len(config.arms)} arms'}",
        config=config,
        inputs=inputs,
        seed=config.seed,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )
    result = run_stage(recorder, spec, lambda stage_run: _analyze(config, inputs, stage_run))
    if config.out:
        _copy_out(result.artifacts, Path(config.out))
    return result


def _copy_out(artifacts: ArtifactFolder, folder: Path) -> None:
    try:
        shutil.copytree(artifacts.path, folder, dirs_exist_ok=True)
    except OSError as error:
        must, remedy = "be a folder that can be written", f"Give another: {error}"
        raise InputError(message("out", must, str(folder), remedy)) from error


def _read_arm(index: int, inputs: Mapping[str, ArtifactFolder]) -> _Arm:
    detect, evaluate = inputs[f"arms.{index}.detect"], inputs[f"arms.{index}.evaluate"]
    require_stage(detect, DETECT, f"arms.{index}.detect")
    require_stage(evaluate, EVALUATE, f"arms.{index}.evaluate")
    subject, evaluated = read_subject(detect), read_subject(evaluate)
    require(
        subject.model_digest == evaluated.model_digest,
        f"arms.{index}",
        "detect and evaluate the same model",
        f"<{subject.recipe} seed {subject.seed} and {evaluated.recipe} seed {evaluated.seed}>",
        "Run both stages with the same checkpoint, model and context",
    )
    predictions = read_predictions(evaluate.file(PREDICTIONS))
    return _Arm(subject=subject, scores=load_scores(detect.path), predictions=predictions)


def _reference(config: AnalyzeConfig, arms: Sequence[_Arm]) -> _Arm:
    own = [arm for arm in arms if arm.subject.recipe == config.reference_recipe]
    names = sorted({arm.subject.recipe for arm in arms})
    remedy = "Add an arm trained on it, or name another with --reference_recipe"
    require(bool(own), "reference_recipe", "be among the arms", config.reference_recipe, remedy, f"arms: {names}")
    return min(own, key=lambda arm: arm.subject.seed)


def _check_comparable(arms: Sequence[_Arm]) -> None:
    """Arms stand side by side only on one base model, the same score rows and mode, and the same eval rows."""
    told: dict[str, set[Any]] = {
        "be of one base model": {arm.subject.model for arm in arms},
        "be scored in one mode": {arm.scores.mode for arm in arms},
        "be scored on the same rows": {arm.scores.example_ids for arm in arms},
        "be evaluated on the same rows": {tuple(item.example_id for item in arm.predictions) for arm in arms},
    }
    for must, found in told.items():
        shown = sorted(found) if all(isinstance(item, str) for item in found) else f"<{len(found)} different>"
        require(len(found) == 1, "arms", must, shown, "Run detect and evaluate of every arm with the same settings")
    shared = rows_of(arms[0].scores.example_ids) & rows_of(item.example_id for item in arms[0].predictions)
    remedy = "Score heads on part score and evaluate on part eval: head scores and F1 never share rows"
    require(not shared, "arms", "be scored and evaluated on different rows", f"<{len(shared)} shared rows>", remedy)


def _variants(config: AnalyzeConfig, arm: _Arm, reference: _Arm, untuned: _Arm | None) -> dict[str, Estimate]:
    """Head recall by other thresholds, by the top k, and of the heads that the untuned model has on real prompts."""
    from rhstudy.stats.frame import VARIANT

    rules = {f"top{k}": (config.threshold, k) for k in OTHER_TOP_K if k < reference.scores.mean().size}
    if arm.scores.mode not in MASS_MODES:
        rules |= {f"{value:g}": (value, 0) for value in OTHER_THRESHOLDS}
    found = {rule: _recall(arm, reference, *how) for rule, how in rules.items()}
    if untuned is not None:
        found["untuned"] = _recall(arm, untuned, config.threshold, config.top_k)
    return {f"{VARIANT}{rule}": value for rule, value in found.items()}


def _recall(arm: _Arm, reference: _Arm, threshold: float, top_k: int) -> Estimate:
    sets = (retrieval_heads(item.scores, threshold, top_k) for item in (arm, reference))
    return overlap(*sets).estimates()["recall"]


def _measures(config: AnalyzeConfig, arm: _Arm, reference: _Arm, untuned: _Arm | None) -> dict[str, Estimate]:
    from rhstudy.stats.frame import head_columns

    found = summarize_predictions(arm.predictions)
    subject = arm.subject
    untrained = Estimate.undefined("the model was not trained")
    return {
        **head_columns(head_measures(arm.scores, reference.scores, config.threshold, config.top_k)),
        **_variants(config, arm, reference, untuned),
        "f1": found.f1,
        "exact_match": found.exact_match,
        "num_retrieval_heads": Estimate(float(len(retrieval_heads(arm.scores, config.threshold, config.top_k)))),
        "real_nll": _mean_nll(arm.scores),
        "train_loss": untrained if subject.train_loss is None else Estimate(subject.train_loss),
        "weight_change_norm": untrained if subject.weight_change_norm is None else Estimate(subject.weight_change_norm),
    }


def _mean_nll(scores: HeadScores) -> Estimate:
    known = scores.real_nll[np.isfinite(scores.real_nll)]
    return Estimate(float(known.mean())) if len(known) else Estimate.undefined("the scoring mode measures no loss")


def _analyze(config: AnalyzeConfig, inputs: Mapping[str, ArtifactFolder], run: StageRun) -> Mapping[str, Any]:
    from rhstudy.stats.analysis import analyze_arms
    from rhstudy.stats.tables import latex_report, markdown_report

    frame, predictions = (_frame_of_table if config.table else _frame_of_runs)(config, inputs)
    frame.drop(columns="reasons").to_csv(run.output_dir / ARMS, index=False)
    analysis = analyze_arms(
        frame,
        predictions,
        seed=config.seed,
        settings=config.statistics,
        experiments=read_interventions(inputs, config.task, config.statistics.necessity_dose),
    )
    text = json.dumps(analysis, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (run.output_dir / ANALYSIS).write_text(text, encoding="utf-8")
    (run.output_dir / REPORT).write_text(markdown_report(analysis), encoding="utf-8")
    (run.output_dir / TABLES).write_text(latex_report(analysis), encoding="utf-8")
    _draw(config, analysis, run)
    return _headline(config, analysis)


_Table = tuple["pd.DataFrame", Mapping[str, Sequence[Prediction]]]


def _frame_of_table(config: AnalyzeConfig, _inputs: Mapping[str, ArtifactFolder]) -> _Table:
    from rhstudy.stats.frame import validate_frame
    from rhstudy.stats.table_file import read_table, table_arms, table_predictions

    rows = read_table(Path(config.table), "table")
    arms, ignored = table_arms(rows, config.reference_recipe, config.statistics.predictor)
    if ignored:
        _log.warning("columns that nothing reads: %s", ", ".join(ignored))
    predictions = table_predictions(read_table(Path(config.examples), "examples")) if config.examples else {}
    return validate_frame(arms), predictions


def _frame_of_runs(config: AnalyzeConfig, inputs: Mapping[str, ArtifactFolder]) -> _Table:
    from rhstudy.stats.frame import ArmRow, arm_frame, arm_name

    arms = [_read_arm(index, inputs) for index in range(len(config.arms))]
    _check_comparable(arms)
    reference = _reference(config, arms)
    untuned = next((arm for arm in arms if arm.subject.recipe == UNTUNED), None)
    rows, predictions = [], {}
    for arm in arms:
        subject = arm.subject
        rows.append(
            ArmRow(
                task=config.task,
                model=subject.model,
                recipe=subject.recipe,
                seed=subject.seed,
                recipe_digest=subject.recipe_digest,
                is_reference=subject.recipe == config.reference_recipe,
                is_reference_arm=arm is reference,
                contains_real=subject.contains_real,
                is_untuned=subject.is_untuned,
                measures=_measures(config, arm, reference, untuned),
            )
        )
        predictions[arm_name(config.task, subject.model, subject.recipe, subject.seed)] = arm.predictions
    return arm_frame(rows), predictions


def _draw(config: AnalyzeConfig, analysis: Mapping[str, Any], run: StageRun) -> None:
    from rhstudy.figures import arm_bars, arm_points

    several = len(analysis["groups"]) > 1
    for number, group in enumerate(analysis["groups"]):
        suffix = f"_{number}" if several else ""
        for predictor in dict.fromkeys((config.statistics.predictor, "weighted_head_recall")):
            if predictor in group["correlations"]:
                run.log_figure(f"f1_against_{predictor}{suffix}", _scatter(group, predictor))
        points = arm_points(group, config.statistics.predictor)
        run.log_figure(f"f1_by_recipe{suffix}", partial(arm_bars, points))
        _draw_ceiling(group, suffix, run)
    _draw_estimates(config.statistics.predictor, analysis, run)


def _scatter(group: Mapping[str, Any], predictor: str) -> Callable[[], Any]:
    from rhstudy.figures import arm_points, recall_scatter

    found = group["correlations"][predictor]["all"]
    return partial(
        recall_scatter,
        arm_points(group, predictor),
        predictor=predictor,
        n=found["n"],
        rho=found["estimate"],
        p=found["p"],
    )


def _draw_ceiling(group: Mapping[str, Any], suffix: str, run: StageRun) -> None:
    """Only of measures that some arm has, and only where the reference has another seed."""
    from rhstudy.figures import ceiling_plot
    from rhstudy.stats.analysis import CEILING_MEASURES

    measures = [name for name in CEILING_MEASURES if group["noise_ceiling"][name] is not None]
    if measures:
        run.log_figure(f"noise_ceiling{suffix}", partial(ceiling_plot, group, measures))


def _draw_estimates(predictor: str, analysis: Mapping[str, Any], run: StageRun) -> None:
    from rhstudy.figures import correlation_rows, forest, residual_plot, slope_rows

    title, label = "Rank correlation with F1 over recipes", "Spearman's rho"
    run.log_figure(
        "forest_correlations", partial(forest, correlation_rows(analysis, predictor), title=title, label=label)
    )
    title, label = f"Slope of F1 on {predictor} within task and model", "F1 per unit"
    run.log_figure("forest_slope", partial(forest, slope_rows(analysis), title=title, label=label))
    points = analysis["pooled"]["all"]["points"]
    if points:
        run.log_figure("residuals", partial(residual_plot, points, predictor=predictor))


def _headline(config: AnalyzeConfig, analysis: Mapping[str, Any]) -> dict[str, Any]:
    group = analysis["groups"][0]
    facts: dict[str, Any] = {"num_arms": len(group["arms"]), "verdict": analysis["verdicts"][0]["sentence"]}
    for name, found in group["correlations"].items():
        record = found["all"]
        facts[f"spearman_{name}"] = _number(record["estimate"])
        facts[f"p_{name}"] = _number(record["p"])
    facts["num_recipes"] = group["correlations"][config.statistics.predictor]["all"]["n"]
    return facts


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def arm_numbers(artifacts: ArtifactFolder) -> dict[str, dict[str, float]]:
    """Headline numbers of every arm of an analysis: ``recipe/seedN`` -> name -> value; undefined ones are left out."""
    from rhstudy.stats.frame import NUMBERS

    analysis = json.loads(artifacts.file(ANALYSIS).read_text(encoding="utf-8"))
    found: dict[str, dict[str, float]] = {}
    for group in analysis["groups"]:
        for arm in group["arms"]:
            values = {name: arm[name] for name in NUMBERS if name not in ("f1", "exact_match")}
            values |= {name: arm[name]["estimate"] for name in ("f1", "exact_match")}
            numbers = {name: value for name, value in values.items() if value is not None}
            found[f"{arm['recipe']}/seed{arm['seed']}"] = numbers
    return found


def report_text(artifacts: ArtifactFolder) -> str:
    """The markdown report of an analysis."""
    return artifacts.file(REPORT).read_text(encoding="utf-8")
