"""`rhstudy sweep-validate`: the recipes that a search would choose, and others, are evaluated on the real task.

The choice is made from what the search saw; only then are eval rows built. Fine-tuned models are the trials' own,
reused by digest (or trained again where they were deleted), so the command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rhstudy.configs import digest, plain
from rhstudy.data.knobs import preset
from rhstudy.errors import (
    AwayStorageError,
    InputError,
    InterruptedRunError,
    UnreachableStoreError,
    masked,
    require,
)
from rhstudy.heads.files import load_scores
from rhstudy.keeping import keeping
from rhstudy.stages import evaluate
from rhstudy.stages.inputs import resolved_data
from rhstudy.stages.outcomes import write_json
from rhstudy.sweep.arms import UNTUNED, Arms
from rhstudy.sweep.config import SweepConfig, SweepResult
from rhstudy.sweep.equal_rows import with_equal_rows
from rhstudy.sweep.judging import Evidence, Seconds, SeedF1, judge
from rhstudy.sweep.measure import REFERENCE_TAG
from rhstudy.sweep.run import sweep_inputs
from rhstudy.sweep.selection import Candidate, Choice, choose, further_seeds
from rhstudy.sweep.signals import SeedScores, signals_of
from rhstudy.sweep.validation_page import csv_text, facts_of, page, write_figures
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.groups import group_run
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, numbers_of
from rhstudy.types import HeadScores, Prediction

if TYPE_CHECKING:
    from rhstudy.sweep.storage import OpenSweep

__all__ = ["SweepConfig", "run", "summary_text"]
Found = TypeVar("Found")
STAGE, ARTIFACTS = "sweep-validate", "validation"
FINDINGS, TABLE, PAGE = "validation.json", "validation.csv", "validation.md"
_log = logging.getLogger(__name__)


def run(config: SweepConfig, recorder: Recorder) -> SweepResult:
    """Evaluate what the sweep's signals choose, and judge them.

    Args:
        config: of the sweep; `SweepConfig.validation` says what is evaluated.
        recorder: where the sweep is recorded; its run gets a nested one.

    Raises:
        InputError: there is no such sweep, or none of its trials is complete.
        InterruptedRunError: SIGINT or SIGTERM; the same command goes on.
        UnreachableStoreError: the storage or the tracking server is gone.
    """
    from rhstudy.sweep.storage import RUN, explained, look, storage_text

    resolved = dataclasses.replace(config, data=resolved_data(config.data, config.model))
    text = storage_text(config)
    sweep = look(config, sweep_inputs(resolved, recorder))
    sweep_id = str(sweep.study.user_attrs.get(RUN, ""))
    require(bool(sweep_id), "storage", "hold a sweep with a run", text, "Run `rhstudy sweep` first")
    group = digest(STAGE, sweep.digest, plain(config.validation))
    with (
        explained(text),
        group_run(
            recorder, f"{STAGE} {config.name}", digest=group, stage=STAGE, parent_run_id=sweep_id,
            config=config.validation,
        ) as run_id,
        keeping(),
    ):  # fmt: skip
        return _Validation(with_equal_rows(resolved), recorder, sweep, sweep_id, run_id).result()


def summary_text(result: SweepResult) -> str:
    """What the command ends with."""
    return result.text


class _Validation:
    """One check of one sweep."""

    def __init__(self, config: SweepConfig, recorder: Recorder, sweep: OpenSweep, sweep_id: str, run_id: str) -> None:
        self.config, self.recorder, self.sweep = config, recorder, sweep
        self.sweep_id, self.run_id = sweep_id, run_id
        self.arms = Arms(config, recorder, run_id)
        self.left_out: list[str] = []
        self.scores: dict[int, SeedScores] = {}
        self.evaluations: dict[str, str] = {}
        self.metrics: dict[str, Mapping[str, float]] = {}

    def result(self) -> SweepResult:
        """Choose, evaluate, judge, write."""
        asked = self.config.validation
        reference = self._reference()
        candidates = self._candidates(reference)
        choices = choose(candidates, top_k=asked.top_k, num_random=asked.num_random, seed=asked.seed)
        for choice in choices:
            _log.info("%s: trials %s%s", choice.way, list(choice.numbers), f" ({choice.note})" if choice.note else "")
        f1 = self._evaluated(candidates, choices)
        evidence = Evidence(
            candidates=candidates,
            scores=self.scores,
            reference=reference,
            small_references={size: self._small_reference(size) for size in asked.reference_sizes},
            choices=choices,
            f1=f1,
            beside=self._beside(),
            seconds=self._seconds(candidates),
            left_out=self.left_out,
        )
        return self._written(judge(evidence, self.config))

    def _reference(self) -> HeadScores:
        known = self.config.reference or self.recorder.get_run(self.sweep_id).tags.get(REFERENCE_TAG, "")
        if known:
            return load_scores(resolve(self.recorder, known).path)
        name, checkpoint = self._trained_reference()
        return load_scores(self.arms.scored(checkpoint, name).artifacts.path)

    def _trained_reference(self) -> tuple[str, str]:
        """Name and checkpoint of the reference that the sweep makes from `reference_recipe`."""
        config = self.config
        knobs = preset(config.reference_recipe, config.data.task)
        name = f"{knobs.name}/seed{config.reference_seed}"
        return name, self.arms.trained(knobs, config.reference_seed, config.data, name).run_id

    def _candidates(self, reference: HeadScores) -> list[Candidate]:
        """Complete trials whose head scores are there, one a recipe."""
        from rhstudy.sweep.trials import complete_trials

        found: dict[str, Candidate] = {}
        for candidate in complete_trials(self.sweep, self.config, self.recorder):
            if candidate.name in found:
                continue
            try:
                scores = [load_scores(resolve(self.recorder, run).path) for run in candidate.detect_runs.values()]
                signals = signals_of(scores, reference, self.config.scoring)
            except InputError as error:
                self._lost(f"trial {candidate.number}", error)
                continue
            self.scores[candidate.number] = scores
            found[candidate.name] = dataclasses.replace(candidate, signals=signals)
        must, remedy = "have a complete trial with head scores", "Run `rhstudy sweep` first, in the same tracking store"
        require(bool(found), "sweep", must, "; ".join(self.left_out) or "<none>", remedy)
        return list(found.values())

    def _tried(self, what: str, measure: Callable[[], Found]) -> Found | str:
        """What `measure` gives, or why it failed: one model's failure, of whatever kind, loses no others."""
        try:
            return measure()
        except (InterruptedRunError, UnreachableStoreError, AwayStorageError):
            raise
        except Exception as error:
            self._lost(what, error)
            return f"{type(error).__name__}: {error}"

    def _lost(self, what: str, error: Exception) -> None:
        text = masked(f"{what}: {type(error).__name__}: {error}")
        _log.warning("left out %s", text)
        self.left_out.append(text)

    def _evaluated(self, candidates: Sequence[Candidate], choices: Sequence[Choice]) -> dict[int, SeedF1]:
        """Trial -> F1 by seed and row, of all that were chosen in any way."""
        config, wanted = self.config, {number for choice in choices for number in choice.numbers}
        taken = (*config.seeds, config.reference_seed)
        seeds = (*config.seeds, *further_seeds(taken, config.validation.num_further_seeds))
        found: dict[int, dict[int, Mapping[str, float]]] = {}
        models = [(item, seed) for item in candidates if item.number in wanted for seed in seeds]
        for number, (candidate, seed) in enumerate(models):
            _log.info("evaluation %d of %d: trial %d, seed %d", number + 1, len(models), candidate.number, seed)
            name = f"{candidate.name}/seed{seed}"
            rows = self._tried(name, partial(self._model_rows, candidate, seed, name))
            if not isinstance(rows, str):
                found.setdefault(candidate.number, {})[seed] = rows
        must, remedy = "give at least one model that can be evaluated", "See the first reason"
        require(bool(found), "validation", must, "; ".join(self.left_out[:1]), remedy)
        return dict(found)

    def _model_rows(self, candidate: Candidate, seed: int, name: str) -> dict[str, float]:
        data = candidate.budget.of(self.config.data)
        return self._rows(name, lambda: self.arms.trained(candidate.knobs, seed, data, name).run_id)

    def _rows(self, name: str, checkpoint: Callable[[], str]) -> dict[str, float]:
        """F1 by independent row of a model, which is trained only where this check has not evaluated it yet."""
        found = self._once("evaluate", name, lambda: self.arms.evaluated(checkpoint(), name))
        self.evaluations[name] = found.run_id
        return by_row(evaluate.read_predictions(found.file(evaluate.PREDICTIONS)))

    def _once(self, stage: str, name: str, do: Callable[[], StageResult]) -> ArtifactFolder:
        """What `do` leaves, or left the last time: the check's run names it, so that no checkpoint need be kept."""
        tag = f"rhstudy.run.{stage}.{name.replace('/', '.')}"
        known = self.recorder.get_run(self.run_id).tags.get(tag, "")
        with contextlib.suppress(InputError):  # its files were deleted
            if known:
                return resolve(self.recorder, known)
        found = do()
        self.recorder.set_tags(self.run_id, {tag: found.run_id})
        return found.artifacts

    def _small_reference(self, size: int) -> HeadScores | str:
        most = self.config.data.num_distinct or self.config.data.num_examples
        if size >= most:
            return f"the whole reference is made of {most} rows at most"
        name = f"reference of {size}" if size else UNTUNED
        return self._tried(
            name, lambda: load_scores(self._once("detect", name, lambda: self.arms.reference(size, name)).path)
        )

    def _beside(self) -> dict[str, SeedF1]:
        """F1 of the reference's model and of the untuned one."""
        asked = {
            "reference": lambda: self._rows("reference", self._reference_checkpoint),
            UNTUNED: lambda: self._rows(UNTUNED, lambda: ""),
        }
        found = {name: self._tried(name, measure) for name, measure in asked.items()}
        seed = self.config.reference_seed
        return {name: {seed: rows} for name, rows in found.items() if not isinstance(rows, str)}

    def _reference_checkpoint(self) -> str:
        config = self.config
        if config.reference:
            checkpoint = self._input_of(resolve(self.recorder, config.reference).run_id, "checkpoint")
            remedy = "Only a detect run of this store names its checkpoint"
            require(bool(checkpoint), "reference", "have a checkpoint", config.reference, remedy)
            return checkpoint
        return self._trained_reference()[1]

    def _input_of(self, run_id: str, role: str) -> str:
        """The run that `run_id` read as `role`; empty where it is not known."""
        return self.recorder.get_run(run_id).tags.get(f"rhstudy.input.{role}.run_id", "") if run_id else ""

    def _seconds(self, candidates: Sequence[Candidate]) -> Seconds:
        detected = [run for item in candidates for run in item.detect_runs.values()]
        tuned = [self._input_of(run, "checkpoint") for run in detected]
        made = [self._input_of(run, "train_data") for run in tuned]
        return Seconds(
            training=[sum(self._metrics((run, data), "duration_s")) for run, data in zip(tuned, made, strict=True)],
            score_row=self._a_row(detected, "scoring_s"),
            eval_row=self._a_row(list(self.evaluations.values()), "evaluation_s"),
            num_score_rows=len(next(iter(self.scores.values()))[0].example_ids),
            num_eval_rows=int(max(self._metrics(self.evaluations.values(), "num_examples"))),
        )

    def _a_row(self, runs: Sequence[str], name: str) -> list[float]:
        """A metric over the number of its run's examples."""
        both = zip(self._metrics(runs, name), self._metrics(runs, "num_examples"), strict=True)
        return [value / count for value, count in both]

    def _metrics(self, runs: Iterable[str], name: str) -> list[float]:
        return [self._ended(run).get(name, float("nan")) if run else float("nan") for run in runs]

    def _ended(self, run_id: str) -> Mapping[str, float]:
        """Metrics of a run that has ended, asked for once."""
        if run_id not in self.metrics:
            self.metrics[run_id] = self.recorder.get_run(run_id).metrics
        return self.metrics[run_id]

    def _written(self, findings: Mapping[str, Any]) -> SweepResult:
        text, facts = page(findings), facts_of(findings)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_json(folder / FINDINGS, findings)
            (folder / TABLE).write_text(csv_text(findings), encoding="utf-8")
            (folder / PAGE).write_text(text + "\n", encoding="utf-8")
            try:
                write_figures(findings, folder)
            except ModuleNotFoundError as error:
                _log.warning("no figures: %s is not installed", error.name)
            self.recorder.log_artifacts(self.run_id, folder, ARTIFACTS)
        self.recorder.log_metrics(self.run_id, numbers_of(facts))
        folder = self.recorder.artifact_path(self.run_id, ARTIFACTS)
        return SweepResult(run_id=self.run_id, facts={"run_id": self.run_id, **facts, "folder": str(folder)}, text=text)


def by_row(predictions: Sequence[Prediction]) -> dict[str, float]:
    """F1 of every independent row: the mean over its scored examples; rows without one are left out."""
    rows: dict[str, list[float]] = {}
    for item in predictions:
        if not item.unscored:
            rows.setdefault(item.cluster or item.example_id, []).append(item.f1)
    return {name: sum(values) / len(values) for name, values in rows.items()}
