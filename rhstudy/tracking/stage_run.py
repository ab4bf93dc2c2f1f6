"""One stage, one run: found again when it was done before, resumed when it was killed, never left RUNNING.

    stage digest = sha256(stage, schema version, config without inputs, content digests of the inputs, seed)

A FINISHED run with the same digest whose artifacts still verify is the result. Otherwise one process of this machine at
a time (a file lock per digest) does the work, in two folders below `StageSpec.work_root`: ``<digest>`` for resumable
partial work, kept until the stage succeeds, and ``<digest>.output`` for the files that become the run's artifacts.

Machines know of each other only by what is FINISHED. Two that do a stage at the same time both do it, with the same
result, which costs time and harms nothing: each goes on with its own run, later starts reuse the one that began last.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rhstudy.configs import digest, digest_view, flatten, plain
from rhstudy.errors import InputError, require
from rhstudy.tracking.artifacts import SCHEMA_VERSION, ArtifactFolder, open_artifacts, seal_artifacts, write_summary
from rhstudy.tracking.config_files import write_config_files
from rhstudy.tracking.disk_space import full_disk, naming_full_disks
from rhstudy.tracking.endings import catch_interrupts, point_launch, truthful_ending
from rhstudy.tracking.environment import environment_tags, gpu_tags, memory_peaks, reset_gpu_peak
from rhstudy.tracking.process import end_run_as_stale, is_dead, process_space, process_tags
from rhstudy.tracking.recorder import Recorder

DIGEST_TAG = "rhstudy.stage_digest"
LOCK_TAG = "rhstudy.lock"
DATA_STAGE = "make-data"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What to run and what it depends on.

    Attributes:
        stage: name of the stage, as in the CLI.
        run_name: shown to people.
        config: the stage's config dataclass.
        inputs: what it reads, by role (``train_data``, ``model``); their content enters the stage digest.
        seed: the root seed, >= 0; enters the stage digest.
        work_root: folder for unfinished work; see the module.
        parent_run_id: the run to nest under; empty for a top-level run.
        tags: further tags.
    """

    stage: str
    run_name: str
    config: Any
    seed: int
    work_root: Path
    inputs: Mapping[str, ArtifactFolder] = field(default_factory=dict)
    parent_run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """What a stage's body gets.

    Attributes:
        run_id: the run.
        output_dir: empty; every file written here becomes an artifact.
        work_dir: may hold partial work of a killed or failed try; deleted when the stage succeeds.
        recorder: where the run is recorded.
        volatile: names marked by `mark_volatile`.
    """

    run_id: str
    output_dir: Path
    work_dir: Path
    recorder: Recorder
    volatile: set[str] = field(default_factory=set)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one point per metric, at `step` for a training curve."""
        self.recorder.log_metrics(self.run_id, metrics, step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.recorder.set_tags(self.run_id, tags)

    def log_input(self, name: str, content_digest: str, source: str, context: str) -> None:
        """Record a data set that is no other run's artifact, for instance a public file and its sha256."""
        self.recorder.log_input(self.run_id, name, content_digest, source, context)

    def mark_volatile(self, *names: str) -> None:
        """Files (relative to `output_dir`) whose bytes may differ between equal runs: timings, for instance."""
        self.volatile.update(names)

    def log_figure(self, name: str, draw: Callable[[], Any]) -> None:
        """Write the matplotlib figure that `draw` makes as ``figures/<name>.png`` (volatile).

        Figures are for people and no result depends on one: on a machine without matplotlib the run is tagged with
        ``rhstudy.figures`` instead of failing.
        """
        try:
            figure = draw()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            _log.warning("no figure %s: matplotlib is not installed", name)
            self.set_tags({"rhstudy.figures": "none: matplotlib is not installed"})
            return
        path = self.output_dir / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        self.mark_volatile(path.relative_to(self.output_dir).as_posix())


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a stage leaves.

    Attributes:
        run_id: the run that did the work, now or earlier.
        artifacts: its files, verified.
        summary: the headline numbers.
        reused: whether the work had been done before.
    """

    run_id: str
    artifacts: ArtifactFolder
    summary: Mapping[str, Any]
    reused: bool


Body = Callable[[StageRun], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What a stage done by another process leaves.

    Attributes:
        run_id: the run that has the result.
        reused: whether it had been there before.
    """

    run_id: str
    reused: bool


@runtime_checkable
class Launcher(Protocol):
    """Does a stage in another process (a container), which records its run itself.

    Attributes:
        same_digests: whether that process computes the stage digests that this one does (the same kind of device), so
            that finished runs can be looked up before it is started.
    """

    same_digests: bool

    def __call__(self, spec: StageSpec) -> Launched:
        """Do the stage to its end; raises what the stage raised."""
        ...


