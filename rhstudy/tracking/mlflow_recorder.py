"""The recorder that is MLflow; with `mlflow_store.py` the only module here that imports it.

Everything goes through one `MlflowClient` with explicit run ids, never through MLflow's global current run, so
threads and nested runs cannot take each other's values. Default store: ``sqlite:///<current folder>/mlflow.db`` with
the artifacts in ``mlartifacts`` beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils import name_utils
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from rhstudy.errors import InputError, message
from rhstudy.tracking import disk_space
from rhstudy.tracking.mlflow_store import absolute_uri, database_file, open_store
from rhstudy.tracking.recorder import (
    MAX_DIGEST_CHARS,
    MetricPoint,
    RunInput,
    RunRecord,
    Status,
    metric_points,
    param_texts,
    split_params,
    storable_points,
    tag_texts,
)

PARENT_TAG = "mlflow.parentRunId"
CONTEXT_TAG = "mlflow.data.context"
RESERVES = "mlartifacts/.reserves"
METRICS_PER_BATCH = 1000
TEXTS_PER_BATCH = 100
DATASET_WAITS_S = (0.1, 0.5, 2.0)

_claims = threading.Lock()
_claimed: set[str] = set()


class MlflowRecorder:
    """Records runs in an MLflow store. Methods: see `Recorder`."""

    def __init__(
        self,
        uri: str = "",
        experiment: str = "rhstudy",
        *,
        download_dir: Path | None = None,
        system_metrics: bool = True,
    ) -> None:
        """Open the store, make it and the experiment when missing.

        Args:
            uri: MLflow tracking URI; empty means ``$MLFLOW_TRACKING_URI`` or the default store of the module.
            experiment: where top-level runs go; nested runs go where their parent is. Empty means the experiment of
                the run that `mlflow run` made for this process.
            download_dir: where artifacts of a remote store are kept; default ``rhstudy-downloads`` in this folder.
            system_metrics: whether `watch_host` logs anything.

        Raises:
            InputError: the store cannot be reached or opened.
        """
        self.uri = absolute_uri(uri)
        self._downloads = (download_dir or Path("rhstudy-downloads")).absolute()
        self._system_metrics = system_metrics
        self._client, self._experiment_id = open_store(self.uri, experiment)
        self._local_artifacts: dict[str, Path] = {}

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
        texts = tag_texts({"rhstudy.stage": stage, **(tags or {})})
        if not parent_run_id and start_time_s is None:
            launched = self._claim()
            if launched:
                return self._attach(launched, name, texts)
        experiment_id = self._experiment_id
        if parent_run_id:
            texts[PARENT_TAG] = parent_run_id
        if parent_run_id or not experiment_id:
            # The UI nests a run only under a parent of the same experiment.
            experiment_id = self._run(parent_run_id or os.environ.get("MLFLOW_RUN_ID", "")).info.experiment_id
        began_ms = None if start_time_s is None else round(start_time_s * 1000)
        # Before the run, so that a disk too full to record its end stops it from starting.
        place = uuid.uuid4().hex
        self._reserve(place)
        try:
            run = self._client.create_run(experiment_id, start_time=began_ms, tags=texts, run_name=name)
        except BaseException:
            self._release(place)
            raise
        for folder in self.folders():
            (folder / RESERVES / place).rename(folder / RESERVES / str(run.info.run_id))
        return str(run.info.run_id)

    def attachable_run_id(self) -> str:
        """The run of ``$MLFLOW_RUN_ID``, which `mlflow run` made for this process, until it is taken over."""
        launched = os.environ.get("MLFLOW_RUN_ID", "")
        return "" if launched in _claimed else launched

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Recorder.log_params`; a run of `mlflow run` has its entry point's params already."""
        known = self._run(run_id).data.params
        # `mlflow run` logs its params quoted for the shell; that makes no differing values.
        unquoted = {key: text for key, text in param_texts(params).items() if known.get(key) != shlex.quote(text)}
        fresh, changed = split_params(known, unquoted)
        for chunk in _chunks([Param(key, text) for key, text in fresh.items()], TEXTS_PER_BATCH):
            self._client.log_batch(run_id, params=chunk)
        self._log_tags(run_id, changed)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `Recorder.log_metrics`."""
        self.log_points(run_id, metric_points(metrics, step))

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """See `Recorder.log_points`."""
        stored, reasons = storable_points(points)
        metrics = [Metric(point.key, point.value, round(point.timestamp_s * 1000), point.step) for point in stored]
        with _known_run(run_id, self.uri):
            for chunk in _chunks(metrics, METRICS_PER_BATCH):
                self._client.log_batch(run_id, metrics=chunk)
            self._log_tags(run_id, reasons)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Recorder.set_tags`."""
        with _known_run(run_id, self.uri):
            self._log_tags(run_id, tag_texts(tags))

    def log_input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """See `Recorder.log_input`."""
        self._run(run_id)
        place = json.dumps({"uri": source}, ensure_ascii=False)
        data = Dataset(name=name, digest=digest[:MAX_DIGEST_CHARS], source_type="local", source=place)
        inputs = [DatasetInput(data, tags=[InputTag(CONTEXT_TAG, context)])]
        for wait_s in DATASET_WAITS_S:
            try:
                return self._client.log_inputs(run_id, inputs)
            except MlflowException as error:
                # Another machine made the data set's row between the server's look and its insert; now it is there.
                if "unique" not in str(error).lower():
                    raise
                time.sleep(wait_s)
        self._client.log_inputs(run_id, inputs)

    def log_artifacts(self, run_id: str, folder: Path, subpath: str = "") -> None:
        """See `Recorder.log_artifacts`."""
        uri = str(self._run(run_id).info.artifact_uri)
        if is_local_uri(uri):  # type: ignore[no-untyped-call]
            # As MLflow does it, but a copy that fails (a full disk) leaves nothing behind.
            disk_space.copy_files(folder, _local_path(uri) / subpath)
        else:
            self._client.log_artifacts(run_id, str(folder), subpath or None)

    def end_run(self, run_id: str, status: Status, *, end_time_s: float | None = None) -> None:
        """See `Recorder.end_run`."""
        with _known_run(run_id, self.uri):
            self._release(run_id)
            self._client.set_terminated(run_id, status, None if end_time_s is None else round(end_time_s * 1000))

    def reopen_run(self, run_id: str) -> None:
        """See `Recorder.reopen_run`."""
        with _known_run(run_id, self.uri):
            self._client.update_run(run_id, status="RUNNING")
            self._reserve(run_id)

    def get_run(self, run_id: str) -> RunRecord:
        """See `Recorder.get_run`."""
        return _record(self._run(run_id))

    def find_runs(self, tags: Mapping[str, str] | None = None, status: Status | None = None) -> list[RunRecord]:
        """See `Recorder.find_runs`; looks in every experiment of the store."""
        wanted = tag_texts(tags or {})
        clauses = [f"attributes.status = '{status}'"] if status else []
        clauses += [f"tags.`{key}` = '{text}'" for key, text in wanted.items() if not set("'\"`\\") & set(key + text)]
        experiments = [item.experiment_id for item in self._client.search_experiments(ViewType.ACTIVE_ONLY)]
        found: list[RunRecord] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                experiments,
                " and ".join(clauses),
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token or None,
            )
            found += [_record(run) for run in page]
            token = page.token or None
        return [record for record in found if wanted.items() <= record.tags.items()]

    def artifact_path(self, run_id: str, subpath: str = "") -> Path:
        """See `Recorder.artifact_path`."""
        if run_id not in self._local_artifacts:  # a run's place never changes; a reused study asks for hundreds
            run = self._run(run_id)
            uri = str(run.info.artifact_uri)
            if not is_local_uri(uri):  # type: ignore[no-untyped-call]
                return self._download(run) / subpath
            self._local_artifacts[run_id] = _local_path(uri)
        return self._local_artifacts[run_id] / subpath

    def metric_history(self, run_id: str) -> list[MetricPoint]:
        """See `Recorder.metric_history`."""
        points = [
            MetricPoint(key=item.key, value=item.value, step=item.step, timestamp_s=item.timestamp / 1000)
            for key in self._run(run_id).data.metrics
            for item in self._client.get_metric_history(run_id, key)
        ]
        return sorted(points, key=lambda point: (point.key, point.step, point.timestamp_s))

    def folders(self) -> list[Path]:
        """See `Recorder.folders`."""
        database = database_file(self.uri)
        return [] if database is None else [database.parent]

    @contextlib.contextmanager
    def watch_host(self, run_id: str) -> Iterator[None]:
        """See `Recorder.watch_host`; where the host cannot be watched, a tag says why."""
        monitor = self._start_monitor(run_id) if self._system_metrics else None
        try:
            yield
        finally:
            if monitor is not None:
                monitor.finish()  # type: ignore[no-untyped-call]

    def _start_monitor(self, run_id: str) -> SystemMetricsMonitor | None:
        try:
            monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.uri)  # type: ignore[no-untyped-call]
            monitor.start()  # type: ignore[no-untyped-call]
        except Exception as error:  # the run matters more than the graph of its host
            self.set_tags(run_id, {"rhstudy.system_metrics": f"none: {error}"})
            return None
        return monitor

    def _run(self, run_id: str) -> Run:
        with _known_run(run_id, self.uri):
            return self._client.get_run(run_id)

    def _log_tags(self, run_id: str, texts: Mapping[str, str]) -> None:
        for chunk in _chunks([RunTag(key, text) for key, text in texts.items()], TEXTS_PER_BATCH):
            self._client.log_batch(run_id, tags=chunk)

    def _reserve(self, name: str) -> None:
        for folder in self.folders():
            (folder / RESERVES).mkdir(parents=True, exist_ok=True)
            disk_space.reserve(folder / RESERVES / name)

    def _release(self, run_id: str) -> None:
        for folder in self.folders():
            disk_space.release(folder / RESERVES / run_id)

    def _claim(self) -> str:
        with _claims:
            launched = self.attachable_run_id()
            if launched:
                _claimed.add(launched)
            return launched

    def _attach(self, run_id: str, name: str, texts: Mapping[str, str]) -> str:
        try:
            run = self._run(run_id)
        except InputError as error:
            remedy = "Let tracking.uri be the store of `mlflow run`, or unset MLFLOW_RUN_ID"
            raise InputError(message("MLFLOW_RUN_ID", "be a run of the store", run_id, remedy, self.uri)) from error
        if _is_made_up(run.info.run_name or ""):
            self._client.update_run(run_id, name=name)
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        # What `mlflow run` says of the source (the project's address, PROJECT) is truer than what this process sees.
        known = {key for key in run.data.tags if key.startswith("mlflow.")}
        self._reserve(run_id)
        self._log_tags(run_id, {key: text for key, text in texts.items() if key not in known})
        return run_id

    def _download(self, run: Run) -> Path:
        target = self._downloads / str(run.info.run_id) / "artifacts"
        if target.is_dir() and run.info.status == "FINISHED":
            return target
        # No pid in the name: in containers that share a cache every process may have the same.
        partial = target.with_name(f"{uuid.uuid4().hex}.part")
        partial.mkdir(parents=True)
        try:
            self._client.download_artifacts(str(run.info.run_id), "", str(partial))
            shutil.rmtree(target, ignore_errors=True)
            _move_unless_there(partial, target)
        except MlflowException as error:
            remedy = f"Check that the artifact store is reachable; MLflow says: {error}"
            raise InputError(message("artifacts", "be there to fetch", str(run.info.run_id), remedy)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target


def _move_unless_there(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:  # another process of this cache fetched the same in the meantime
        if not target.is_dir():
            raise


def _record(run: Run) -> RunRecord:
    tags = dict(run.data.tags)
    running = run.info.status == "RUNNING"
    return RunRecord(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name or ""),
        status=cast(Status, run.info.status),
        parent_run_id=tags.get(PARENT_TAG, ""),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=tags,
        start_time_s=run.info.start_time / 1000,
        end_time_s=None if running or run.info.end_time is None else run.info.end_time / 1000,
        inputs=tuple(_input(item) for item in (run.inputs.dataset_inputs if run.inputs else ())),
    )


def _input(item: DatasetInput) -> RunInput:
    context = next((tag.value for tag in item.tags if tag.key == CONTEXT_TAG), "")
    source = str(json.loads(item.dataset.source).get("uri", ""))
    return RunInput(name=item.dataset.name, digest=item.dataset.digest, source=source, context=context)


def _local_path(uri: str) -> Path:
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _known_run(run_id: str, uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "for parameter 'run_id'" not in str(error):
            raise
        remedy = "Check the id, tracking.uri and the folder you are in"
        raise InputError(message("run_id", "be a recorded run", run_id, remedy, uri)) from error


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_made_up(name: str) -> bool:
    """Whether MLflow invented the run's name (``gifted-crow-123``) because nobody gave one."""
    adjective, _, rest = name.partition("-")
    noun, _, number = rest.rpartition("-")
    known = adjective in name_utils._GENERATOR_PREDICATES and noun in name_utils._GENERATOR_NOUNS
    return not name or (known and number.isdigit())
