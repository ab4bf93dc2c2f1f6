"""What is measured of a model in mid-training: at shares of the steps, kept beside the weights, told once an asker.

A value is on disk before it is told, and the training state is saved after that: a run that was killed and started
again tells what it had told, measures what is missing, and nothing twice. One that had finished tells what it kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rhstudy.configs import digest
from rhstudy.models.load import LoadedModel
from rhstudy.stages.partial import PartialRows
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.stage_run import StageRun
from rhstudy.training.pauses import Pauses, pause_steps

CHECKPOINTS = "checkpoints.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What an asker wants to know of a model while it is trained; changes no weight.

    Attributes:
        fractions: shares of the steps, rising, each above 0 and below 1.
        content: everything that the values depend on beside the model; kept values of another are not told.
        measure: takes the model in eval mode, inside `torch.random.fork_rng`, and gives numbers by name.
        tell: called with a share and its numbers, in order; what it raises ends the training.
    """

    fractions: tuple[float, ...]
    content: str
    measure: Callable[[LoadedModel], Mapping[str, float]]
    tell: Callable[[float, Mapping[str, float]], None]

    @property
    def key(self) -> str:
        """Under which values are kept."""
        return digest("checkpoints", self.content, list(self.fractions))

    def tell_kept(self, artifacts: ArtifactFolder) -> int:
        """Tell what a finished run measured; returns how many values that were."""
        path = artifacts.path / CHECKPOINTS
        kept = _kept(path) if path.is_file() else {}
        known = [share for share in self.fractions if (self.key, share) in kept]
        for share in known:
            self.tell(share, kept[self.key, share])
        return len(known)


def _kept(path: Path) -> dict[tuple[str, float], Mapping[str, float]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["key"], row["fraction"]): row["values"] for row in rows}


class Watch:
    """The checkpoints of one training run.

    Args:
        asked: what is wanted.
        run: the training's run; values become curves ``checkpoint_<name>`` of it, over steps.
        num_steps: of the whole training.
        loaded: the model that is trained.
    """

    def __init__(self, asked: Checkpoints, run: StageRun, num_steps: int, loaded: LoadedModel) -> None:
        self._asked, self._run, self._loaded = asked, run, loaded
        self._steps = pause_steps(asked.fractions, num_steps)
        self._path = run.work_dir / CHECKPOINTS

    def pauses(self) -> Pauses:
        """What was measured by an earlier try is told now; gives the pauses for what is not."""
        with PartialRows(self._path, ("key", "fraction")) as rows:
            told = [share for share in self._steps if (self._asked.key, share) in rows]
            for share in told:
                self._tell(share, rows.row((self._asked.key, share))["values"])
        return Pauses(steps={step for share, step in self._steps.items() if share not in told}, look=self._look)

    def keep(self) -> None:
        """Leave the values among the files of the finished run; they are no part of its content."""
        if self._path.is_file():
            shutil.copy(self._path, self._run.output_dir / CHECKPOINTS)
            self._run.mark_volatile(CHECKPOINTS)

    def _look(self, num_steps: int) -> None:
        values = dict(self._asked.measure(self._loaded))
        due = [share for share, step in self._steps.items() if step == num_steps]
        with PartialRows(self._path, ("key", "fraction")) as rows:
            rows.add([{"key": self._asked.key, "fraction": share, "values": values} for share in due])
        for share in due:
            self._tell(share, values)

    def _tell(self, share: float, values: Mapping[str, float]) -> None:
        named = {f"checkpoint_{name}": value for name, value in values.items()}
        self._run.log_metrics(named, self._steps[share])
        self._asked.tell(share, values)
