"""The hub away: said once and soon, with what to do; what its caches hold is still read. No test needs a network."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from rhstudy import hub
from rhstudy.configs import ModelConfig
from rhstudy.data.rows import read_source
from rhstudy.errors import InputError
from rhstudy.hub import hub_or_cache, why_away
from rhstudy.models.load import load_tokenizer, model_folder

ROWS = [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]
SOON_S = 5.0
"""The library alone takes 25 s at a closed port, and minutes at a silent one."""


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where nobody set HF_HUB_OFFLINE, as the tests do; no proxy between it and this host."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield
    close_session()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub at a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    return constants.ENDPOINT


def test_a_data_set_that_cannot_be_reached_is_named_with_the_remedy(closed: str) -> None:
    start = time.perf_counter()
    match = (
        r"^data\.train_file must be on a hub that can be reached, or in the cache of `datasets`, "
        rf"got 'hub:nobody/towns@train' \({closed}: Connect\w*Error: .*\)\. Give the path of a local copy "
        r"\(names take a folder of copies as RHSTUDY_DATA\), or fetch it once .* \(at once under HF_HUB_OFFLINE=1\)\.$"
    )
    with pytest.raises(InputError, match=match):
        read_source("hub:nobody/towns@train", "data.train_file")
    assert time.perf_counter() - start < SOON_S
    assert constants.HF_HUB_OFFLINE is False


def test_a_model_that_cannot_be_reached_is_named_with_the_remedy(closed: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    match = (
        r"^model\.name must be a known name, a local folder or a hub id that can be fetched, got 'nobody/llama' "
        rf"\({closed}: Connect.*\)\. Known names: tiny, .*a \.gguf file or a reachable hub id, or fetch it once with"
    )
    with pytest.raises(InputError, match=match):
        model_folder(ModelConfig(name="nobody/llama", cache_dir=str(tmp_path)))
    assert time.perf_counter() - start < SOON_S


def test_what_the_caches_hold_is_read_without_the_hub(
    closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "made"))
    (built,) = (tmp_path / "made" / "json").glob("*/*/*/")
    kept = tmp_path / "datasets" / "nobody___towns" / "default" / built.parent.name / built.name
    kept.parent.mkdir(parents=True)
    built.rename(kept)
    (kept / "json-train.arrow").rename(kept / "towns-train.arrow")
    facts = json.loads((kept / "dataset_info.json").read_text())
    (kept / "dataset_info.json").write_text(json.dumps({**facts, "config_name": "default"}))
    assert [dict(row) for _, row in read_source("hub:nobody/towns@train", "data.f").rows] == ROWS

    snapshot = tmp_path / "hub" / "models--nobody--llama" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(world / "model")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = ModelConfig(name="nobody/llama", cache_dir=str(tmp_path / "cache"))
    assert model_folder(config).resolve() == (world / "model").resolve()
    assert load_tokenizer(config)("x").input_ids


def test_a_silent_hub_is_away_after_the_limit_and_one_that_refuses_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        assert "timed out" in why_away()
        assert 0.2 <= time.perf_counter() - start < SOON_S

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *args: object) -> None:
            del args

    monkeypatch.setattr(hub, "PATIENCE_S", SOON_S)
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with hub_or_cache() as away:
            assert away == ""
            assert constants.HF_HUB_OFFLINE is False


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache() as away:
        assert "offline mode is enabled" in away
    assert constants.HF_HUB_OFFLINE is True
