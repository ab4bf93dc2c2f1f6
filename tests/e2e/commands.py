"""Running the command line as a person would, in this process or in one of its own, and reading what it left."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhstudy import cli
from rhstudy.configs import TrackingConfig
from rhstudy.tracking.config_files import toml_text
from rhstudy.tracking.mlflow_store import make_database
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.recorder import Recorder, RunRecord

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "rhstudy.cli")
LIMIT_S = 300
"""What nothing here takes, on any machine; waiting ends with the event."""


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        return dict(json.loads(self.out.splitlines()[-1]))


@dataclass(frozen=True)
class FinishedStudy:
    """A study that ran once, in a process of its own, with MLflow."""

    folder: Path
    config: Path
    outcome: Outcome
    store: Recorder


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Nothing of this machine's stores and caches; everything below `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RHSTUDY_"))}
    own = {"PYTHONPATH": str(ROOT), "RHSTUDY_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return {**kept, **own, "HF_HUB_OFFLINE": "1", **changes}


def in_own_process(folder: Path, *arguments: str) -> Outcome:
    """Run `rhstudy` in `folder` in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def _log_levels_kept() -> Iterator[None]:
    """The command line quiets other libraries, which is for a process of its own and not for the tests after it."""
    named = logging.root.manager.loggerDict
    before = {name: logger.level for name, logger in named.items() if isinstance(logger, logging.Logger)}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def _main(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RHSTUDY_CACHE", str(folder / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    with _log_levels_kept():
        return cli.main(arguments)


class Here:
    """Runs `rhstudy` in this process, with `folder` as the current folder: no seconds for imports."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys

    def __call__(self, *arguments: str) -> Outcome:
        self._capsys.readouterr()
        code = _main(self.folder, self._monkeypatch, arguments)
        printed = self._capsys.readouterr()
        return Outcome(code, printed.out, printed.err)


def in_this_process(folder: Path, *arguments: str) -> Outcome:
    """As `Here`, for fixtures that serve several tests; log messages go where the tests' own go."""
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with pytest.MonkeyPatch.context() as monkeypatch, streams[0], streams[1]:
        code = _main(folder, monkeypatch, arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


def stopped_while(process: subprocess.Popen[str], when: Callable[[], bool]) -> bool:
    """Stop `process` (SIGSTOP) at a moment when `when` holds; False where it ended without one.

    Whoever looks may be late, on a busy machine by a second: what was seen must hold when nothing moves any more.
    """
    limit = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        if when():
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if process.poll() is None and when():
                return True
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    return False


def interrupted(folder: Path, number: signal.Signals, when: Callable[[], bool], *arguments: str) -> Outcome:
    """Start `rhstudy`, send it signal `number` while `when` holds, and wait for its end."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sent = stopped_while(process, when)
    if sent:
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert sent, f"it ended before the signal could be sent:\n{err[-2000:]}"
    return Outcome(process.returncode, out, err)


@functools.cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "mlflow.db"
        make_database(database, database.parent / "mlartifacts")
        return database.read_bytes()


def give_store(folder: Path) -> None:
    """Put an MLflow store without runs where commands run in `folder` would make theirs; one that is there stays.

    MLflow's migrations take 1.3 s; the tests of the quickstart and of single stages start from nothing.
    """
    database = folder / "mlflow.db"
    if not database.exists():
        database.write_bytes(_empty_store())


def mlflow_store(folder: Path) -> Recorder:
    """The default MLflow store of commands run in `folder`."""
    return open_recorder(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", work_dir=str(folder / "work")))


def folder_store(folder: Path) -> Recorder:
    """The default folder store of commands run in `folder`."""
    return open_recorder(TrackingConfig(recorder="folder", folder=str(folder / "rhstudy-runs")))


def stage_of(run: RunRecord) -> str:
    return run.tags["rhstudy.stage"]


def content_digests(store: Recorder) -> dict[str, str]:
    """Stage digest -> content digest of every finished stage run; one run a stage digest."""
    runs = [run for run in store.find_runs(status="FINISHED") if "rhstudy.stage_digest" in run.tags]
    found = {run.tags["rhstudy.stage_digest"]: run.tags["rhstudy.content_digest"] for run in runs}
    assert len(found) == len(runs), "a stage was done twice"
    return found


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(toml_text(values), encoding="utf-8")
    return path


def data_values(world: Path, **changes: Any) -> dict[str, Any]:
    """The `[data]` table for the tiny world."""
    files = {f"{name}_file": str(world / "data" / f"{name}.jsonl") for name in ("train", "eval", "passages")}
    return {**files, "num_tokens": 256, "num_examples": 8, "num_score": 5, "num_eval": 6, **changes}


def study_values(world: Path, **changes: Any) -> dict[str, Any]:
    """A study of four arms and a ceiling in seconds."""
    values = {
        "name": "tiny study",
        "recipes": ["real", "templated_in_filler", "symbolic"],
        "ceiling_seeds": [1],
        "data": data_values(world),
        "model": {"name": str(world / "model"), "device": "cpu"},
        "context": {"rope_theta": 40000.0},
        "training": {"batch_size": 2, "save_every_steps": 1, "learning_rate": 0.01},
        "scoring": {"threshold": 0.02},
        "answering": {"max_new_tokens": 4},
        "statistics": {"num_permutations": 200, "num_resamples": 200, "num_power_draws": 100},
    }
    return {**values, **changes}
