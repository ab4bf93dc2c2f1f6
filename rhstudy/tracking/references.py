"""From what a person types to an artifact folder."""

from __future__ import annotations

import re
from pathlib import Path

from rhstudy.errors import InputError, message, require
from rhstudy.tracking.artifacts import MANIFEST, ArtifactFolder, open_artifacts
from rhstudy.tracking.recorder import Recorder, RunRecord


def resolve(recorder: Recorder, ref: str | Path) -> ArtifactFolder:
    """The verified artifacts `ref` names.

    Args:
        recorder: where to look for run ids.
        ref: id of a finished run, or path of an artifact folder (the one with `manifest.json`); a run folder of the
            folder recorder will do too.

    Raises:
        InputError: `ref` is neither, the run has not finished, or its files are missing or changed.
    """
    text = str(ref)
    for folder in (Path(text), Path(text) / "artifacts"):
        if text and (folder / MANIFEST).is_file():
            return open_artifacts(folder, _run_of(recorder, folder))
    known = _known_run(recorder, text)
    if known is None:
        condition = "be the id of a recorded run or the path of an artifact folder"
        remedy = f"Give the run_id or the artifact_dir (with {MANIFEST}) that the stage printed; check --tracking.uri"
        raise InputError(message("run reference", condition, text, remedy))
    remedy = "Run that stage again until it finishes"
    require(known.status == "FINISHED", "run", "be FINISHED", known.status, remedy, f"run {text}")
    return open_artifacts(recorder.artifact_path(text), text)


def _known_run(recorder: Recorder, run_id: str) -> RunRecord | None:
    try:
        return recorder.get_run(run_id) if re.fullmatch(r"[0-9a-f]{32}", run_id) else None
    except InputError:
        return None


def _run_of(recorder: Recorder, folder: Path) -> str:
    """The run whose artifacts lie in `folder` (both recorders keep them in ``<run id>/artifacts``), or nothing."""
    run_id = folder.resolve().parent.name
    if _known_run(recorder, run_id) is None or recorder.artifact_path(run_id).resolve() != folder.resolve():
        return ""
    return run_id
