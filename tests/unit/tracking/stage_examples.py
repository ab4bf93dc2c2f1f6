"""A tiny stage for the tests of runs: a config with every kind of field, and specs made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhstudy.configs import INPUT, NO_DIGEST
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.stage_run import StageRun, StageSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rate: float = 1e-5
    note: str = 'say "ü"\n'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    size: int = 3
    names: tuple[str, ...] = ("a", "b")
    inner: Inner = Inner()
    nothing: str | None = None
    train_data: str = dataclasses.field(default="", metadata=INPUT)
    device: str = dataclasses.field(default="cpu", metadata=NO_DIGEST)


def toy_spec(work_root: Path, config: ToyConfig | None = None, **changes: Any) -> StageSpec:
    values: dict[str, Any] = {
        "stage": "detect",
        "run_name": "toy run",
        "config": config or ToyConfig(),
        "seed": 7,
        "work_root": work_root,
    }
    return StageSpec(**{**values, **changes})


class ToyBody:
    """Counts how often it ran; writes one file."""

    def __init__(self, text: str = "hello") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, run: StageRun) -> Mapping[str, Any]:
        self.calls += 1
        (run.output_dir / "scores.txt").write_text(self.text)
        run.log_metrics({"loss": 0.5}, step=1)
        return {"f1": 0.25, "count": 2, "undefined": float("nan"), "rule": "top 10", "ok": True}


def inputs_of(artifacts: ArtifactFolder, name: str = "train_data") -> dict[str, ArtifactFolder]:
    return {name: artifacts}
