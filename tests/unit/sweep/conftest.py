from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeSweep, fake_sweep


@pytest.fixture
def sweep(world: Path, tmp_path: Path) -> FakeSweep:
    return fake_sweep(world, tmp_path)
