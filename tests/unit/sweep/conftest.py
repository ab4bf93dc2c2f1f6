from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeSweep, fake_sweep

from rhstudy.sweep import results


@pytest.fixture(autouse=True)
def _drawn_only_where_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures cost seconds a sweep, and tests of their own ask for them."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(results, "draw_figures", lambda *given: {})


@pytest.fixture
def sweep(world: Path, tmp_path: Path) -> FakeSweep:
    return fake_sweep(world, tmp_path)
