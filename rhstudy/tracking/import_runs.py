"""Runs recorded in plain folders, logged into another recorder as they were: `rhstudy import-runs`.

Names, nesting, params, curves with their steps and times, tags (the environment they ran in) and status are kept.
Importing twice adds nothing, a killed import is completed by the next one, and files brought back later are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rhstudy.errors import require
from rhstudy.tracking.folder_recorder import RUN_FILE, FolderRecorder
from rhstudy.tracking.recorder import MAX_TAG_CHARS, Recorder, RunRecord, Status, cut

SOURCE_TAG = "rhstudy.imported_from"
COMPLETE_TAG = "rhstudy.import_complete"
MISSING_TAG = "rhstudy.missing_artifacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """One folder record and the run it became.

    Attributes:
        folder_run_id: id in the folder.
        run_id: id in the recorder.
        name: its name.
        status: its status there.
        missing_artifacts: logged files that were not brought back, relative paths.
        skipped: whether an earlier import had logged it.
    """

    folder_run_id: str
    run_id: str
    name: str
    status: str
    missing_artifacts: tuple[str, ...]
    skipped: bool


def import_folder_runs(folder_root: str | Path, recorder: Recorder) -> list[ImportedRun]:
    """Log every run below `folder_root` into `recorder`, parents before children, the oldest first.

    Args:
        folder_root: what `FolderRecorder` wrote, whole or with some artifact files left out.
        recorder: where the runs go.

    Raises:
        InputError: `folder_root` holds no recorded run, or one that cannot be read.
    """
    root = Path(folder_root)
    found = any(root.glob(f"*/{RUN_FILE}"))
    remedy = "Give the folder that tracking.folder named on the other machine"
    require(found, "import-runs folder", f"hold <run id>/{RUN_FILE} files", str(folder_root), remedy)
    source = FolderRecorder(root)
    records = _parents_first(source.find_runs())
    targets: dict[str, str] = {}
    known: dict[str, RunRecord] = {}
    for record in records:
        earlier = recorder.find_runs({SOURCE_TAG: record.run_id})
        if earlier:
            known[record.run_id] = earlier[-1]
        targets[record.run_id] = earlier[-1].run_id if earlier else _create(record, targets, recorder)
    return [_fill(source, record, targets, known.get(record.run_id), recorder) for record in records]


def _parents_first(records: list[RunRecord]) -> list[RunRecord]:
    by_id = {record.run_id: record for record in records}

    def depth(record: RunRecord) -> int:
        parent = by_id.get(record.parent_run_id)
        return 0 if parent is None else 1 + depth(parent)

    return sorted(records, key=lambda record: (depth(record), record.start_time_s))


def _create(record: RunRecord, targets: Mapping[str, str], recorder: Recorder) -> str:
    parent = targets.get(record.parent_run_id, "")
    tags = {SOURCE_TAG: record.run_id, COMPLETE_TAG: "false"}
    if record.parent_run_id and not parent:
        tags["rhstudy.missing_parent"] = record.parent_run_id
    stage = record.tags.get("rhstudy.stage", "")
    return recorder.create_run(record.name, stage, parent, tags, start_time_s=record.start_time_s)


def _fill(
    source: FolderRecorder, record: RunRecord, targets: Mapping[str, str], known: RunRecord | None, recorder: Recorder
) -> ImportedRun:
    run_id = targets[record.run_id]
    status: Status = "KILLED" if record.status == "RUNNING" else record.status
    skipped = known is not None and known.tags.get(COMPLETE_TAG) == "true"
    missing = _missing(source, record.run_id)
    absent = cut("\n".join(missing), MAX_TAG_CHARS)
    if not skipped or known is None or known.tags.get(MISSING_TAG, "") != absent:
        _log_artifacts(source, record.run_id, run_id, recorder)
        recorder.set_tags(run_id, {MISSING_TAG: absent} if absent or known else {})
    if not skipped:
        recorder.set_tags(run_id, _tags(record, targets))
        recorder.log_params(run_id, record.params)
        points = source.metric_history(record.run_id)
        recorder.log_points(run_id, points)
        for item in record.inputs:
            recorder.log_input(run_id, item.name, item.digest, item.source, item.context)
        last_s = max((point.timestamp_s for point in points), default=record.start_time_s)
        recorder.end_run(run_id, status, end_time_s=record.end_time_s or last_s)
        recorder.set_tags(run_id, {COMPLETE_TAG: "true"})
    return ImportedRun(
        folder_run_id=record.run_id,
        run_id=run_id,
        name=record.name,
        status=status,
        missing_artifacts=missing,
        skipped=skipped,
    )


def _tags(record: RunRecord, targets: Mapping[str, str]) -> dict[str, str]:
    """The run's tags, with input runs named by their new ids, and a word on a run that never ended."""
    tags = dict(record.tags)
    for key, value in record.tags.items():
        if key.startswith("rhstudy.input.") and key.endswith(".run_id"):
            tags[key] = targets.get(value, value)
    if record.status == "RUNNING":
        tags["rhstudy.import_note"] = "was recorded as RUNNING when it was imported, so its end is unknown"
    return tags


def _missing(source: FolderRecorder, run_id: str) -> tuple[str, ...]:
    folder = source.artifact_path(run_id)
    return tuple(name for name in sorted(source.logged_artifacts(run_id)) if not (folder / name).is_file())


def _log_artifacts(source: FolderRecorder, folder_run_id: str, run_id: str, recorder: Recorder) -> None:
    folder = source.artifact_path(folder_run_id)
    if folder.is_dir() and any(folder.iterdir()):
        recorder.log_artifacts(run_id, folder)
