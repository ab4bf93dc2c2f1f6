"""Base models lent from stage to stage: read once, given back as they were, never shared in a changed state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_hub import write_checkpoint
from tiny_models import random_example, tiny_model, word_tokenizer

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import InputError, StudyError
from rhstudy.keeping import keeping
from rhstudy.models import warm
from rhstudy.models.load import (
    LoadedModel,
    load_base,
    load_model,
)
from rhstudy.models.warm import lent_model
from rhstudy.seeding import generator
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import finetune

PLAIN = ContextConfig()
IDS = torch.arange(3, 40)[None]


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """A tiny llama in hub layout."""
    target = tmp_path / "tiny-llama"
    tiny_model("llama").model.save_pretrained(target)
    word_tokenizer().save_pretrained(target)
    return ModelConfig(name=str(target), cache_dir=str(tmp_path / "cache"), device="cpu")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[ContextConfig]:
    """Contexts of the bases that were read from files."""
    found: list[ContextConfig] = []

    def counted(config: ModelConfig, context: ContextConfig) -> LoadedModel:
        found.append(context)
        return load_base(config, context)

    monkeypatch.setattr(warm, "load_base", counted)
    return found


def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS).logits.detach().clone()


def _break(loaded: LoadedModel) -> None:
    torch.nn.init.zeros_(next(iter(loaded.model.parameters())))
    raise StudyError("broken")


def shifted_checkpoint(config: ModelConfig, target: Path) -> Path:
    loaded = load_model(config, PLAIN)
    weights = {name: value + 0.05 for name, value in loaded.model.named_parameters() if ".self_attn." in name}
    return write_checkpoint(target, weights, config)


def test_a_checkpoint_is_on_the_model_for_its_loan_alone(
    config: ModelConfig, tmp_path: Path, read: list[ContextConfig]
) -> None:
    folder = shifted_checkpoint(config, tmp_path / "checkpoint")
    plain, tuned = load_model(config, PLAIN), load_model(config, PLAIN, folder)
    with keeping():
        for checkpoint, expected in ((None, plain), (folder, tuned), (None, plain), (folder, tuned)):
            with lent_model(config, PLAIN, checkpoint) as loaded:
                assert torch.equal(logits(loaded), logits(expected))
                assert loaded.digest == expected.digest
    assert len(read) == 1


@pytest.mark.parametrize("method", ["attention", "lora"])
def test_training_leaves_nothing_behind(
    method: str, config: ModelConfig, tmp_path: Path, read: list[ContextConfig]
) -> None:
    rows = [random_example(generator(1, "warm", i), i, length=30, answer=2) for i in range(4)]
    settings = TrainingConfig(method=method, batch_size=2, learning_rate=0.05)
    plain = logits(load_model(config, PLAIN))
    trained = "attention" if method == "attention" else "adapters"
    with keeping():
        for number in range(2):
            with lent_model(config, PLAIN, trained=trained) as loaded:
                finetune(loaded, rows, settings, seed=0, work_dir=tmp_path / str(number))
                assert not torch.equal(logits(loaded), plain)
            with lent_model(config, PLAIN) as loaded:
                assert torch.equal(logits(loaded), plain)
                assert not any(value.requires_grad for value in loaded.model.parameters())
                assert not loaded.model.training
    assert len(read) == (1 if method == "attention" else 4)


def test_a_failed_loan_is_not_given_back(config: ModelConfig, read: list[ContextConfig]) -> None:
    with keeping():
        with pytest.raises(StudyError, match="broken"), lent_model(config, PLAIN) as loaded:
            _break(loaded)
        with lent_model(config, PLAIN) as loaded:
            assert torch.equal(logits(loaded), logits(load_model(config, PLAIN)))
    assert len(read) == 2


def test_another_context_is_another_base_and_one_is_kept(config: ModelConfig, read: list[ContextConfig]) -> None:
    raised = ContextConfig(rope_theta=1e6)
    with keeping():
        for context in (PLAIN, raised, raised, PLAIN):
            with lent_model(config, context) as loaded:
                assert torch.equal(logits(loaded), logits(load_model(config, context)))
    assert read == [PLAIN, raised, PLAIN]


def test_changed_weights_on_disk_are_read_again(config: ModelConfig, read: list[ContextConfig]) -> None:
    with keeping():
        with lent_model(config, PLAIN) as loaded:
            before = logits(loaded)
        model = tiny_model("llama").model
        torch.nn.init.constant_(model.lm_head.weight, 0.5)
        model.save_pretrained(config.name)
        with lent_model(config, PLAIN) as loaded:
            assert not torch.equal(logits(loaded), before)
    assert len(read) == 2


def test_outside_a_study_nothing_is_kept(config: ModelConfig, tmp_path: Path, read: list[ContextConfig]) -> None:
    for _ in range(2):
        with lent_model(config, PLAIN):
            pass
    assert len(read) == 2
    with pytest.raises(InputError, match="checkpoint must hold"), lent_model(config, PLAIN, tmp_path):
        pass
