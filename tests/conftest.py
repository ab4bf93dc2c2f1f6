"""Shared fixtures: shape checks switched on, where the real data is, and tiny models on the path."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in the processes the tests start (e2e/commands.py): another number of threads rounds sums differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# The command line sets it too, which is too late in a process where transformers was imported before.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Torch looks at it once, at the first matrix product on a GPU: tests of deterministic training need it from the start.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import runtime_checks

LONG = ("e2e", "unit/training", "golden", "reference", "contracts")
"""Folders whose files take longest."""

# Shapes in signatures are documentation in production; under the tests they are checked.
runtime_checks.install("rhstudy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What imports leave stays to the end: the garbage collector need not look at it, now or in any test."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: one that starts last leaves the other core idle."""
    root = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(root).parent.as_posix()
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the public data sets: $RHSTUDY_DATA, else ../shared/data beside the checkout."""
    root = Path(os.environ.get("RHSTUDY_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "mdqa" / "train.jsonl").is_file():
        pytest.skip(f"no public data sets at {root}; set RHSTUDY_DATA to a folder that holds mdqa/train.jsonl")
    return root


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data/`` (invented MDQA rows and passages) and ``model/`` (a tiny random llama in hub layout)."""
    from tiny_hub import write_data, write_model

    folder = tmp_path_factory.mktemp("world")
    write_data(folder / "data")
    write_model(folder / "model")
    return folder


@pytest.fixture(scope="session")
def train_data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifact folder of `make-data`: ten training rows of about 256 tokens for the tiny world's model."""
    from tiny_hub import write_train_data

    return write_train_data(tmp_path_factory.mktemp("train-data"), world, num_tokens=256, num_examples=10)
