"""What `analyze` reads of interventions: runs of `intervene` and `patch`, or files of outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhstudy.configs import file_sha256
from rhstudy.errors import require
from rhstudy.heads.files import read_json
from rhstudy.stages.inputs import outside_content
from rhstudy.stages.intervene import STAGE as INTERVENE
from rhstudy.stages.outcomes import CONDITIONS, OUTCOMES
from rhstudy.stages.patch import STAGE as PATCH
from rhstudy.stages.patch_outcomes import PATCHES
from rhstudy.stages.subject import SUBJECT, read_subject
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve

if TYPE_CHECKING:
    from rhstudy.stats.causal import Experiment

FILE = "table"
_FILES = {INTERVENE: OUTCOMES, PATCH: PATCHES}
_SUFFIXES = (".csv", ".parquet", ".jsonl")


def file_input(path: str, name: str) -> ArtifactFolder:
    """A user's file as an input of a stage.

    Raises:
        InputError: no such file.
    """
    require(Path(path).is_file(), name, "be an existing file", path, "Check the path")
    return outside_content(FILE, Path(path), file_sha256(Path(path)))


def intervention_inputs(references: Sequence[str], recorder: Recorder) -> dict[str, ArtifactFolder]:
    """The inputs ``interventions.0``... behind run ids, artifact folders or files.

    Raises:
        InputError: a bad reference, or a run of another stage.
    """
    found = {}
    for index, reference in enumerate(references):
        name = f"interventions.{index}"
        is_file = reference.lower().endswith(_SUFFIXES)
        found[name] = file_input(reference, name) if is_file else resolve(recorder, reference)
        stage, remedy = found[name].stage, "Give runs of these stages, or a .csv, .parquet or .jsonl file"
        require(is_file or stage in _FILES, name, f"come from {' or '.join(_FILES)}", stage, remedy, reference)
    return found


def read_interventions(inputs: Mapping[str, ArtifactFolder], task: str, dose: int) -> list[Experiment]:
    """The experiments behind the inputs of `intervention_inputs`.

    Args:
        inputs: all inputs of the stage; others are passed over.
        task: what to call the task of runs, and of files that do not say.
        dose: the dose whose random heads may be borrowed.
    """
    from rhstudy.stats.outcome_file import read_experiments

    found: list[Experiment] = []
    for name, source in inputs.items():
        if name.startswith("interventions."):
            is_file = source.stage == FILE
            found += read_experiments(source.path, name, task) if is_file else [_of_run(source, task, dose)]
    return found


def _of_run(source: ArtifactFolder, task: str, dose: int) -> Experiment:
    from rhstudy.stats.causal import Experiment

    lines = source.file(_FILES[source.stage]).read_text(encoding="utf-8").splitlines()
    plans: Sequence[Mapping[str, Any]] = read_json(source.file(CONDITIONS), CONDITIONS).get("doses", [])
    borrowed = any(plan.get("borrowed") for plan in plans if plan["dose"] == dose)
    label = read_subject(source).label if (source.path / SUBJECT).is_file() else source.stage
    return Experiment(task=task, model=label, rows=[json.loads(line) for line in lines], borrowed=borrowed)
