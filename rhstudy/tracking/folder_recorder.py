"""The recorder for machines without MLflow: one plain folder per run, copied home and imported later.

    <root>/<run_id>/run.json        name, status, times, params, tags, inputs, and which artifacts were logged
    <root>/<run_id>/metrics.jsonl   one metric point a line, appended
    <root>/<run_id>/artifacts/

While a run is RUNNING its folder also holds `.reserve`, room for the record of its end (see `disk_space`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.tracking import atomic_files, disk_space
from rhstudy.tracking.recorder import (
    MAX_DIGEST_CHARS,
    MetricPoint,
    RunInput,
    RunRecord,
    Status,
    metric_points,
    split_params,
    storable_points,
    tag_texts,
)

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
ARTIFACTS = "artifacts"
RESERVE_FILE = ".reserve"


class FolderRecorder:
    """Records runs below one folder; safe for several threads and processes. Methods: see `Recorder`."""

    def __init__(self, root: str | Path) -> None:
        """Args: root: made on the first run; relative to the current folder unless absolute."""
        self.root = Path(root).absolute()

    def create_run(
        self,
        name: str,
        stage: str,
        parent_run_id: str = "",
        tags: Mapping[str, str] | None = None,
        *,
        start_time_s: float | None = None,
    ) -> str:
        """See `Recorder.create_run`."""
        if parent_run_id:
            self._folder(parent_run_id)
        values = {
            "name": name,
            "status": "RUNNING",
            "parent_run_id": parent_run_id,
            "start_time_s": time.time() if start_time_s is None else start_time_s,
            "end_time_s": None,
            "params": {},
            "tags": tag_texts({"rhstudy.stage": stage, **(tags or {})}),
            "inputs": [],
            "artifacts": {},
        }
        run_id = uuid.uuid4().hex
        folder = self.root / run_id
        (folder / ARTIFACTS).mkdir(parents=True)
        disk_space.reserve(folder / RESERVE_FILE)
        atomic_files.write_text(folder / RUN_FILE, atomic_files.json_text(values))
        return run_id

    def attachable_run_id(self) -> str:
        """Empty: no launcher makes folder runs."""
        return ""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Recorder.log_params`."""
        with self._changing(run_id) as values:
            fresh, changed = split_params(values["params"], params)
            values["params"].update(fresh)
            values["tags"].update(changed)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `Recorder.log_metrics`."""
        self.log_points(run_id, metric_points(metrics, step))

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """See `Recorder.log_points`."""
        stored, reasons = storable_points(points)
        lines = [
            json.dumps(
                {
                    "key": point.key,
                    "value": atomic_files.number_to_json(point.value),
                    "step": point.step,
                    "timestamp_s": point.timestamp_s,
                },
                ensure_ascii=False,
            )
            for point in stored
        ]
        with _locked(self._folder(run_id)) as folder, (folder / METRICS_FILE).open("ab+") as file:
            _drop_torn_line(file)
            file.write("".join(f"{line}\n" for line in lines).encode())
        if reasons:
            self.set_tags(run_id, reasons)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Recorder.set_tags`."""
        texts = tag_texts(tags)
        with self._changing(run_id) as values:
            values["tags"].update(texts)

    def log_input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """See `Recorder.log_input`."""
        entry = {"name": name, "digest": digest[:MAX_DIGEST_CHARS], "source": source, "context": context}
        with self._changing(run_id) as values:
            if entry not in values["inputs"]:
                values["inputs"].append(entry)

    def log_artifacts(self, run_id: str, folder: Path, subpath: str = "") -> None:
        """See `Recorder.log_artifacts`."""
        target = self._folder(run_id) / ARTIFACTS / subpath
        disk_space.copy_files(folder, target)
        sizes = {
            (Path(subpath) / item.relative_to(folder)).as_posix(): item.stat().st_size
            for item in sorted(folder.rglob("*"))
            if item.is_file()
        }
        with self._changing(run_id) as values:
            values["artifacts"].update(sizes)

    def end_run(self, run_id: str, status: Status, *, end_time_s: float | None = None) -> None:
        """See `Recorder.end_run`."""
        disk_space.release(self._folder(run_id) / RESERVE_FILE)
        with self._changing(run_id) as values:
            values.update(status=status, end_time_s=time.time() if end_time_s is None else end_time_s)

    def reopen_run(self, run_id: str) -> None:
        """See `Recorder.reopen_run`."""
        disk_space.reserve(self._folder(run_id) / RESERVE_FILE)
        with self._changing(run_id) as values:
            values.update(status="RUNNING", end_time_s=None)

    def get_run(self, run_id: str) -> RunRecord:
        """See `Recorder.get_run`."""
        values = self._read(self._folder(run_id))
        return RunRecord(
            run_id=run_id,
            name=values["name"],
            status=values["status"],
            parent_run_id=values["parent_run_id"],
            params=values["params"],
            metrics=_current_values(self.metric_history(run_id)),
            tags=values["tags"],
            start_time_s=values["start_time_s"],
            end_time_s=values["end_time_s"],
            inputs=tuple(RunInput(**entry) for entry in values["inputs"]),
        )

    def find_runs(self, tags: Mapping[str, str] | None = None, status: Status | None = None) -> list[RunRecord]:
        """See `Recorder.find_runs`."""
        wanted = tag_texts(tags or {}).items()
        matching = []
        for path in self.root.glob(f"*/{RUN_FILE}"):
            values = self._read(path.parent)
            if wanted <= values["tags"].items() and status in (None, values["status"]):
                matching.append(self.get_run(path.parent.name))
        return sorted(matching, key=lambda record: record.start_time_s, reverse=True)

    def artifact_path(self, run_id: str, subpath: str = "") -> Path:
        """See `Recorder.artifact_path`."""
        return self._folder(run_id) / ARTIFACTS / subpath

    def logged_artifacts(self, run_id: str) -> dict[str, int]:
        """Relative path -> bytes of every artifact ever logged, whether its file is still there or not."""
        return dict(self._read(self._folder(run_id))["artifacts"])

    def metric_history(self, run_id: str) -> list[MetricPoint]:
        """See `Recorder.metric_history`."""
        path = self._folder(run_id) / METRICS_FILE
        if not path.exists():
            return []
        # A line without its line break is one that a kill cut short; it was never reported as logged.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        points = [_point(line, f"{path} line {number}") for number, line in enumerate(whole, 1)]
        return sorted(points, key=lambda point: (point.key, point.step, point.timestamp_s))

    def folders(self) -> list[Path]:
        """See `Recorder.folders`."""
        return [self.root]

    def artifact_root(self, parent_run_id: str = "") -> Path | None:
        """See `Recorder.artifact_root`."""
        return self.root

    @contextlib.contextmanager
    def watch_host(self, run_id: str) -> Iterator[None]:
        """Logs nothing: system metrics are MLflow's."""
        self._folder(run_id)
        yield

    def _folder(self, run_id: str) -> Path:
        folder = self.root / run_id
        known = bool(run_id) and "/" not in run_id and (folder / RUN_FILE).is_file()
        require(known, "run_id", "be a recorded run", run_id, "Check the id and tracking.folder", str(self.root))
        return folder

    def _read(self, folder: Path) -> dict[str, Any]:
        try:
            return dict(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
        except ValueError as error:
            remedy = f"Copy the run folder again; the parser says: {error}"
            raise InputError(message("run.json", "be readable JSON", str(folder / RUN_FILE), remedy)) from error

    @contextlib.contextmanager
    def _changing(self, run_id: str) -> Iterator[dict[str, Any]]:
        with _locked(self._folder(run_id)) as folder:
            values = self._read(folder)
            yield values
            atomic_files.write_text(folder / RUN_FILE, atomic_files.json_text(values))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)


def _drop_torn_line(file: Any) -> None:
    """Cut what a kill left of an unfinished last line, so that the next line starts on its own."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - 65536)
    file.seek(start)
    tail: bytes = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def _point(line: str, where: str) -> MetricPoint:
    try:
        values = json.loads(line)
        return MetricPoint(**{**values, "value": float(values["value"])})
    except (ValueError, TypeError, KeyError) as error:
        remedy = "Copy the run folder again"
        raise StudyError(message("metrics.jsonl", "hold one metric point a line", line, remedy, where)) from error


def _current_values(points: Sequence[MetricPoint]) -> dict[str, float]:
    """Per key the point with the largest (step, time, value)."""
    latest: dict[str, MetricPoint] = {}
    for point in points:
        seen = latest.get(point.key)
        rank = (point.step, point.timestamp_s, point.value)
        if seen is None or rank >= (seen.step, seen.timestamp_s, seen.value):
            latest[point.key] = point
    return {key: point.value for key, point in latest.items()}
