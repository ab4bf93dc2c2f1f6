"""What a recorder of runs promises, whether it is MLflow or a plain folder, and the rules both follow.

One contract suite (tests/contracts) holds for both:

- params are strings and never change: a second, different value becomes the tag ``rhstudy.param.<key>``;
- a metric is a curve of (step, time, value); its current value is the one with the largest (step, time, value);
- NaN stays NaN; an infinity is stored as NaN with the tag ``rhstudy.nonfinite.<key>`` that says so;
- over-long params and tags are cut and end in the sha256 of the whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rhstudy.errors import require

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
MAX_DIGEST_CHARS = 36
MAX_NAME_CHARS = 250

_VALID_NAME = re.compile(r"[\w.\- :]+(/[\w.\- :]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """One point of a metric's curve.

    Attributes:
        key: the metric's name.
        value: a number or NaN.
        step: position on the curve, >= 0; 0 for single values.
        timestamp_s: when it was logged, seconds since 1970.
    """

    key: str
    value: float
    step: int
    timestamp_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """A data set a run read.

    Attributes:
        name: what it is called.
        digest: the first 36 characters of its sha256.
        source: where it came from.
        context: what it was used for, for instance ``training``.
    """

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a recorder knows of one run.

    Attributes:
        run_id: 32 hex digits.
        name: for people.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        parent_run_id: the run it is nested under; empty at the top.
        params: the flattened config, as strings.
        metrics: current value of each metric.
        tags: everything else, as strings.
        start_time_s: seconds since 1970.
        end_time_s: seconds since 1970; None while RUNNING.
        inputs: the data sets it read.
    """

    run_id: str
    name: str
    status: Status
    parent_run_id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    start_time_s: float
    end_time_s: float | None
    inputs: tuple[RunInput, ...] = ()


@runtime_checkable
class Recorder(Protocol):
    """Where runs are recorded. Every method names its run, so threads and processes may share a store.

    Methods that take a run id raise `InputError` when the store has no such run.
    """

    def create_run(
        self,
        name: str,
        stage: str,
        parent_run_id: str = "",
        tags: Mapping[str, str] | None = None,
        *,
        start_time_s: float | None = None,
    ) -> str:
        """Start a run (RUNNING) and return its id; takes over `attachable_run_id` when there is one.

        Args:
            name: shown to people.
            stage: stored as the tag ``rhstudy.stage``.
            parent_run_id: an existing run to nest under; empty for a top-level run.
            tags: stored with it.
            start_time_s: for the copy of a past run (which takes over nothing): when that one began.
        """
        ...

    def attachable_run_id(self) -> str:
        """The run a launcher made for this process and nobody took over yet; empty when there is none."""
        ...

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log `params`; those already there keep their value, a differing one becomes a tag (see the module)."""
        ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one value per metric, now, at `step` (0 when None)."""
        ...

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log many points with their own steps and times; a point already there is not doubled in MLflow."""
        ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        ...

    def log_input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """Say that the run read a data set; see `RunInput`."""
        ...

    def log_artifacts(self, run_id: str, folder: Path, subpath: str = "") -> None:
        """Copy every file below `folder` into the run's artifacts, below `subpath`."""
        ...

    def end_run(self, run_id: str, status: Status, *, end_time_s: float | None = None) -> None:
        """End the run with its true status, now or (for the copy of a past run) at `end_time_s`."""
        ...

    def reopen_run(self, run_id: str) -> None:
        """Make an ended run RUNNING again."""
        ...

    def get_run(self, run_id: str) -> RunRecord:
        """What is known of the run."""
        ...

    def find_runs(self, tags: Mapping[str, str] | None = None, status: Status | None = None) -> list[RunRecord]:
        """Every run that has all of `tags` and `status`, the newest first."""
        ...

    def artifact_path(self, run_id: str, subpath: str = "") -> Path:
        """A local path of the run's artifacts; fetched first when the store is remote."""
        ...

    def metric_history(self, run_id: str) -> list[MetricPoint]:
        """Every point of every metric, sorted by key, step and time."""
        ...

    def folders(self) -> list[Path]:
        """Folders of this machine that the recorder writes to; none for a remote store."""
        ...

    def artifact_root(self, parent_run_id: str = "") -> Path | None:
        """The folder of this machine below which a new run's artifacts will lie; None for a remote artifact store.

        Args:
            parent_run_id: the run it will be nested under; empty for a top-level run.
        """
        ...

    def watch_host(self, run_id: str) -> AbstractContextManager[None]:
        """While entered, log CPU, memory and GPU use of this host, where the recorder can."""
        ...


def plain_text(value: Any) -> str:
    """A param or tag as text: strings as they are, everything else as JSON (``true``, ``null``, ``[1, 2]``)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def cut(text: str, limit: int) -> str:
    """`text`, or when longer than `limit` characters its beginning and the sha256 of the whole."""
    if len(text) <= limit:
        return text
    tail = f"...sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text[: limit - len(tail)] + tail


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """`params` as they are stored.

    Raises:
        InputError: a name the stores cannot hold.
    """
    return {_checked(key, "param name"): cut(plain_text(value), MAX_PARAM_CHARS) for key, value in params.items()}


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """`tags` as they are stored; raises as `param_texts`."""
    return {_checked(key, "tag name"): cut(plain_text(value), MAX_TAG_CHARS) for key, value in tags.items()}


def split_params(known: Mapping[str, str], params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """New params, and tags for those whose value differs from the `known` one; raises as `param_texts`."""
    texts = param_texts(params)
    fresh = {key: text for key, text in texts.items() if key not in known}
    changed = {f"rhstudy.param.{key}": text for key, text in texts.items() if known.get(key, text) != text}
    return fresh, changed


def metric_points(metrics: Mapping[str, float], step: int | None) -> list[MetricPoint]:
    """`metrics` logged now at `step` (0 when None), as points."""
    now = time.time()
    return [MetricPoint(key=key, value=float(value), step=step or 0, timestamp_s=now) for key, value in metrics.items()]


def storable_points(points: Sequence[MetricPoint]) -> tuple[list[MetricPoint], dict[str, str]]:
    """Points with infinities made NaN, and the tags that say so.

    Raises:
        InputError: a metric name the stores cannot hold.
    """
    stored: list[MetricPoint] = []
    reasons: dict[str, str] = {}
    for point in points:
        value = point.value
        if math.isinf(value):
            reasons[f"rhstudy.nonfinite.{point.key}"] = f"{value} at step {point.step}"
            value = math.nan
        key = _checked(point.key, "metric name")
        stored.append(MetricPoint(key=key, value=value, step=point.step, timestamp_s=point.timestamp_s))
    return stored, reasons


def _checked(key: str, name: str) -> str:
    fits = len(key) <= MAX_NAME_CHARS and bool(_VALID_NAME.fullmatch(key)) and not {".", ".."} & set(key.split("/"))
    condition = f"be at most {MAX_NAME_CHARS} letters, digits, spaces or _ - . : with / between parts"
    require(fits, name, condition, key, "Rename it")
    return key
