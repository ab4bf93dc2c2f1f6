"""Sweeps whose trials cost nothing: the recall is a formula of the knobs, and whatever a test wants goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhstudy.configs import from_mapping
from rhstudy.data.knobs import Knobs
from rhstudy.sweep.config import SweepConfig, SweepResult
from rhstudy.sweep.course import Course
from rhstudy.sweep.measure import Measured
from rhstudy.sweep.run import run
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.types import Estimate

SPACE = [
    {"knob": "concept_expression", "choices": ["templated", "symbolic"]},
    {"knob": "real_fraction"},
    {"knob": "num_templates", "high": 8},
]


def recall(knobs: Knobs) -> float:
    return knobs.real_fraction + (0.3 if knobs.concept_expression == "templated" else 0.0)


@dataclass
class Fake:
    """Measures by `recall`, after `before` was called with the number of this worker's trial."""

    before: Callable[[int], Any] = lambda number: None
    seconds: float = 0.0
    log: Path | None = None
    count: int = 0

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        self.count += 1
        self.before(self.count)
        time.sleep(self.seconds)
        if self.log:
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{run_id}\n".encode())
            os.close(handle)
        return Measured(value=Estimate(recall(knobs)), numbers={"real_nll": 1.0 - recall(knobs)}, runs={"detect": "d"})


@dataclass
class FakeSweep:
    """A sweep in a folder."""

    folder: Path
    config: SweepConfig

    @property
    def recorder(self) -> FolderRecorder:
        return FolderRecorder(str(self.folder / "runs"))

    def __call__(self, fake: Any = None, **changes: Any) -> SweepResult:
        measure = fake or Fake()
        return run(replace(self.config, **changes), self.recorder, lambda *given: measure)

    def fork(self, fake: Any, **changes: Any) -> int:
        """A worker in a process of its own, which begins with everything imported; returns its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            with (self.folder / f"stderr.{os.getpid()}").open("w") as file, contextlib.redirect_stderr(file):
                logging.basicConfig(level=logging.INFO, format="%(message)s", stream=file, force=True)
                try:
                    self(fake, worker=True, **changes)
                    code = 0
                except BaseException:
                    traceback.print_exc(file=file)
        finally:
            os._exit(code)


def fake_sweep(world: Path, folder: Path, **changes: Any) -> FakeSweep:
    values = {
        "name": "fake",
        "space": SPACE,
        "num_trials": 6,
        "sampler": "random",
        "data": {"train_file": str(world / "data" / "train.jsonl")},
        "model": {"name": str(world / "model"), "device": "cpu"},
        "storage": str(folder / "fake.journal"),
        **changes,
    }
    return FakeSweep(folder, from_mapping(SweepConfig, values))
