"""Artifact folders: a stage's files with their sha256, so that what is read is what was written.

    manifest.json  {schema_version, stage, files: {relpath: sha256}, content_digest, volatile: [relpaths]}
    summary.json   the headline numbers

`content_digest` identifies the content: SHA-256 over the sorted (relpath, sha256) pairs of the non-volatile files.
Files that differ between equal runs (timings, figures) are volatile: verified, but not part of the digest.
`summary.json` is always volatile, since headline numbers may hold seconds and tokens per second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rhstudy.configs import digest, file_sha256
from rhstudy.errors import InputError, message, require
from rhstudy.tracking.atomic_files import json_text, number_from_json, number_to_json, write_text

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFolder:
    """A sealed folder of files.

    Attributes:
        path: the folder.
        stage: which stage wrote it.
        content_digest: SHA-256 (hex) of the non-volatile content; see the module.
        run_id: the run that wrote it; empty when only the folder is known.
        schema_version: layout of the manifest.
    """

    path: Path
    stage: str
    content_digest: str
    run_id: str
    schema_version: int

    def file(self, name: str) -> Path:
        """Path of the file `name` (relative, with ``/``).

        Raises:
            InputError: the folder has no such file.
        """
        target = self.path / name
        present = sorted(str(item.relative_to(self.path)) for item in self.path.iterdir())
        remedy = f"The {self.stage} artifacts hold {', '.join(present)}"
        require(target.exists(), "artifact file", "exist", name, remedy, str(self.path))
        return target

    def summary(self) -> dict[str, Any]:
        """The headline numbers and strings of `summary.json`, NaN restored.

        Raises:
            InputError: the file is missing or not JSON.
        """
        values = _read_json(self.file(SUMMARY), "artifact summary")
        return {key: number_from_json(value) for key, value in values.items()}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` (strict JSON; NaN and infinities as strings) into `folder`."""
    write_text(folder / SUMMARY, json_text({key: number_to_json(value) for key, value in summary.items()}))


def seal_artifacts(folder: Path, stage: str, volatile: Iterable[str] = (), run_id: str = "") -> ArtifactFolder:
    """Write `manifest.json` over every file below `folder`.

    Args:
        folder: holds the stage's finished files.
        stage: name of the stage.
        volatile: relative paths (with ``/``) whose bytes may differ between equal runs; they must exist.
        run_id: the run that wrote the files.

    Raises:
        InputError: `folder` is no folder, or a volatile file does not exist.
    """
    require(folder.is_dir(), "artifact folder", "be an existing folder", str(folder), "Check the path")
    paths = sorted(item for item in folder.rglob("*") if item.is_file() and item != folder / MANIFEST)
    files = {item.relative_to(folder).as_posix(): file_sha256(item) for item in paths}
    loose = {*volatile, *({SUMMARY} & files.keys())}
    missing = sorted(loose - files.keys())
    require(not missing, "volatile", "name files of the folder", missing, "Write them first", str(folder))
    content = digest([[name, sha] for name, sha in sorted(files.items()) if name not in loose])
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "files": files,
        "content_digest": content,
        "volatile": sorted(loose),
    }
    write_text(folder / MANIFEST, json_text(manifest))
    return ArtifactFolder(
        path=folder, stage=stage, content_digest=content, run_id=run_id, schema_version=SCHEMA_VERSION
    )


def open_artifacts(path: str | Path, run_id: str = "", verify: bool = True) -> ArtifactFolder:
    """Open a sealed folder.

    Args:
        path: the folder that holds `manifest.json`.
        run_id: the run that wrote it, when known.
        verify: compare the sha256 of every file with the manifest.

    Raises:
        InputError: no manifest, unreadable manifest, another schema, a file missing or changed.
    """
    folder = Path(path)
    manifest = _read_json(folder / MANIFEST, "artifact manifest")
    version = manifest.get("schema_version")
    require(
        version == SCHEMA_VERSION,
        "artifact schema_version",
        f"be {SCHEMA_VERSION}",
        version,
        "Make the artifacts again with this version",
        str(folder),
    )
    files, loose = manifest.get("files"), manifest.get("volatile")
    whole = isinstance(files, dict) and isinstance(loose, list) and bool(manifest.get("stage"))
    keys = "Make the artifacts again"
    require(whole, "artifact manifest", "hold stage, files and volatile", sorted(manifest), keys, str(folder))
    if verify:
        _verify(folder, manifest)
    return ArtifactFolder(
        path=folder,
        stage=str(manifest["stage"]),
        content_digest=str(manifest["content_digest"]),
        run_id=run_id,
        schema_version=SCHEMA_VERSION,
    )


def _verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    files: Mapping[str, str] = manifest["files"]
    for name, sha in files.items():
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        require(inside, "artifact file", "lie inside its folder", name, "Do not use this folder", str(folder))
        target = folder / name
        require(target.is_file(), "artifact file", "exist", name, "Copy the whole folder", str(folder))
        found = file_sha256(target)
        remedy = "The file changed after it was written; copy it again or make it again"
        require(found == sha, f"artifact file {name}", f"have sha256 {sha[:12]}", found[:12], remedy, str(folder))
    content = digest([[name, sha] for name, sha in sorted(files.items()) if name not in manifest["volatile"]])
    stated = manifest.get("content_digest")
    require(content == stated, "artifact content_digest", f"be {content}", stated, "Copy it again", str(folder))


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Give the artifact folder of a finished stage"
        raise InputError(message(name, "be an existing file", str(path), remedy)) from None
    except NotADirectoryError:
        raise InputError(message(name, "lie in a folder", str(path), "Give a folder, not a file")) from None
    except ValueError as error:
        raise InputError(message(name, "be readable JSON", str(path), f"The parser says: {error}")) from error
    require(isinstance(value, dict), name, "be a JSON object", type(value).__name__, "Make it again", str(path))
    return dict(value)
