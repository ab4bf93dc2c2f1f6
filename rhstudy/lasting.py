"""Imports whose objects last as long as the process, which the garbage collector is spared."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """Inside the block nothing is collected; when modules were imported in it, all that is there then is left alone.

    torch, transformers and MLflow leave half a million objects: looking at them while they are made is 15 % of a start,
    and every later look at all objects would take 0.2 s more. Where the collector is off already, nothing changes.
    """
    if not gc.isenabled():
        yield
        return
    num_modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # With nothing imported, freezing would keep the garbage of whoever calls this in a long process.
        if len(sys.modules) > num_modules:
            gc.freeze()
        gc.enable()
