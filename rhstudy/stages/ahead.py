"""The next arm's data set, built by another process while this one trains.

The other process builds into the work folder of the `make-data` stage to come and records nothing. When that stage's
turn comes it finds the files there, as a killed stage finds its partial work, and its run says who built them. Both
processes hold the stage's lock in turn, so neither sees half of the other's work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rhstudy.keeping import keeping
from rhstudy.stages import make_data
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import is_finished, stage_digest, stage_work

_log = logging.getLogger(__name__)


class BuildAhead:
    """One process that builds data sets ahead of their turn; started with the first one.

    Errors of a build are left to the stage itself, which meets them again and reports them.

    Args:
        recorder: where stages are recorded; what is FINISHED there is not built.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None
        self._begun: dict[str, Future[float]] = {}

    def begin(self, config: MakeDataConfig) -> None:
        """Start building what `config` asks for, unless it is there already."""
        spec = make_data.stage_spec(config)
        name = stage_digest(spec)
        if name in self._begun or is_finished(self._recorder, spec):
            return
        self._begun[name] = self._open().submit(_prepare, config)

    def settle(self, config: MakeDataConfig) -> None:
        """Wait until what `config` asks for is built, if that was begun; a failed build is forgotten."""
        future = self._begun.get(stage_digest(make_data.stage_spec(config)))
        if future is None or future.cancel():
            return
        try:
            future.result()
        except Exception as error:  # the stage does the work itself, and meets and reports what is wrong
            _log.debug("building ahead failed: %s", error)

    def close(self) -> None:
        """Stop the process, at once."""
        if self._lifeline is not None:
            self._lifeline.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._lifeline = None, None

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            end, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker, initargs=(end,))
        return self._pool


@contextlib.contextmanager
def building_ahead(recorder: Recorder, wanted: bool) -> Iterator[BuildAhead | None]:
    """A `BuildAhead` for the length of the block, where `wanted`."""
    ahead = BuildAhead(recorder) if wanted else None
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.close()


def _begin_worker(lifeline: Connection) -> None:
    """The worker ends with its parent, however that ends; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(0)

    threading.Thread(target=follow, daemon=True, name="lifeline").start()
    # Sources, passages and their tokens are read once for all data sets of the study.
    contextlib.ExitStack().enter_context(keeping())


@dataclass(slots=True)
class _Notes:
    """What a build says of its run, until there is one; the fields and methods of `StageRun` that builds use."""

    output_dir: Path
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[tuple[str, str, str, str]] = field(default_factory=list)
    volatile: list[str] = field(default_factory=list)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See `StageRun.set_tags`."""
        self.tags |= tags

    def log_input(self, name: str, content_digest: str, source: str, context: str) -> None:
        """See `StageRun.log_input`."""
        self.inputs.append((name, content_digest, source, context))

    def mark_volatile(self, *names: str) -> None:
        """See `StageRun.mark_volatile`."""
        self.volatile.extend(names)


def _prepare(config: MakeDataConfig) -> float:
    """Build into the stage's work folder; returns the seconds it took."""
    began = time.monotonic()
    with stage_work(make_data.stage_spec(config)) as work_dir:
        target, scratch = work_dir / make_data.PREPARED, work_dir / f"{make_data.PREPARED}.unfinished"
        if target.is_dir():
            return 0.0
        shutil.rmtree(scratch, ignore_errors=True)
        notes = _Notes(scratch / make_data.FILES)
        notes.output_dir.mkdir(parents=True)
        summary = make_data.build(config, notes, show=False)
        seconds = time.monotonic() - began
        told: dict[str, Any] = {
            "summary": summary,
            "tags": {**notes.tags, "rhstudy.built_ahead_s": f"{seconds:.2f}"},
            "inputs": notes.inputs,
            "volatile": notes.volatile,
        }
        (scratch / make_data.NOTES).write_text(json.dumps(told), encoding="utf-8")
        os.replace(scratch, target)
    return seconds
