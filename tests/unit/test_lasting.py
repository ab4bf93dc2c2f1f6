"""The garbage collector is off for imports, leaves alone what they made, and is on again whatever happened."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhstudy.lasting import lasting_imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that nobody has imported."""
    name = "of_no_use_but_here"
    (tmp_path / f"{name}.py").write_text("ROWS = [[index] for index in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_what_an_import_makes_is_never_looked_at_again(module: str) -> None:
    before = gc.get_freeze_count()
    with lasting_imports():
        assert not gc.isenabled()
        rows = importlib.import_module(module).ROWS
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    looked_at = {id(item) for item in gc.get_objects()}
    assert not looked_at & {id(row) for row in rows}


class Ring:
    """Refers to itself: only the garbage collector can end it."""

    def __init__(self) -> None:
        self.itself = self


def test_without_an_import_nothing_is_kept() -> None:
    with lasting_imports():
        ring = Ring()
    there = weakref.ref(ring)
    del ring
    gc.collect()
    assert there() is None


def test_after_an_import_that_fails_it_is_on_again(module: str) -> None:
    def fail() -> None:
        with lasting_imports():
            importlib.import_module(f"{module}.missing")

    with pytest.raises(ModuleNotFoundError, match=module):
        fail()
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off(module: str) -> None:
    before = gc.get_freeze_count()
    gc.disable()
    try:
        with lasting_imports():
            importlib.import_module(module)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() <= before
