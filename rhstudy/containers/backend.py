"""The MLflow project backend ``rhstudy``: ``mlflow run . --backend rhstudy --backend-config '{"runtime": "docker"}'``.

What MLflow's own local backend does with a Docker project, done truthfully: the project's Dockerfile is built when its
inputs changed, folders lie at the same path inside and outside, files belong to the caller, GPUs are asked for when
there are any, and the run ends FINISHED, FAILED or KILLED by what really happened, with image, command, exit code and
peak memory as tags.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.projects.utils import (
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_or_create_run,
    get_run_env_vars,
    load_project,
)
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND, MLFLOW_RUN_NAME

from rhstudy.containers.config import container_config
from rhstudy.containers.container import Ended
from rhstudy.containers.launch import close_launch, close_run, ended_tags, patiently, reason_of
from rhstudy.containers.runtime import Job, Started, start
from rhstudy.errors import StudyError, masked
from rhstudy.tracking.endings import ENDED_AS_TAG, ERROR_TAG, EXIT_TAG
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.recorder import Status

NAME = "rhstudy"
_LOOK_S = 1.0
"""How often a waiting launch looks whether a signal was lost."""
_MLFLOWS_OWN = (
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
)
"""What MLflow itself puts into every backend config."""
_log = logging.getLogger(__name__)


class ProjectBackend(AbstractBackend):
    """Runs an entry point of the project in its image, or on the host."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, Any],
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> SubmittedRun:
        """Start the entry point; see MLflow's `AbstractBackend.run` for the arguments.

        Raises:
            ExecutionException: it could not be started; its run is FAILED and says why.
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        cli = click.get_current_context(silent=True)
        work_dir = Path(fetch_and_validate_project(project_uri, version, entry_point, params)).absolute()  # type: ignore[no-untyped-call]
        project = load_project(str(work_dir))  # type: ignore[no-untyped-call]
        recorder = MlflowRecorder(tracking_uri, experiment="")
        active = get_or_create_run(None, project_uri, experiment_id, str(work_dir), version, entry_point, params)  # type: ignore[no-untyped-call]
        run_id = str(active.info.run_id)
        recorder.set_tags(run_id, {MLFLOW_PROJECT_BACKEND: NAME, **_run_name(cli)})
        with _interrupts() as asked:  # an image may take minutes to build
            try:
                command = shlex.split(project.get_entry_point(entry_point).compute_command(params, None))
                submitted = _submit(recorder, active, command, work_dir, backend_config)
            except BaseException as error:
                self._refuse(recorder, run_id, error)
                if not isinstance(error, StudyError):
                    raise
                said = "\n".join([str(error), *getattr(error, "__notes__", [])])
                if cli is None:
                    raise ExecutionException(said) from error
                _log.error("%s", said)
                raise SystemExit(error.exit_code) from error
            if cli is not None:
                _see_through(submitted, asked)
        return submitted

    def _refuse(self, recorder: MlflowRecorder, run_id: str, error: BaseException) -> None:
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        code = error.exit_code if isinstance(error, StudyError) else 1
        said = masked(str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}")
        recorder.set_tags(run_id, {EXIT_TAG: str(code), ENDED_AS_TAG: status, ERROR_TAG: said})
        recorder.end_run(run_id, status)


def _submit(
    recorder: MlflowRecorder, run: Run, command: list[str], work_dir: Path, backend_config: dict[str, Any]
) -> _Submitted:
    given = {key: value for key, value in backend_config.items() if key not in _MLFLOWS_OWN}
    config = container_config(given, backend_config.get(PROJECT_DOCKER_ARGS))
    run_id = str(run.info.run_id)
    environment = get_run_env_vars(run_id, run.info.experiment_id)  # type: ignore[no-untyped-call]
    job = Job(
        command=command,
        working_dir=work_dir,
        environment=environment | {"MLFLOW_TRACKING_URI": recorder.uri},
        uri=recorder.uri,
        written=tuple(filter(None, [recorder.artifact_root(run_id)])),
    )
    started = start(recorder, job, config, lambda tags: recorder.set_tags(run_id, tags))
    try:
        return _Submitted(recorder, run_id, started, config.patience_s)
    except BaseException:  # a signal in between
        started.stop()
        raise


def _run_name(cli: click.Context | None) -> dict[str, str]:
    """The name given with ``--run-name``, which MLflow itself sets only on runs that succeed."""
    name = cli.params.get("run_name") if cli is not None else None
    return {MLFLOW_RUN_NAME: str(name)} if name else {}


def _see_through(submitted: _Submitted, asked: Sequence[str]) -> None:
    """Wait for the end of a run of the command line, which itself waits for its own backends only.

    Args:
        submitted: the run.
        asked: signals that asked for its end while it was started.

    Raises:
        SystemExit: with the exit code of the entry point when the run is not FINISHED.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is KILLED.
    """
    try:
        if asked:
            raise KeyboardInterrupt(asked[0])
        finished = submitted.wait()
    except KeyboardInterrupt:
        submitted.cancel()
        raise
    if not finished:
        raise SystemExit(submitted.exit_code)


class _Submitted(SubmittedRun):
    """A run whose container or process is followed by a thread, which records its end."""

    def __init__(self, recorder: MlflowRecorder, run_id: str, started: Started, patience_s: float) -> None:
        super().__init__()
        self._recorder, self._run_id, self._started, self._patience_s = recorder, run_id, started, patience_s
        self._status: Status = "RUNNING"
        self.exit_code = 1
        self._failure: BaseException | None = None
        # Not `Thread.join`: one that Ctrl-C interrupts takes the thread for ended (Python 3.11), and its end for done.
        self._recorded = threading.Event()
        threading.Thread(target=self._follow, name=f"run {run_id}").start()

    @property
    def run_id(self) -> str:
        """The MLflow run."""
        return self._run_id

    def wait(self) -> bool:
        """Wait for the end; whether the run is FINISHED. SIGTERM is taken as Ctrl-C."""
        with _interrupts() as asked:
            while not self._recorded.wait(_LOOK_S):
                if asked:
                    raise KeyboardInterrupt(asked[0])
        if self._failure is not None:
            _log.error("%s", self._failure)
        return self._status == "FINISHED"

    def get_status(self) -> str:
        """The status as MLflow names it."""
        return str(RunStatus.to_string(RunStatus.from_string(self._status)))

    def cancel(self) -> None:
        """Ask the container or process to end, and wait until its end is recorded."""
        self._started.stop()
        self._recorded.wait()

    def _follow(self) -> None:
        try:
            ended = self._started.run()
            patiently("the run's end", self._patience_s, lambda: self._close(ended))
            if self._status != "FINISHED":
                _log.error("%s", reason_of(ended))
        except BaseException as error:
            self._status, self._failure = "FAILED", error
            self._record_failure(error)
        finally:
            self._recorded.set()

    def _close(self, ended: Ended) -> None:
        self._status = close_run(self._recorder, self._run_id, ended)
        self.exit_code = ended.exit_code or 1
        close_launch(self._recorder, self._started.launch, ended)

    def _record_failure(self, error: BaseException) -> None:
        def record() -> None:
            if self._recorder.get_run(self._run_id).status != "RUNNING":
                return  # what its own process said of it stands
            tags = {ERROR_TAG: masked(str(error)), ENDED_AS_TAG: "FAILED", EXIT_TAG: "1"}
            self._recorder.set_tags(self._run_id, tags | ended_tags(Ended(exit_code=None)))
            self._recorder.end_run(self._run_id, "FAILED")

        try:
            record()
        except Exception as failure:  # there is nowhere left to record it
            error.add_note(f"The end of run {self._run_id} could not be recorded: {failure}")


@contextlib.contextmanager
def _interrupts() -> Iterator[list[str]]:
    """Inside the block SIGTERM and SIGINT raise `KeyboardInterrupt`, on which MLflow cancels the run.

    They are also put into the list that is handed out: Python drops an exception that a signal raises in a finalizer,
    as those of database connections, and the signal would be lost. A signal that is ignored, as SIGINT in the
    background of a shell, stays so.
    """
    asked: list[str] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        raise KeyboardInterrupt(asked[-1])

    here = threading.current_thread() is threading.main_thread()
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, interrupt) for number in heard} if here else {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
