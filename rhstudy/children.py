"""Python processes of this package that another one starts: how they find the same code, how many cores there are"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


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
