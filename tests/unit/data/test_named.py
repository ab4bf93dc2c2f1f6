"""Named data sets: local copies first, the public file checked by its sha256."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from rhstudy.data import named
from rhstudy.data.config import DataConfig
from rhstudy.data.named import NAMED_DATA, with_named_sources
from rhstudy.errors import InputError

NAMED = DataConfig(train_file="mdqa")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without local copies."""
    folder = tmp_path / "deep" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RHSTUDY_DATA", raising=False)
    monkeypatch.setattr(named, "why_away", lambda address: "")
    return tmp_path


def _copies(root: Path) -> None:
    for name in ("mdqa/train.jsonl", "mdqa/eval.jsonl", "wikipedia_passages/passages.jsonl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}\n")


def test_paths_are_left_alone(nowhere: Path) -> None:
    config = DataConfig(train_file="some/file.jsonl")
    assert with_named_sources(config, nowhere) is config


@pytest.mark.parametrize("beside", [True, False])
def test_local_copies_come_first(nowhere: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    root = nowhere / "deep" / "shared" / "data" if beside else nowhere / "copies"
    _copies(root)
    if not beside:
        monkeypatch.setenv("RHSTUDY_DATA", str(root))
    found = with_named_sources(NAMED, nowhere)
    assert [found.train_file, found.eval_file, found.passages_file] == [
        str(root / name) for name in ("mdqa/train.jsonl", "mdqa/eval.jsonl", "wikipedia_passages/passages.jsonl")
    ]
    mine = dataclasses.replace(NAMED, passages_file="mine.jsonl")
    assert with_named_sources(mine, nowhere).passages_file == "mine.jsonl"


class FakeDownloads:
    """A download manager that serves one file, or none."""

    path = ""

    def download(self, url: str) -> str:
        assert url == NAMED_DATA["mdqa"].url
        if not self.path:
            raise ConnectionError("no network")
        return self.path


def test_the_public_file_is_fetched_once_and_skips_bad_rows(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = nowhere / "served"
    served.write_bytes(b"rows")
    sha256 = hashlib.sha256(b"rows").hexdigest()
    monkeypatch.setitem(NAMED_DATA, "mdqa", dataclasses.replace(NAMED_DATA["mdqa"], sha256=sha256))
    monkeypatch.setattr("datasets.DownloadManager", FakeDownloads)
    monkeypatch.setattr(FakeDownloads, "path", str(served))
    found = with_named_sources(NAMED, nowhere / "cache")
    assert Path(found.train_file).read_bytes() == b"rows"
    assert Path(found.train_file).name == "nq-open-oracle.jsonl.gz"
    assert (found.on_bad_row, found.eval_file, found.passages_file) == ("skip", "", "")
    monkeypatch.setattr(FakeDownloads, "path", "")
    assert with_named_sources(NAMED, nowhere / "cache") == found


def test_a_changed_public_file_is_refused(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = nowhere / "served"
    served.write_bytes(b"other rows")
    monkeypatch.setattr("datasets.DownloadManager", FakeDownloads)
    monkeypatch.setattr(FakeDownloads, "path", str(served))
    with pytest.raises(InputError, match="sha256 of mdqa must be 6a7f72b8"):
        with_named_sources(NAMED, nowhere / "cache")
    assert not (nowhere / "cache" / "data").exists()


@pytest.mark.parametrize("away", ["", "ConnectError: no route"])
def test_no_copy_and_no_network(nowhere: Path, monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    monkeypatch.setattr("datasets.DownloadManager", FakeDownloads)
    monkeypatch.setattr(FakeDownloads, "path", "" if not away else str(nowhere / "never asked for"))
    monkeypatch.setattr(named, "why_away", lambda address: away and f"{address}: {away}")
    with pytest.raises(
        InputError,
        match=r"data.train_file must have a local copy or a public file that can be reached, got 'mdqa' "
        rf"\(https://\S+: {away or 'ConnectionError: no network'}\)\. Set RHSTUDY_DATA to a folder that holds mdqa/",
    ):
        with_named_sources(NAMED, nowhere / "cache")
    assert named.local_copies() is None
