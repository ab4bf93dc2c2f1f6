from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from rhstudy.errors import InputError
from rhstudy.tracking.artifacts import open_artifacts, seal_artifacts, write_summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "art"
    (target / "deep").mkdir(parents=True)
    (target / "a.txt").write_text("a")
    (target / "deep" / "timing.json").write_text("1.0")
    return target


def test_the_manifest_names_every_file_with_its_sha256(folder: Path) -> None:
    sealed = seal_artifacts(folder, "detect")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["a.txt"] == hashlib.sha256(b"a").hexdigest()
    assert sorted(manifest["files"]) == ["a.txt", "deep/timing.json"]
    assert (manifest["schema_version"], manifest["stage"], manifest["volatile"]) == (1, "detect", [])
    assert manifest["content_digest"] == sealed.content_digest


def test_open_gives_what_seal_gave(folder: Path) -> None:
    sealed = seal_artifacts(folder, "detect")
    opened = open_artifacts(folder, "run")
    assert (opened.content_digest, opened.stage, opened.run_id) == (sealed.content_digest, "detect", "run")
    assert opened.file("deep/timing.json").read_text() == "1.0"


def test_volatile_files_and_the_summary_do_not_enter_the_digest(folder: Path) -> None:
    write_summary(folder, {"seconds": 1.0})
    first = seal_artifacts(folder, "detect", ["deep/timing.json"])
    (folder / "deep" / "timing.json").write_text("2.0")
    write_summary(folder, {"seconds": 2.0})
    assert seal_artifacts(folder, "detect", ["deep/timing.json"]).content_digest == first.content_digest
    (folder / "a.txt").write_text("b")
    assert seal_artifacts(folder, "detect", ["deep/timing.json"]).content_digest != first.content_digest


def test_the_digest_sees_names_and_not_the_folder(folder: Path, tmp_path: Path) -> None:
    first = seal_artifacts(folder, "detect").content_digest
    moved = folder.rename(tmp_path / "moved")
    assert open_artifacts(moved).content_digest == first
    (moved / "a.txt").rename(moved / "b.txt")
    assert seal_artifacts(moved, "detect").content_digest != first


def test_summary_keeps_nan_in_strict_json(folder: Path) -> None:
    write_summary(folder, {"nan": math.nan, "inf": -math.inf, "n": 3, "text": "ü"})
    summary = seal_artifacts(folder, "detect").summary()
    assert math.isnan(summary["nan"])
    assert (summary["inf"], summary["n"], summary["text"]) == (-math.inf, 3, "ü")
    json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)


def test_damage_is_named(folder: Path) -> None:
    sealed = seal_artifacts(folder, "detect")
    (folder / "a.txt").write_text("changed")
    with pytest.raises(InputError, match=r"artifact file a\.txt must have sha256 ca978112ca1b, got"):
        open_artifacts(folder)
    assert open_artifacts(folder, verify=False).content_digest == sealed.content_digest
    (folder / "a.txt").unlink()
    with pytest.raises(InputError, match=r"artifact file must exist, got 'a\.txt'"):
        open_artifacts(folder)


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema_version": 99}, "artifact schema_version must be 1, got 99"),
        ({"files": None}, "artifact manifest must hold stage, files and volatile"),
        ({"content_digest": "0"}, "artifact content_digest must be"),
        ({"files": {"../a.txt": "0"}}, r"artifact file must lie inside its folder, got '\.\./a\.txt'"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(folder: Path, changes: dict[str, object], text: str) -> None:
    seal_artifacts(folder, "detect")
    change_manifest(folder, **changes)
    with pytest.raises(InputError, match=text):
        open_artifacts(folder)


def test_what_is_no_artifact_folder_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="artifact manifest must be an existing file"):
        open_artifacts(folder)
    with pytest.raises(InputError, match="artifact manifest must lie in a folder"):
        open_artifacts(folder / "a.txt")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="artifact manifest must be readable JSON"):
        open_artifacts(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="artifact manifest must be a JSON object, got 'list'"):
        open_artifacts(folder)


def test_sealing_what_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="volatile must name files of the folder"):
        seal_artifacts(folder, "detect", ["nowhere.json"])
    with pytest.raises(InputError, match="artifact folder must be an existing folder"):
        seal_artifacts(folder / "nowhere", "detect")


def test_a_missing_file_is_named_with_what_there_is(folder: Path) -> None:
    with pytest.raises(InputError, match=r"got 'scores\.json'.*The detect artifacts hold a\.txt, deep"):
        seal_artifacts(folder, "detect").file("scores.json")
