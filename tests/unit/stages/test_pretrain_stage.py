"""The stage `pretrain`: its artifacts are a model that loads by folder, and its numbers are that model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.python_docs import python_docs_rows
from rhstudy.errors import InputError
from rhstudy.models.load import load_model
from rhstudy.models.tokenizer import END_TOKEN
from rhstudy.stages import pretrain as stage
from rhstudy.stages.pretrain import PretrainConfig
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.training.pretraining import ArchitectureConfig, PretrainingConfig

SMALL = ArchitectureConfig(
    vocabulary_size=400, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
IDS = torch.arange(1, 200)[None]


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    target = tmp_path / "passages.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in python_docs_rows()[:60]), encoding="utf-8")
    return target


@pytest.fixture
def config(passages: Path, tmp_path: Path) -> Callable[..., PretrainConfig]:
    def make(**changes: Any) -> PretrainConfig:
        options: dict[str, Any] = {
            "passages_file": str(passages),
            "architecture": SMALL,
            "pretraining": PretrainingConfig(num_steps=5, batch_tokens=512),
            "device": "cpu",
            "tracking": TrackingConfig(recorder="folder", work_dir=str(tmp_path / "work")),
        }
        return PretrainConfig(**{**options, **changes})

    return make


def test_a_run_gives_a_model_and_its_numbers(
    config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.Tensor] = []

    def watched(model: Any, *args: Any, **options: Any) -> dict[int, float]:
        measured.append(model(IDS).logits.detach())
        return found(model, *args, **options)

    found = stage.copy_accuracy
    monkeypatch.setattr(stage, "copy_accuracy", lambda *args, **options: watched(*args, **options, num_tokens=2048))
    recorder = FolderRecorder(tmp_path / "runs")
    result = stage.run(config(), recorder)
    folder = result.artifacts.path
    loaded = load_model(ModelConfig(name=str(folder), device="cpu", cache_dir=str(tmp_path / "cache")), ContextConfig())
    assert torch.equal(loaded.model(IDS).logits, measured[0]), "what is measured is what is saved"
    assert loaded.tokenizer.eos_token == END_TOKEN
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id
    assert loaded.model.config.max_position_embeddings == SMALL.num_context_tokens

    summary = result.artifacts.summary()
    assert summary["num_parameters"] == loaded.model.num_parameters()
    assert (summary["num_passages"], summary["num_passages_held_out"], summary["num_steps"]) == (57, 3, 5)
    assert all(0 <= summary[f"copy_accuracy_{length}"] <= 1 for length in (256, 512, 1024))
    assert summary["train_tokens_per_s"] == pytest.approx(summary["num_tokens"] / summary["training_s"])
    log = [json.loads(line) for line in (folder / stage.TRAINING_LOG).read_text().splitlines()]
    assert [point["step"] for point in log] == list(range(5))
    assert summary["answer_loss"] == log[-1]["answer_loss"]
    card = json.loads((folder / stage.CARD).read_text())
    assert (card["seed"], card["text_loss"]) == (0, summary["text_loss"])
    assert recorder.metric_history(result.run_id)

    again = stage.run(config(), recorder)
    assert again.run_id == result.run_id
    assert len(measured) == 1


def test_equal_runs_give_equal_bytes_and_another_seed_others(
    config: Callable[..., PretrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "copy_accuracy", lambda *_args, **_options: {})
    results = [stage.run(config(seed=seed), FolderRecorder(tmp_path / name)) for name, seed in (("a", 0), ("b", 0))]
    other = stage.run(config(seed=1), FolderRecorder(tmp_path / "a"))
    digests = [result.artifacts.content_digest for result in (*results, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"passages_file must be an existing file"),
        ("", r"passages_file must have at least one row, got <0 rows>"),
        ('{"title": "t"}\n', r"passages_file\.text must be given, got <nothing>"),
        ("text\n", r"passages_file must hold one JSON object a line, got 'text'"),
    ],
)
def test_bad_passages_are_named(
    config: Callable[..., PretrainConfig], passages: Path, tmp_path: Path, text: str | None, match: str
) -> None:
    passages.unlink() if text is None else passages.write_text(text)
    with pytest.raises(InputError, match=match):
        stage.run(config(), FolderRecorder(tmp_path / "runs"))


def test_passages_to_check_on_are_looked_at_before_training(
    config: Callable[..., PretrainConfig], passages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"title": "short", "text": "too short to be asked about"}, *python_docs_rows()[:10]]
    passages.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(stage, "pretrain", lambda *_args, **_options: pytest.fail("trained first"))
    with pytest.raises(InputError, match=r"passages must hold one that is long enough, got <1 passages>"):
        stage.run(config(), FolderRecorder(tmp_path / "runs"))


def test_passages_must_be_given() -> None:
    with pytest.raises(InputError, match=r"passages_file must be given, got ''\. Name a JSONL file"):
        PretrainConfig(passages_file="")
