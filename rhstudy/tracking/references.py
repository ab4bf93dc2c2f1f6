"""From what a person types to an artifact folder."""

from __future__ import annotations

import re
from pathlib import Path

from rhstudy.errors import InputError, message, require
from rhstudy.tracking.artifacts import MANIFEST, ArtifactFolder, open_artifacts
from rhstudy.tracking.recorder import Recorder


def resolve(recorder: Recorder, ref: str | Path) -> ArtifactFolder:
    """The verified artifacts `ref` names.

    Args:
        recorder: where to look for run ids.
        ref: id of a finished run, or path of an artifact folder (the one with `manifest.json`).

    Raises:
        InputError: `ref` is neither, the run has not finished, or its files are missing or changed.
    """
    text = str(ref)
    if Path(text).is_dir():
        inside = Path(text) / "artifacts"
        whole = (inside / MANIFEST).is_file() and not (Path(text) / MANIFEST).is_file()
        return open_artifacts(inside if whole else text)
    try:
        known = recorder.get_run(text) if re.fullmatch(r"[0-9a-f]{32}", text) else None
    except InputError:
        known = None
    if known is None:
        condition = "be the id of a recorded run or the path of an artifact folder"
        remedy = "Give the run_id or the artifact_dir that the stage printed, and check --tracking.uri"
        raise InputError(message("run reference", condition, text, remedy))
    remedy = "Run that stage again until it finishes"
    require(known.status == "FINISHED", "run", "be FINISHED", known.status, remedy, f"run {text}")
    return open_artifacts(recorder.artifact_path(text), text)
