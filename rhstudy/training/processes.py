"""Fine-tuning in several processes of this host, seen from the process that asked for it.

    parent (records, shows progress)  ->  agent (torch's elastic launcher)  ->  worker 0 .. R-1 (FSDP, see `sharded`)

The parent hands over a JSON job, reads the steps that rank 0 appends to a file, and turns whatever ends a worker into
one clear error. All files lie in ``<work_dir>/processes``, made anew at each start. No worker outlives the parent.

Several hosts are not supported: the stage starts its processes itself and refuses to be started by `torchrun`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tqdm import tqdm

from rhstudy.children import child_environment, num_usable_cores
from rhstudy.configs import ContextConfig, ModelConfig, plain
from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import OnStep, TrainingResult, plan_steps
from rhstudy.training.worker import ALIVE, FAILURES

FOLDER = "processes"
STEPS = "steps.jsonl"
WEIGHTS = "weights.safetensors"
OUTCOME = "outcome.json"
_JOB = "job.json"
_LOG = "processes.log"
_POLL_S = 0.1
_STOP_S = 75.0  # the agent gives workers 30 s to end and 30 s to be killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the workers are told.

    Attributes:
        model: the base model; every worker takes the GPU of its local rank, or the CPU.
        context: context extension.
        training: optimisation.
        seed: root seed of the order of examples.
        examples_file: training rows as `read_examples` reads them.
        work_dir: where the resumable state is kept.
    """

    model: ModelConfig
    context: ContextConfig
    training: TrainingConfig
    seed: int
    examples_file: str
    work_dir: str


def error_file(folder: Path, rank: int) -> Path:
    """Where worker `rank` leaves its error."""
    return folder / f"error-{rank}.json"


def require_one_start() -> None:
    """Check that this process is not one of several that `torchrun` started: each would do the whole stage.

    Raises:
        InputError: it is.
    """
    alone = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"
    remedy = "Start it once and set training.num_processes to this host's GPUs; several hosts are not supported"
    require(alone, "rhstudy finetune", "be started without torchrun", f"<{os.environ.get('WORLD_SIZE')} times>", remedy)


def finetune_in_processes(job: Job, num_examples: int, *, on_step: OnStep) -> TrainingResult:
    """Fine-tune in `job.training.num_processes` processes, as `rhstudy.training.loop.finetune` does in one.

    Args:
        job: what to do; state found in its work folder is continued, whatever number of processes wrote it.
        num_examples: rows in its examples file.
        on_step: called in this process after every step, as by `finetune`.

    Raises:
        InputError, StudyError: what a worker raised; or a worker ended by a signal or by an unexpected error, which
            comes with the worker's traceback as a note.
    """
    folder = Path(job.work_dir) / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _JOB).write_text(json.dumps(plain(job)), encoding="utf-8")
    num_steps = len(plan_steps(num_examples, job.training, job.seed))
    with _agent(folder, job.training.num_processes) as agent:
        _follow(agent, folder / STEPS, num_steps, on_step)
    if agent.returncode or not (folder / OUTCOME).is_file():
        raise _failure(folder, agent.returncode)
    outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    losses = tuple(outcome.pop("losses"))
    return TrainingResult(weights=load_file(folder / WEIGHTS), losses=losses, **outcome)


@contextlib.contextmanager
def _agent(folder: Path, num_processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """The agent, stopped with all its workers when the block ends."""
    threads = str(max(1, num_usable_cores() // num_processes))
    environment = {"OMP_NUM_THREADS": threads, **child_environment()}
    command = [sys.executable, "-m", "rhstudy.training.agent", str(folder / _JOB), str(num_processes)]
    with (folder / ALIVE).open("wb") as alive, (folder / _LOG).open("wb") as log:
        fcntl.flock(alive, fcntl.LOCK_EX)
        # In a session of its own: Ctrl-C at the terminal is this process' to handle.
        agent = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield agent
        finally:
            _stop(agent)


def _stop(agent: subprocess.Popen[bytes]) -> None:
    if agent.poll() is None:
        agent.terminate()
        try:
            agent.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            agent.kill()  # the workers end when the lock of `ALIVE` falls
            agent.wait()


def _follow(agent: subprocess.Popen[bytes], steps: Path, num_steps: int, on_step: OnStep) -> None:
    """Report every step that rank 0 writes down, until the agent has ended."""
    read = 0
    with tqdm(total=num_steps, desc="finetune", unit="step", disable=None) as progress:
        ended = False
        while not ended:
            ended = agent.poll() is not None  # before reading, so that the last steps are read too
            text = steps.read_bytes()[read:] if steps.is_file() else b""
            complete = text[: text.rfind(b"\n") + 1]
            read += len(complete)
            for line in complete.splitlines():
                point = json.loads(line)
                on_step(int(point["step"]), point["metrics"])
                progress.update(int(point["step"]) + 1 - progress.n)
                progress.set_postfix(loss=f"{point['metrics']['loss']:.3f}")
            if not ended:
                time.sleep(_POLL_S)


def _failure(folder: Path, exit_code: int) -> StudyError:
    """The error that ended the training: a worker's own, else a signal's, else the first unexpected one."""
    found: list[dict[str, Any]] = []
    for path in folder.glob("error-*.json"):
        rank = int(path.stem.partition("-")[2])
        found.append({"rank": rank, **json.loads(path.read_text(encoding="utf-8"))})
    found.sort(key=lambda error: (not error["known"], error["time"]))
    if found and found[0]["known"]:
        kind = InputError if found[0]["exit_code"] == InputError.exit_code else StudyError
        return kind(found[0]["text"])
    log = folder / _LOG
    failures = json.loads((folder / FAILURES).read_text(encoding="utf-8")) if (folder / FAILURES).is_file() else []
    # When a worker dies, the others fail because of it, or are ended with SIGTERM by the agent.
    for failure in failures:
        if failure["exit_code"] < 0 and failure["exit_code"] != -signal.SIGTERM:
            name = signal.Signals(-failure["exit_code"]).name
            remedy = f"SIGKILL often means that the host's memory ran out; the processes' log is {log}"
            return StudyError(message(f"training process {failure['rank']}", "end by itself", f"<{name}>", remedy))
    remedy = f"The processes' log is {log}"
    if found:
        first = found[0]
        error = StudyError(message(f"training process {first['rank']}", "succeed", f"<{first['text']}>", remedy))
        error.add_note(first["traceback"])
        return error
    return StudyError(message("training processes", "end with exit code 0", exit_code, remedy))
