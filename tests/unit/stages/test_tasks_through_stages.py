"""SummHay Citation and multi-hop questions from rows to head scores and marks, on the shipped model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from task_worlds import musique_row, topic, write_passages, write_rows

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.heads.files import load_scores
from rhstudy.stages import detect, evaluate, make_data
from rhstudy.stages.detect import DetectConfig, ScoringSettings
from rhstudy.stages.evaluate import EvaluateConfig
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.tracking.opening import open_recorder
from rhstudy.tracking.stage_run import StageResult

MODEL = ModelConfig(name="tiny")
CONTEXT = ContextConfig(rope_theta=3e5)


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    monkeypatch.chdir(tmp_path)
    return TrackingConfig(recorder="folder", work_dir=str(tmp_path / "work"))


def built(data: DataConfig, tracking: TrackingConfig) -> StageResult:
    return make_data.run(MakeDataConfig(data=data, model=MODEL, tracking=tracking), open_recorder(tracking))


def card_of(result: StageResult) -> dict[str, Any]:
    return dict(json.loads(result.artifacts.file(make_data.CARD).read_text(encoding="utf-8")))


def test_cited_documents(tmp_path: Path, tracking: TrackingConfig) -> None:
    rows = write_rows(tmp_path / "topics.jsonl", [topic(number) for number in range(4)])
    parts: dict[str, Any] = {"parts": ("score", "eval"), "num_score": 2, "num_eval": 2}
    data = built(DataConfig(task="summhay", train_file=rows, num_tokens=1500, **parts), tracking)
    page = data.artifacts.file(make_data.CARD_PAGE).read_text(encoding="utf-8")
    assert "Gold is annotated per document" in page
    assert card_of(data)["parts"]["eval"]["num_clusters"] == 2
    recorder, folder = open_recorder(tracking), str(data.artifacts.path)
    shared: dict[str, Any] = {"data": folder, "model": MODEL, "context": CONTEXT, "tracking": tracking}
    scored = detect.run(DetectConfig(**shared), recorder)
    scores = load_scores(scored.artifacts.path)
    assert scores.further["insight"].shape == scores.score.shape
    assert 0 <= scored.summary["max_mean_insight"] <= 1
    again = detect.run(DetectConfig(**shared), recorder)
    assert again.reused
    answered = evaluate.run(EvaluateConfig(**shared, answering=AnsweringSettings(max_new_tokens=4)), recorder)
    assert {"set_f1", "random_same_size", "cite_all"} <= set(answered.summary)
    predictions = evaluate.read_predictions(answered.artifacts.file(evaluate.PREDICTIONS))
    assert {item.cluster[:2] for item in predictions} < {"t0", "t1", "t2", "t3"}
    with answered.artifacts.file(evaluate.TABLE).open(encoding="utf-8", newline="") as stream:
        assert [row["cluster"] for row in csv.DictReader(stream)] == [item.cluster for item in predictions]
    assert all(0 < item.marks["cite_all"] < 1 for item in predictions)


def test_hops(tmp_path: Path, tracking: TrackingConfig) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [musique_row(number) for number in range(20)])
    passages = write_passages(tmp_path / "passages.jsonl")
    parts: dict[str, Any] = {"parts": ("score", "eval"), "num_score": 2, "num_eval": 2}
    config = DataConfig(task="musique", train_file=rows, passages_file=passages, num_tokens=1500, **parts)
    data = built(config, tracking)
    recorder, folder = open_recorder(tracking), str(data.artifacts.path)
    shared: dict[str, Any] = {"data": folder, "model": MODEL, "context": CONTEXT, "tracking": tracking}
    scoring = ScoringSettings(mode="attention_mass", top_k=3)
    scored = detect.run(DetectConfig(**shared, scoring=scoring), recorder)
    assert set(load_scores(scored.artifacts.path).further) == {"hop_1", "hop_2"}
    answered = evaluate.run(EvaluateConfig(**shared, answering=AnsweringSettings(max_new_tokens=4)), recorder)
    assert answered.summary["f1_2_needles"] == answered.summary["f1"]
