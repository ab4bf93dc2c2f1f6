"""Finding distractors never starts jax, which would take the GPU's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from rhstudy.data.facts import Passage
from rhstudy.data.haystack import PassagePool
PassagePool([Passage("Tides", "The moon pulls the sea."), Passage("Tea", "Leaves steep in hot water.")])
assert "bm25s" in sys.modules
assert "jax" not in sys.modules, "jax was imported"
import jax
assert jax.marker == 1
"""


def test_bm25s_does_not_start_jax_and_leaves_it_importable(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("marker = 1\n")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(values, k):\n    return values, values\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Building index" not in done.stderr
