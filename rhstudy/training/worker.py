"""The shell of a training process: ends with its parent, and leaves its error as a file that the parent can read.

Started by `agent` as ``python -m rhstudy.training.worker JOB.json``; imports what is heavy only when it is guarded.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

ALIVE = "alive.lock"
"""The parent holds this file's lock as long as it lives."""

FAILURES = "failures.json"
"""Which processes failed, and with what exit code; the agent writes it."""


def end_with_parent(folder: Path) -> None:
    """From here on this process ends as soon as its parent does, however that ends."""

    def wait() -> None:
        with (folder / ALIVE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(job_file: Path) -> int:
    """Train; returns the exit code."""
    folder = job_file.parent
    end_with_parent(folder)
    from rhstudy.lasting import lasting_imports

    with lasting_imports():
        from rhstudy.configs import from_mapping
        from rhstudy.errors import StudyError
        from rhstudy.training.processes import Job, error_file
        from rhstudy.training.sharded import train

    try:
        train(from_mapping(Job, json.loads(job_file.read_text(encoding="utf-8"))), folder)
    except Exception as error:
        kind = type(error).__name__
        facts = {
            "kind": kind,
            "known": isinstance(error, StudyError),
            "exit_code": getattr(error, "exit_code", 1),
            "text": str(error) if isinstance(error, StudyError) else f"{kind}: {error}",
            "traceback": traceback.format_exc(),
            "time": time.time(),
        }
        target = error_file(folder, int(os.environ["RANK"]))
        scratch = target.with_suffix(".part")
        scratch.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(scratch, target)
        traceback.print_exc()
        # Not by the usual way out: communication threads may still wait for processes that are no more.
        sys.stderr.flush()
        os._exit(int(facts["exit_code"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
