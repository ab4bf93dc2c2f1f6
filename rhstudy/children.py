"""Python processes of this package that another starts: how they find the same code, are asked and answer, and end."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any, TypeVar

Asked = TypeVar("Asked")


def num_usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def child_environment() -> dict[str, str]:
    """The environment of a child that finds what this process finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start_module(module: str, *, text: bool) -> subprocess.Popen[Any]:
    """Start ``python -m module``, which talks through its standard input and output.

    Not `multiprocessing`: its children run the main script of their parent once more, which a user's script or notebook
    need not be made for, or are forks, which a process that has started torch's or CUDA's threads must not make.

    Args:
        module: a module of this package; it has to end when its standard input does, as it does when this process ends.
        text: whether the pipes carry text.
    """
    # In a session of its own: Ctrl-C at the terminal is this process' to handle.
    return subprocess.Popen(
        [sys.executable, "-m", module],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=text,
        start_new_session=True,
    )


def stop(*processes: subprocess.Popen[Any]) -> None:
    """End processes that `start_module` started, at once."""
    for process in processes:
        process.kill()
    for process in processes:
        with contextlib.suppress(OSError):  # what was still in its input is of no use
            process.communicate()


def requests(items: Iterable[Asked]) -> queue.SimpleQueue[Asked]:
    """In the started process: what it is asked, as it comes; with its end the process ends, whatever it is doing.

    Args:
        items: read from standard input, to whose end they go: there the parent closed its own, or is no more.
    """
    asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def listen() -> None:
        for item in items:
            asked.put(item)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return asked


def private_output() -> int:
    """In the started process: the descriptor for its answers; whatever prints, prints to standard error from now on."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers
