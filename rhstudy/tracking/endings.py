"""However a run ends, its record says so: signals, failures and full disks become a true status.

`catch_interrupts` turns SIGINT and SIGTERM into one exception, held back while a run is being opened or ended.
`truthful_ending` ends the run FINISHED, FAILED or KILLED, with its exit code and error as tags.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rhstudy.errors import (
    InputError,
    InterruptedRunError,
    PrunedTrialError,
    StudyError,
    UnreachableStoreError,
    masked,
    message,
)
from rhstudy.tracking.disk_space import full_disk
from rhstudy.tracking.recorder import Recorder, Status

EXIT_TAG = "rhstudy.exit_code"
ENDED_AS_TAG = "rhstudy.ended_as"
ERROR_TAG = "rhstudy.error"


class Interrupts:
    """SIGINT and SIGTERM of the main thread; the first one raises `KeyboardInterrupt`, unless held back."""

    def __init__(self) -> None:
        self._held = True
        self.received = ""

    def deliver(self) -> None:
        """From here on a signal raises; one that came while held raises now.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        self._held = False
        if self.received:
            self._held = True
            raise KeyboardInterrupt(self.received)

    def hold(self) -> None:
        """From here on a signal is only remembered."""
        self._held = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.received = signal.Signals(number).name
        if not self._held:
            # A second signal must not stop the run from being recorded as killed.
            self._held = True
            raise KeyboardInterrupt(self.received)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM inside the block (held back at first), and restore the old handlers after it.

    Only the main thread can; elsewhere nothing is installed. An ignored signal (`nohup`) stays ignored.

    Raises:
        InterruptedRunError: a signal came while held back and nothing else was raised: the run is recorded, and the
            process was asked to stop.
    """
    interrupts = Interrupts()
    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                old[number] = signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for caught, handler in old.items():
            signal.signal(caught, handler)
    if interrupts.received:
        raise _interrupted(interrupts.received)


@contextlib.contextmanager
def truthful_ending(
    recorder: Recorder,
    interrupts: Interrupts,
    run_id: str,
    places: Sequence[Path],
    on_failure: Callable[[], None] | None = None,
) -> Iterator[None]:
    """End `run_id` with its true status when the block ends, whatever ends it.

    Args:
        recorder: where the run is.
        interrupts: of the surrounding `catch_interrupts`; delivered inside the block only.
        run_id: a RUNNING run.
        places: the folders the block writes to, to be named when the disk is full.
        on_failure: called before a failure is recorded (frees disk space).

    Raises:
        InterruptedRunError: a signal or `KeyboardInterrupt` ended the block.
        StudyError: the disk is full.
        BaseException: what else the block raised, even when the recorder can no longer write.
    """
    try:
        interrupts.deliver()
        yield
        interrupts.hold()
        recorder.set_tags(run_id, {EXIT_TAG: "0", ENDED_AS_TAG: "FINISHED"})
        recorder.end_run(run_id, "FINISHED")
    except BaseException as error:
        interrupts.hold()
        interrupts.received = ""
        ending = ending_of(error, [*places, *recorder.folders()])
        _record_failure(recorder, run_id, ending, error, on_failure)
        if ending.raised is error:
            raise
        raise ending.raised from error


@contextlib.contextmanager
def explained_launch(recorder: Recorder, stage: str) -> Iterator[None]:
    """Tell the run that `mlflow run` made for this process what was wrong, when the block is refused before taking it.

    Args:
        recorder: where the run is.
        stage: name of the stage that was launched.

    Raises:
        StudyError: what the block raised.
    """
    try:
        yield
    except StudyError as error:
        if recorder.attachable_run_id():
            tags = {EXIT_TAG: str(error.exit_code), ERROR_TAG: masked(str(error))}
            recorder.end_run(recorder.create_run(stage, stage, "", tags), "FAILED")
        raise


def point_launch(recorder: Recorder, name: str, stage: str, done_run_id: str, note: str) -> None:
    """End the run that `mlflow run` made for this process, if nothing took it over: `done_run_id` has its result.

    Args:
        recorder: where the runs are.
        name: what the launched run is called.
        stage: name of the stage that was launched.
        done_run_id: the run with the result.
        note: why it is another, for people.
    """
    if recorder.attachable_run_id():
        tags = {"rhstudy.reused_run_id": done_run_id, "mlflow.note.content": note, EXIT_TAG: "0"}
        recorder.end_run(recorder.create_run(name, stage, "", tags), "FINISHED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What an exception means for its run.

    Attributes:
        status: ``FAILED`` or ``KILLED``.
        exit_code: what a process that ends by it exits with.
        raised: what the caller gets to see: the exception itself, or what it means.
    """

    status: Status
    exit_code: int
    raised: BaseException


def ending_of(error: BaseException, places: Sequence[Path]) -> Ending:
    """What `error` means for a run that writes to `places`."""
    if isinstance(error, InterruptedRunError | PrunedTrialError):
        return Ending(status="KILLED", exit_code=1, raised=error)
    if isinstance(error, KeyboardInterrupt):
        return Ending(status="KILLED", exit_code=1, raised=_interrupted(str(error) or "KeyboardInterrupt"))
    if isinstance(error, InputError):
        return Ending(status="FAILED", exit_code=2, raised=error)
    full = None if isinstance(error, StudyError) else full_disk(error, places)
    return Ending(status="FAILED", exit_code=1, raised=full or error)


def _interrupted(name: str) -> InterruptedRunError:
    remedy = "Start the same command again: finished stages are reused and unfinished ones resumed"
    return InterruptedRunError(message("run", "end by itself", f"<{name}>", remedy))


def _record_failure(
    recorder: Recorder, run_id: str, ending: Ending, error: BaseException, on_failure: Callable[[], None] | None
) -> None:
    text = str(ending.raised) if isinstance(ending.raised, StudyError) else f"{type(error).__name__}: {error}"
    # `mlflow run` turns the KILLED of a run it launched into FAILED; the tag keeps what it was.
    tags = {EXIT_TAG: str(ending.exit_code), ENDED_AS_TAG: ending.status, ERROR_TAG: masked(text)}
    steps: list[Callable[[], None]] = [on_failure] if on_failure else []
    # A server that is gone would let each step wait for minutes; the next start here ends the run as KILLED.
    if not isinstance(ending.raised, UnreachableStoreError):
        # The status is what matters most and needs least space, so neither tags nor traceback can prevent it.
        steps += [lambda: recorder.end_run(run_id, ending.status), lambda: recorder.set_tags(run_id, tags)]
        if ending.status == "FAILED" and not isinstance(error, InputError):
            steps.append(lambda: _log_traceback(recorder, run_id, error))
    for step in steps:
        try:
            step()
        except Exception as failure:
            ending.raised.add_note(f"The end of run {run_id} could not be recorded in full: {masked(str(failure))}")
            if isinstance(failure, UnreachableStoreError):
                return


def _log_traceback(recorder: Recorder, run_id: str, error: BaseException) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = masked("".join(traceback.format_exception(error)))
        (Path(folder) / "traceback.txt").write_text(text, encoding="utf-8")
        recorder.log_artifacts(run_id, Path(folder), "error")
