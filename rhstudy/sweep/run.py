"""The sweep: one worker asks for trials, measures them and tells their value, until the budget of all workers is spent.

Trials are claimed one worker at a time, so budgets are met exactly; a trial's stages are reused by digest, so one whose
worker died goes on where it was. What a worker shows at its end is read from the storage: any worker may come back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rhstudy.data.knobs import Knobs
from rhstudy.errors import (
    AwayStorageError,
    InterruptedRunError,
    PrunedTrialError,
    StudyError,
    UnreachableStoreError,
    masked,
    message,
)
from rhstudy.keeping import keeping
from rhstudy.plan import builds_ahead
from rhstudy.stages.ahead import building_ahead
from rhstudy.stages.inputs import model_inputs, resolved_data, source_inputs
from rhstudy.sweep.config import SweepConfig, SweepResult, budget_dimensions, dimensions
from rhstudy.sweep.course import Budget, TrialCourse
from rhstudy.sweep.measure import MakeMeasure, Measure, Measured, RecallByStages, require_defined
from rhstudy.sweep.space import suggest, suggest_budget
from rhstudy.tracking.disk_space import full_disk
from rhstudy.tracking.endings import point_launch
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve

if TYPE_CHECKING:
    import optuna

    from rhstudy.sweep.storage import OpenSweep

__all__ = ["SweepConfig", "SweepResult", "run", "summary_text"]
_log = logging.getLogger(__name__)


def run(config: SweepConfig, recorder: Recorder, make_measure: MakeMeasure | None = None) -> SweepResult:
    """Take part in the sweep until its budget is spent, and unless it is a mere worker conclude it.

    Args:
        config: the sweep.
        recorder: where runs are recorded; the same store for all workers.
        make_measure: makes what measures the trials; None: `RecallByStages`.

    Raises:
        InputError: bad input, or another search file than the one that the sweep began with.
        StudyError: `max_failures` trials failed in a row, or a disk is full; the storage holds what was done.
        InterruptedRunError: SIGINT or SIGTERM; this worker's trial is enqueued again.
        AwayStorageError: the storage stayed away for longer than `patience_s`.
        UnreachableStoreError: the tracking server is gone.
    """
    from rhstudy.sweep.record import STAGE, sweep_run
    from rhstudy.sweep.results import conclude
    from rhstudy.sweep.storage import explained, join, storage_text

    resolved = dataclasses.replace(config, data=resolved_data(config.data, config.model))
    sweep = join(config, sweep_inputs(resolved, recorder))
    several = len(config.seeds) > 1 and make_measure is None
    with (
        explained(storage_text(config)),
        sweep_run(recorder, sweep, config) as run_id,
        keeping(),
        building_ahead(recorder, several and builds_ahead(config.build_ahead, config.model)) as ahead,
    ):
        make = make_measure or functools.partial(RecallByStages, ahead=ahead)
        worker = _Worker(resolved, recorder, sweep, run_id, make(resolved, recorder, run_id))
        worker.work()
        point_launch(recorder, config.name, STAGE, run_id, f"It took part in the sweep of run {run_id}.")
        if not config.worker:
            return conclude(config, recorder, sweep, run_id)
    text = f"this worker did {worker.num_done} trials of {config.name}; without --worker the command shows all of them"
    return SweepResult(run_id=run_id, facts={"run_id": run_id, "num_trials": worker.num_done}, text=text)


def summary_text(result: SweepResult) -> str:
    """What the command ends with."""
    return result.text


def sweep_inputs(config: SweepConfig, recorder: Recorder) -> dict[str, str]:
    """Role -> content digest of everything a sweep reads."""
    found = {**source_inputs(config.data), **model_inputs(config.model)}
    if config.reference:
        found["reference"] = resolve(recorder, config.reference)
    return {name: item.content_digest for name, item in found.items()}


class _FailedTrial(Exception):
    """A trial failed by itself; the sweep goes on."""


class _Worker:
    """One process that does trials."""

    def __init__(
        self, config: SweepConfig, recorder: Recorder, sweep: OpenSweep, sweep_id: str, measure: Measure
    ) -> None:
        self.config, self.recorder, self.sweep = config, recorder, sweep
        self.sweep_id, self.measure = sweep_id, measure
        self.num_done = self.num_failed_in_row = 0
        self.last_error = ""

    def work(self) -> None:
        """Do trials until the budget is spent."""
        while self._one():
            if self.num_failed_in_row >= self.config.max_failures:
                must = f"not fail {self.config.max_failures} times in a row"
                remedy = "Mend the cause and start the same command again: the sweep goes on"
                raise StudyError(message("trials", must, f"<{self.last_error}>", remedy))

    def _one(self) -> bool:
        """Claim a trial and do it; False when the budget is spent."""
        from optuna.trial import TrialState

        from rhstudy.sweep.claims import ERROR, SECONDS, claim, lost, note, tell
        from rhstudy.sweep.record import end_run_of_lost_trial, end_runs_of_lost_trials

        claimed = claim(self.sweep, self.config)
        if claimed is None:
            return False
        end_runs_of_lost_trials(self.recorder, self.sweep, claimed.lost)
        trial, value, state = claimed.trial, None, TrialState.FAIL
        began, attributes = time.monotonic(), dict[str, Any]()
        try:
            value = self._trial(trial)
            state = TrialState.COMPLETE
        except PrunedTrialError as error:
            state, self.num_failed_in_row = TrialState.PRUNED, 0
            _log.info("trial %d: %s", trial.number, error)
        except _FailedTrial as error:
            attributes[ERROR] = str(error)
        except (KeyboardInterrupt, InterruptedRunError):
            self.sweep.patience.wait_up_to(0.0)
            raise
        finally:
            attributes[SECONDS] = time.monotonic() - began
            note(trial, attributes)
            told = tell(self.sweep, trial, state, value)
        if not told:
            _log.warning("%s", lost(trial))
            end_run_of_lost_trial(self.recorder, self.sweep, trial.number)
        self.num_done += told and state != TrialState.FAIL
        return True

    def _trial(self, trial: optuna.Trial) -> Sequence[float]:
        from rhstudy.sweep.claims import heartbeats, while_mine

        try:
            with while_mine(trial), heartbeats(self.sweep, trial, self.config.heartbeat_s):
                return self._measured(trial, *self._suggested(trial))
        except (InterruptedRunError, UnreachableStoreError, AwayStorageError, PrunedTrialError):
            raise
        except Exception as error:  # one recipe's failure, of whatever kind, is no reason to lose the others
            full = full_disk(error, self.recorder.folders())
            if full is not None:
                raise full from error
            self.last_error = masked(f"trial {trial.number}: {type(error).__name__}: {error}")
            _log.error("%s", self.last_error)
            self.num_failed_in_row += 1
            raise _FailedTrial(self.last_error) from None

    def _suggested(self, trial: optuna.Trial) -> tuple[Knobs, Budget]:
        # Workers of a quasi-random sequence share its next index; other samplers draw by themselves.
        alone = self.sweep.holding() if self.config.sampler == "qmc" else contextlib.nullcontext()
        with alone:
            knobs = suggest(trial, dimensions(self.config), self.config.base, self.config.data.task)
            return knobs, suggest_budget(trial, budget_dimensions(self.config), self.config.data)

    def _measured(self, trial: optuna.Trial, knobs: Knobs, budget: Budget) -> Sequence[float]:
        from rhstudy.sweep.claims import while_mine
        from rhstudy.sweep.record import CORNER_TAG, TRIAL_RUN, TrialConfig, trial_run

        described = TrialConfig(number=trial.number, values=trial.params, knobs=knobs, seeds=self.config.seeds)
        corner = str(trial.user_attrs.get("corner", ""))
        tags = {"rhstudy.recipe": knobs.name, **({CORNER_TAG: corner} if corner else {})}
        with trial_run(self.recorder, self.sweep, described, self.sweep_id, tags) as run_id, while_mine(trial):
            trial.set_user_attr(TRIAL_RUN, run_id)
            trial.set_user_attr("recipe", knobs.name)
            course = self._course(trial, run_id, budget)
            try:
                measured = self.measure(knobs, run_id, course)
            except PrunedTrialError:
                self._note(trial, run_id, course.costs)
                raise
            self._note(trial, run_id, course.costs)
            values = self._told(trial, run_id, measured)
            course.judge(measured.numbers)
        self.num_failed_in_row = 0
        shown = ", ".join(f"{goal} {value:.4f}" for goal, value in zip(self.config.goals, values, strict=True))
        _log.info("trial %d: %s%s", trial.number, shown, f" ({corner})" if corner else "")
        return values

    def _course(self, trial: optuna.Trial, run_id: str, budget: Budget) -> TrialCourse:
        return TrialCourse(
            trial=trial,
            objective=self.config.goals[0] if len(self.config.goals) == 1 else "",
            log=functools.partial(self.recorder.log_metrics, run_id),
            budget=budget,
            constraints=self.config.constraints,
            skips_infeasible=self.config.sampler != "gp",  # it learns from measured trials alone
        )

    def _told(self, trial: optuna.Trial, run_id: str, measured: Measured) -> Sequence[float]:
        """Write what was measured into run and trial; returns the objectives' values, which must be numbers."""
        goals = self.config.goals
        self.recorder.log_metrics(run_id, {"objective": measured.value.value})
        self._note(trial, run_id, measured.numbers)
        if measured.runs:
            self.recorder.set_tags(run_id, {f"rhstudy.run.{role}": found for role, found in measured.runs.items()})
        values = (measured.value, *measured.further)
        return [require_defined(goal, value) for goal, value in zip(goals, values, strict=True)]

    def _note(self, trial: optuna.Trial, run_id: str, numbers: Mapping[str, float]) -> None:
        """Numbers as metrics of the run, and as user attributes of the trial."""
        self.recorder.log_metrics(run_id, numbers)
        for name, value in numbers.items():
            trial.set_user_attr(name, value)