_launcher: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


@contextlib.contextmanager
def stages_launched_by(launcher: Launcher) -> Iterator[None]:
    """Inside the block `run_stage` leaves the work of unfinished stages to `launcher`."""
    token = _launcher.set(launcher)
    try:
        yield
    finally:
        _launcher.reset(token)


def stages_are_launched() -> bool:
    """Whether a `stages_launched_by` block is open."""
    return _launcher.get() is not None


def stage_digest(spec: StageSpec) -> str:
    """SHA-256 (hex) of all that the stage's result depends on; see the module."""
    contents = {name: artifacts.content_digest for name, artifacts in spec.inputs.items()}
    return digest(spec.stage, SCHEMA_VERSION, digest_view(spec.config), contents, spec.seed)


def run_stage(recorder: Recorder, spec: StageSpec, body: Body) -> StageResult:
    """Do the stage, or find that it was done.

    Args:
        recorder: where runs are recorded.
        spec: what to run.
        body: does the work, in this process unless `stages_launched_by` says otherwise. It writes files into
            `StageRun.output_dir` and returns the headline summary: numbers become metrics, strings and booleans become
            tags ``rhstudy.summary.<key>``, all of it `summary.json`.

    Raises:
        InputError: of the body; the run is FAILED with exit code 2.
        InterruptedRunError: SIGINT or SIGTERM; the run is KILLED and `work_dir` kept.
        StudyError: the disk is full; the run is FAILED.
        Exception: anything else of the body; the run is FAILED with its traceback among the artifacts.
    """
    require(spec.seed >= 0, "seed", "be at least 0", spec.seed, "Give a seed of 0 or more")
    name = stage_digest(spec)
    launcher = _launcher.get()
    done = _finished(recorder, name) if launcher is None or launcher.same_digests else None
    if done is None and launcher is not None:
        return _launch(recorder, spec, launcher)
    if done is None:
        with _stage_lock(spec.work_root, name) as lock_id:
            # Another process may have finished it while this one waited for the lock.
            done = _finished(recorder, name)
            if done is None:
                _end_earlier_tries(recorder, name, lock_id)
                return _work(recorder, spec, name, lock_id, body)
    _confirm_launched(recorder, spec, done)
    return StageResult(run_id=done.run_id, artifacts=done, summary=done.summary(), reused=True)


def is_finished(recorder: Recorder, spec: StageSpec) -> bool:
    """Whether `run_stage` would find the stage done."""
    return _finished(recorder, stage_digest(spec)) is not None


@contextlib.contextmanager
def stage_work(spec: StageSpec) -> Iterator[Path]:
    """The stage's work folder, with its lock held: what is put there now, `StageRun.work_dir` will hold."""
    name = stage_digest(spec)
    with _stage_lock(spec.work_root, name):
        folder = spec.work_root / name
        folder.mkdir(exist_ok=True)
        yield folder


def _launch(recorder: Recorder, spec: StageSpec, launcher: Launcher) -> StageResult:
    launched = launcher(spec)
    artifacts = open_artifacts(recorder.artifact_path(launched.run_id), launched.run_id)
    return StageResult(run_id=launched.run_id, artifacts=artifacts, summary=artifacts.summary(), reused=launched.reused)


def _finished(recorder: Recorder, name: str) -> ArtifactFolder | None:
    for record in recorder.find_runs({DIGEST_TAG: name}, "FINISHED"):
        try:
            return open_artifacts(recorder.artifact_path(record.run_id), record.run_id)
        except InputError as error:
            _log.warning("run %s is finished but cannot be reused: %s", record.run_id, error)
    return None


def _end_earlier_tries(recorder: Recorder, name: str, lock_id: str) -> None:
    for record in recorder.find_runs({DIGEST_TAG: name}, "RUNNING"):
        # Whoever did the work held the lock that this process now holds.
        if is_dead(record.tags) or record.tags.get(LOCK_TAG) == lock_id:
            end_run_as_stale(recorder, record)


def _confirm_launched(recorder: Recorder, spec: StageSpec, done: ArtifactFolder) -> None:
    if not spec.parent_run_id:
        note = f"Nothing to do: run {done.run_id} had finished with the same config and inputs."
        point_launch(recorder, spec.run_name, spec.stage, done.run_id, note)


