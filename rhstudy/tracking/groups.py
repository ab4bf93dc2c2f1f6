"""Parent runs: a study or one of its arms, with the stage runs nested below it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from rhstudy.tracking.disk_space import naming_full_disks
from rhstudy.tracking.endings import ENDED_AS_TAG, ERROR_TAG, EXIT_TAG, catch_interrupts, truthful_ending
from rhstudy.tracking.environment import environment_tags
from rhstudy.tracking.process import ENDED_BY_TAG, is_dead, process_tags
from rhstudy.tracking.recorder import Recorder, RunRecord
from rhstudy.tracking.stage_run import log_start

GROUP_TAG = "rhstudy.group_digest"
WORKED_UNTIL_TAG = "rhstudy.worked_until"


@contextlib.contextmanager
def group_run(
    recorder: Recorder,
    name: str,
    *,
    digest: str,
    stage: str = "study",
    parent_run_id: str = "",
    config: Any = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A parent run for the length of the block; yields its run id and ends it with its true status.

    The latest group with the same `digest` and parent is opened again instead of doubled, whether it was killed,
    failed, or finished (then only confirmed); a group that another living process is running is left alone.

    Args:
        recorder: where runs are recorded.
        name: shown to people.
        digest: identifies the group's work, for instance `configs.digest` of the study config.
        stage: ``study`` or ``arm``.
        parent_run_id: the run to nest under; empty for a top-level group.
        config: a config dataclass to log as params and files, or None.
        tags: further tags.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM; the group is KILLED.
        BaseException: whatever else the block raises; the group is FAILED.
    """
    start = {**environment_tags(), **process_tags(), **(tags or {}), GROUP_TAG: digest}
    with catch_interrupts() as interrupts:
        with naming_full_disks(recorder.folders()):
            run_id = _open_group(recorder, name, stage, parent_run_id, start)
        with truthful_ending(recorder, interrupts, run_id, []):
            if config is not None:
                log_start(recorder, run_id, config)
            yield run_id


def keep_end_time(recorder: Recorder, run_id: str, *, confirmed_only: bool) -> None:
    """Give an ended group the end of its last real work, so that a confirmation does not stretch its duration.

    Args:
        recorder: where the group is.
        run_id: a FINISHED group.
        confirmed_only: everything in it was reused this time.
    """
    record = recorder.get_run(run_id)
    worked_until = record.tags.get(WORKED_UNTIL_TAG)
    if confirmed_only and worked_until:
        recorder.end_run(run_id, "FINISHED", end_time_s=float(worked_until))
    else:
        recorder.set_tags(run_id, {WORKED_UNTIL_TAG: repr(record.end_time_s)})


def _open_group(recorder: Recorder, name: str, stage: str, parent_run_id: str, tags: Mapping[str, str]) -> str:
    known = _known_group(recorder, tags[GROUP_TAG], parent_run_id)
    launched = "" if parent_run_id else recorder.attachable_run_id()
    if known is not None and not launched:
        recorder.reopen_run(known.run_id)
        # Left standing, the last try's error would describe this one.
        old = {key: "" for key in (ERROR_TAG, EXIT_TAG, ENDED_AS_TAG, ENDED_BY_TAG) if key in known.tags}
        recorder.set_tags(known.run_id, {**old, **tags})
        return known.run_id
    # `mlflow run` waits for the run it made: that one is the group, and says which one it continues.
    continues = {"rhstudy.continues_run_id": known.run_id} if known is not None else {}
    return recorder.create_run(name, stage, parent_run_id, {**tags, **continues})


def _known_group(recorder: Recorder, digest: str, parent_run_id: str) -> RunRecord | None:
    for record in recorder.find_runs({GROUP_TAG: digest}):
        taken = record.status == "RUNNING" and not is_dead(record.tags)
        if record.parent_run_id == parent_run_id and not taken:
            return record
    return None
