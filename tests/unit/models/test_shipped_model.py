"""The model `tiny` inside the package: small, loadable without a network, and with real retrieval heads."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.named import with_named_sources
from rhstudy.heads.detect import detect
from rhstudy.models.load import SHIPPED_MODELS, LoadedModel, load_model
from rhstudy.types import Example

NUM_ROWS = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    cache = tmp_path_factory.mktemp("cache")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return load_model(ModelConfig(name="tiny", device="cpu", cache_dir=str(cache)), ContextConfig())


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    config = DataConfig(
        task="cue_retrieval",
        train_file="python-docs",
        parts=("dev",),
        num_tokens=256,
        num_reserved_tokens=8,
        num_dev=NUM_ROWS,
    )
    return with_named_sources(config, tmp_path_factory.mktemp("docs"))


def dev_rows(config: DataConfig, loaded: LoadedModel, num_tokens: int) -> list[Example]:
    return build_dataset(dataclasses.replace(config, num_tokens=num_tokens), loaded.tokenizer).parts["dev"]


def best_score(loaded: LoadedModel, examples: list[Example]) -> float:
    scores = detect(loaded.model, loaded.tokenizer, examples, batch_size=8)
    assert not scores.unscored
    return float(np.max(scores.mean()))


def test_it_is_small(tiny: LoadedModel) -> None:
    config = tiny.model.config
    assert tiny.model.num_parameters() <= 3_200_000
    assert (SHIPPED_MODELS["tiny"] / "model.safetensors").stat().st_size <= 8 * 2**20
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == tiny.tokenizer.model_max_length == 256
    assert tiny.label == "tiny"
    assert {path.suffix for path in Path(SHIPPED_MODELS["tiny"]).iterdir()} <= {".json", ".safetensors", ".md"}


def test_it_retrieves_within_its_native_context(tiny: LoadedModel, docs: DataConfig) -> None:
    examples = dev_rows(docs, tiny, 256)
    assert len(examples) == NUM_ROWS
    assert best_score(tiny, examples) >= 0.5


def test_it_does_not_beyond_it_as_shipped(tiny: LoadedModel, docs: DataConfig) -> None:
    assert best_score(tiny, dev_rows(docs, tiny, 1024)) < 0.1