def _work(recorder: Recorder, spec: StageSpec, name: str, lock_id: str, body: Body) -> StageResult:
    work_dir, output_dir = spec.work_root / name, spec.work_root / f"{name}.output"
    with catch_interrupts() as interrupts:
        tags = _start_tags(spec) | {DIGEST_TAG: name, LOCK_TAG: lock_id}
        with naming_full_disks(recorder.folders()):
            run_id = recorder.create_run(spec.run_name, spec.stage, spec.parent_run_id, tags)

        def clear() -> None:
            shutil.rmtree(output_dir, ignore_errors=True)

        with truthful_ending(recorder, interrupts, run_id, [spec.work_root], clear):
            clear()
            output_dir.mkdir(parents=True)
            work_dir.mkdir(exist_ok=True)
            run = StageRun(run_id=run_id, output_dir=output_dir, work_dir=work_dir, recorder=recorder)
            log_start(recorder, run_id, spec.config, spec.seed)
            _log_inputs(recorder, run_id, spec.inputs)
            artifacts, summary = _do(run, spec, body)
        clear()
        shutil.rmtree(work_dir, ignore_errors=True)
    return StageResult(run_id=run_id, artifacts=artifacts, summary=summary, reused=False)


def _do(run: StageRun, spec: StageSpec, body: Body) -> tuple[ArtifactFolder, dict[str, Any]]:
    recorder = run.recorder
    reset_gpu_peak()
    began = time.monotonic()
    with recorder.watch_host(run.run_id):
        summary = dict(body(run))
    # The body is what loads torch, so only now can it tell which GPU there is.
    recorder.set_tags(run.run_id, gpu_tags())
    recorder.log_metrics(run.run_id, {"duration_s": time.monotonic() - began, **memory_peaks()})
    write_summary(run.output_dir, summary)
    seal_artifacts(run.output_dir, spec.stage, run.volatile)
    recorder.log_artifacts(run.run_id, run.output_dir)
    artifacts = open_artifacts(recorder.artifact_path(run.run_id), run.run_id)
    log_summary(recorder, run.run_id, summary)
    recorder.set_tags(run.run_id, {"rhstudy.content_digest": artifacts.content_digest})
    return artifacts, summary


def _start_tags(spec: StageSpec) -> dict[str, str]:
    tags = {**environment_tags(), **process_tags(), "rhstudy.seed": str(spec.seed)}
    for name, artifacts in spec.inputs.items():
        tags[f"rhstudy.input.{name}.run_id"] = artifacts.run_id
        tags[f"rhstudy.input.{name}.digest"] = artifacts.content_digest
    return tags | dict(spec.tags)


def log_start(recorder: Recorder, run_id: str, config: Any, seed: int | None = None) -> None:
    """Log a config dataclass as params and as files below ``config/``."""
    values = plain(config)
    values.pop("tracking", None)  # where a run is recorded is no property of the run
    params = flatten(values)
    if seed is not None:
        params.setdefault("seed", seed)
    recorder.log_params(run_id, params)
    with tempfile.TemporaryDirectory() as folder:
        write_config_files(Path(folder), config)
        recorder.log_artifacts(run_id, Path(folder), "config")


def _log_inputs(recorder: Recorder, run_id: str, inputs: Mapping[str, ArtifactFolder]) -> None:
    for name, artifacts in inputs.items():
        if artifacts.stage == DATA_STAGE:
            recorder.log_input(run_id, name, artifacts.content_digest, str(artifacts.path), name)


def log_summary(recorder: Recorder, run_id: str, summary: Mapping[str, Any]) -> None:
    """Log a headline summary: numbers as metrics, everything else as tags ``rhstudy.summary.<key>``."""
    numbers = numbers_of(summary)
    others = {f"rhstudy.summary.{key}": value for key, value in summary.items() if key not in numbers}
    recorder.log_metrics(run_id, numbers)
    recorder.set_tags(run_id, others)


def numbers_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What of a summary is a metric: its numbers; flags are none."""
    return {
        key: float(value)
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@contextlib.contextmanager
def _stage_lock(work_root: Path, name: str) -> Iterator[str]:
    """Hold the lock of stage digest `name`, waiting for it; yields what identifies this lock on this machine."""
    locks = work_root / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        handle = os.open(locks / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        full = full_disk(error, [work_root])
        remedy = f"Choose another folder with --tracking.work_dir; making it failed: {error.strerror}"
        require(full is not None, "tracking.work_dir", "be a folder to write in", str(work_root), remedy)
        raise full or error from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is doing the same stage; waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        status = os.fstat(handle)
        yield f"{process_space()[1]}:{status.st_dev}:{status.st_ino}"
    finally:
        os.close(handle)
