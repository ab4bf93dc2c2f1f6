"""The next arm's data set, built by another process while this one trains.

The other process (``python -m rhstudy.stages.ahead``) reads configs from its standard input, a line each, builds into
the work folder of the `make-data` stage to come, and records nothing. When that stage's turn comes it finds the files
there, as a killed stage finds its partial work, and its run says that they were built ahead. Both processes hold the
stage's lock in turn, so neither sees half of the other's work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhstudy.children import private_output, requests, start_module, stop
from rhstudy.configs import from_mapping, plain
from rhstudy.errors import InputError, InterruptedRunError, StudyError, UnreachableStoreError
from rhstudy.keeping import keeping
from rhstudy.stages import make_data
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import is_finished, stage_work

_log = logging.getLogger(__name__)


class BuildAhead:
    """One process that builds data sets ahead of their turn, in the order asked; started with the first one.

    Errors of a build are left to the stage itself, which meets them again and reports them; so is a worker that ended.

    Args:
        recorder: where stages are recorded; what is FINISHED there is not built.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._worker: subprocess.Popen[str] | None = None
        self._waiting: list[MakeDataConfig] = []

    def begin(self, config: MakeDataConfig) -> None:
        """Start building what `config` asks for, unless it is there already."""
        try:
            if config in self._waiting or is_finished(self._recorder, make_data.stage_spec(config)):
                return
        except (InterruptedRunError, UnreachableStoreError):
            raise
        except (InputError, StudyError) as error:  # no fault of the arm that is being trained
            _log.debug("nothing is built ahead: %s", error)
            return
        worker = self._worker = self._worker or start_module(__name__, text=True)
        with contextlib.suppress(OSError):  # it ended: the stage does the work itself
            print(json.dumps(plain(config)), file=worker.stdin, flush=True)
            self._waiting.append(config)

    def settle(self, config: MakeDataConfig) -> None:
        """Wait until what `config` asks for is built, if that was begun."""
        while config in self._waiting and self._worker is not None and self._worker.stdout is not None:
            reply = self._worker.stdout.readline()
            if not reply:
                _log.warning("the process that builds data sets ahead ended; this one goes on alone")
                self._waiting.clear()
                return
            self._waiting.pop(0)
            if error := json.loads(reply)["error"]:
                _log.debug("building ahead failed: %s", error)

    def close(self) -> None:
        """Stop the process, at once."""
        if self._worker is not None:
            stop(self._worker)
        self._worker = None


@contextlib.contextmanager
def building_ahead(recorder: Recorder, wanted: bool) -> Iterator[BuildAhead | None]:
    """A `BuildAhead` for the length of the block, where `wanted`."""
    ahead = BuildAhead(recorder) if wanted else None
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.close()


def work() -> None:
    """What the other process does: builds a data set a line of standard input, answers each, ends with its parent."""
    replies, asked = os.fdopen(private_output(), "w", encoding="utf-8"), requests(sys.stdin)
    with keeping():  # sources, passages and their tokens are read once for all data sets of the study
        while True:
            error = ""
            try:
                _prepare(from_mapping(MakeDataConfig, json.loads(asked.get())))
            except Exception as caught:  # the stage meets it again and reports it
                error = f"{type(caught).__name__}: {caught}"
            print(json.dumps({"error": error}), file=replies, flush=True)


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


def _prepare(config: MakeDataConfig) -> None:
    """Build into the stage's work folder."""
    began = time.monotonic()
    with stage_work(make_data.stage_spec(config)) as work_dir:
        target, scratch = work_dir / make_data.PREPARED, work_dir / f"{make_data.PREPARED}.unfinished"
        if target.is_dir():
            return
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


if __name__ == "__main__":
    work()
