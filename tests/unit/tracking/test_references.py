from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stage_examples import ToyBody, toy_spec

from rhstudy.errors import InputError
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import run_stage


def test_a_run_id_and_a_folder_give_the_same_artifacts(recorder: Recorder, tmp_path: Path) -> None:
    result = run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    by_id, by_path = resolve(recorder, result.run_id), resolve(recorder, str(result.artifacts.path))
    assert by_id == result.artifacts
    assert by_path.run_id == result.run_id
    assert by_path.content_digest == resolve(recorder, by_path.path.parent).content_digest == by_id.content_digest


def test_a_copied_folder_belongs_to_no_run(recorder: Recorder, tmp_path: Path) -> None:
    result = run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())
    copy = shutil.copytree(result.artifacts.path, tmp_path / "copy")
    assert (resolve(recorder, copy).run_id, resolve(recorder, copy).content_digest) == (
        "",
        result.artifacts.content_digest,
    )


@pytest.mark.parametrize("ref", ["0" * 32, "no such thing", "/no/such/folder", ""])
def test_anything_else_is_refused_naming_both_possibilities(recorder: Recorder, ref: str) -> None:
    with pytest.raises(InputError, match="must be the id of a recorded run or the path of an artifact folder"):
        resolve(recorder, ref)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    recorder = FolderRecorder(tmp_path / "runs")
    run_id = recorder.create_run("r", "detect")
    recorder.end_run(run_id, "FAILED")
    with pytest.raises(InputError, match="run must be FINISHED, got 'FAILED'"):
        resolve(recorder, run_id)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run reference must be .* \(with manifest\.json\)"):
        resolve(FolderRecorder(tmp_path / "runs"), tmp_path)
