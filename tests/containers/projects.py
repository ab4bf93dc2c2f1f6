"""What every container test starts from: the backend config, and a project folder with a store of its own.

Not in `conftest.py`, of which several folders have one by the same name.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from commands import environment

from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.recorder import Recorder

SETTINGS = {"variant": "cpu", "runtime": "docker", **json.loads(os.environ.get("RHSTUDY_TEST_BACKEND_CONFIG", "{}"))}


@dataclass(frozen=True)
class Project:
    """A folder with what a clone has, a store and a cache of its own."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def store(self) -> Recorder:
        return MlflowRecorder(self.uri, "", system_metrics=False)

    def environment(self, **changes: str) -> dict[str, str]:
        ours = {"MLFLOW_TRACKING_URI": self.uri, "HOME": str(self.folder / "home"), **changes}
        kept = environment(self.folder, **ours)
        return {key: value for key, value in kept.items() if key != "PYTHONPATH"}
