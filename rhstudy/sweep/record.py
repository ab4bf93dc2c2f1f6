"""A sweep and its trials as runs: one parent for all workers, a nested run a trial, each with its true status."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from rhstudy.configs import digest
from rhstudy.data.knobs import Knobs
from rhstudy.errors import AwayStorageError, InputError, masked, message
from rhstudy.sweep.claims import fail_dead_trials, lost_trials, workers_at_work
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.storage import RUN, OpenSweep, storage_text
from rhstudy.tracking.disk_space import naming_full_disks
from rhstudy.tracking.endings import ENDED_AS_TAG, ERROR_TAG, EXIT_TAG, Ending, catch_interrupts, ending_of
from rhstudy.tracking.environment import environment_tags
from rhstudy.tracking.groups import GROUP_TAG, group_run
from rhstudy.tracking.process import ENDED_BY_TAG, end_run_as_stale, process_tags
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import log_start

STAGE, TRIAL = "sweep", "trial"
TRIAL_RUN = "run_id"
"""User attribute of a trial: its run."""
CORNER_TAG = "rhstudy.sweep.corner"
"""Tag of a trial's run that is named behind its number: which corner of the paper it is."""


@contextlib.contextmanager
def sweep_run(recorder: Recorder, sweep: OpenSweep, config: SweepConfig) -> Iterator[str]:
    """The run of the whole sweep, for as long as this worker takes part; yields its id.

    The first worker makes it, later ones open it again, and the last one at work ends it. Its process tags name a
    worker that lives, so that nobody takes it for left behind.

    Raises:
        InputError: the sweep's run is in another tracking store.
        InterruptedRunError: SIGINT or SIGTERM; this worker's trial is enqueued again.
        BaseException: what else the block raised.
    """
    tags = {**environment_tags(), **process_tags()}
    with catch_interrupts() as interrupts:
        with sweep.holding(), naming_full_disks(recorder.folders()):
            run_id = _opened(recorder, sweep, config, tags)
        try:
            interrupts.deliver()
            yield run_id
            interrupts.hold()
        except BaseException as error:
            interrupts.hold()
            interrupts.received = ""
            ending = ending_of(error, recorder.folders())
            try:
                sweep.patience.call(lambda: _leave(recorder, sweep, config, run_id, ending))
            except AwayStorageError:  # whether others work cannot be known; who does, ends the run anew
                _end(recorder, run_id, ending)
            except Exception as failure:
                ending.raised.add_note(f"The end of the sweep's run could not be recorded: {masked(str(failure))}")
            if ending.raised is error:
                raise
            raise ending.raised from error
        sweep.patience.call(lambda: _leave(recorder, sweep, config, run_id, None))


def _opened(recorder: Recorder, sweep: OpenSweep, config: SweepConfig, tags: Mapping[str, str]) -> str:
    known = str(sweep.study.user_attrs.get(RUN, ""))
    if known:
        try:
            record = recorder.get_run(known)
        except InputError as error:
            remedy = "Give the same tracking.uri as the first worker, or start a new sweep"
            raise InputError(message("tracking", "hold the sweep's run", known, remedy)) from error
        if record.status != "RUNNING":
            recorder.reopen_run(known)
        old = {key: "" for key in (ERROR_TAG, EXIT_TAG, ENDED_AS_TAG, ENDED_BY_TAG) if key in record.tags}
        recorder.set_tags(known, {**old, **tags})
        return known
    place = {"rhstudy.sweep.storage": masked(storage_text(config)), "rhstudy.sweep.digest": sweep.digest}
    run_id = recorder.create_run(config.name, STAGE, "", {**tags, **place})
    log_start(recorder, run_id, dataclasses.replace(config, storage=masked(config.storage)))
    sweep.study.set_user_attr(RUN, run_id)
    return run_id


def _leave(recorder: Recorder, sweep: OpenSweep, config: SweepConfig, run_id: str, ending: Ending | None) -> None:
    """Hand the run to a worker that goes on, or end it."""
    with sweep.holding():
        trials = fail_dead_trials(sweep, config)
        others = [tags for tags in workers_at_work(trials) if tags != process_tags()]
        if others:
            recorder.set_tags(run_id, others[0])
        else:
            _end(recorder, run_id, ending)
    end_runs_of_lost_trials(recorder, sweep, lost_trials(trials))


def _end(recorder: Recorder, run_id: str, ending: Ending | None) -> None:
    status = ending.status if ending else "FINISHED"
    recorder.end_run(run_id, status)
    code, text = (str(ending.exit_code), masked(str(ending.raised))) if ending else ("0", "")
    known = ERROR_TAG in recorder.get_run(run_id).tags
    recorder.set_tags(run_id, {EXIT_TAG: code, ENDED_AS_TAG: status, **({ERROR_TAG: text} if text or known else {})})


def end_runs_of_lost_trials(recorder: Recorder, sweep: OpenSweep, trials: Sequence[FrozenTrial]) -> None:
    """The run of a trial that was lost with its worker is KILLED, whatever its worker wrote, then or later."""
    for trial in trials:
        if trial.number not in sweep.ended_runs:
            end_run_of_lost_trial(recorder, sweep, trial.number)
            sweep.ended_runs.add(trial.number)


def end_run_of_lost_trial(recorder: Recorder, sweep: OpenSweep, number: int) -> None:
    """See `end_runs_of_lost_trials`."""
    for record in recorder.find_runs({GROUP_TAG: _trial_digest(sweep, number)}):
        if record.status in ("RUNNING", "FINISHED"):
            end_run_as_stale(recorder, record)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """What tells one trial from another; the params of a trial's run.

    Attributes:
        number: of the trial in its storage.
        values: knob -> value that the sampler chose.
        knobs: the whole recipe.
        seeds: root seeds.
    """

    number: int
    values: Mapping[str, Any]
    knobs: Knobs
    seeds: tuple[int, ...]


@contextlib.contextmanager
def trial_run(
    recorder: Recorder, sweep: OpenSweep, config: TrialConfig, sweep_id: str, tags: Mapping[str, str]
) -> Iterator[str]:
    """The run of one trial; FINISHED, FAILED, or KILLED when it was pruned or interrupted."""
    name = " ".join(filter(None, (f"trial {config.number}", tags.get(CORNER_TAG, ""))))
    links = {"rhstudy.sweep.study": sweep.study.study_name, "rhstudy.sweep.trial": str(config.number), **tags}
    with group_run(
        recorder,
        name,
        digest=_trial_digest(sweep, config.number),
        stage=TRIAL,
        parent_run_id=sweep_id,
        config=config,
        tags=links,
    ) as run_id:
        yield run_id


def _trial_digest(sweep: OpenSweep, number: int) -> str:
    return digest(TRIAL, sweep.digest, sweep.study.user_attrs[RUN], number)
