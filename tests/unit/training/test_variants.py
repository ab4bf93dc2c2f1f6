"""Every way to train: what moves, that checkpoints give back the very logits, and that killed runs end bit-equal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_hub import write_checkpoint
from tiny_models import FAMILIES, random_example, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import InputError, StudyError
from rhstudy.models.load import LoadedModel, load_model
from rhstudy.seeding import generator
from rhstudy.training.config import TrainingConfig, require_processes, require_trainable
from rhstudy.training.loop import TrainingResult, finetune
from rhstudy.training.state import STATE_FILE
from rhstudy.types import Example

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("none", {}),
    "attention, quantised rest": ("4bit", {}),
    "attention, 8-bit AdamW": ("none", {"optimizer": "adamw_8bit"}),
    "lora": ("none", {"method": "lora", "lora_rank": 4}),
    "lora on all": ("none", {"method": "lora", "lora_targets": "all"}),
    "qlora": ("nf4", {"method": "lora", "lora_rank": 4, "optimizer": "adamw_8bit"}),
}
BASE = {"batch_size": 3, "num_epochs": 2, "save_every_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with rows long enough for 4-bit blocks (64 weights) and matrices for 8-bit moments (4,096)."""
    target = tmp_path_factory.mktemp("wide") / "wide-llama"
    changes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    config = LlamaConfig(**{**FAMILIES["llama"].to_dict(), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(target)
    word_tokenizer().save_pretrained(target)
    return target


def examples(number: int = 10) -> list[Example]:
    return [random_example(generator(3, "train", i), i, length=30 + 3 * i, answer=1 + i % 4) for i in range(number)]


def held(folder: Path, quantization: str = "none", dtype: str = "float32") -> ModelConfig:
    return ModelConfig(
        name=str(folder), device="cpu", dtype=dtype, quantization=quantization, cache_dir=str(folder.parent / "cache")
    )


def trained(
    folder: Path, variant: str, work: Path, dtype: str = "float32", on_step: Any = None
) -> tuple[LoadedModel, TrainingResult, ModelConfig]:
    quantization, changes = VARIANTS[variant]
    config = held(folder, quantization, dtype)
    loaded = load_model(config, ContextConfig())
    settings = TrainingConfig(**{**BASE, **changes})
    options = {} if on_step is None else {"on_step": on_step}
    return loaded, finetune(loaded, examples(), settings, seed=1, work_dir=work, **options), config


def adapter_of(variant: str) -> dict[str, int] | None:
    changes = VARIANTS[variant][1]
    return {"rank": int(changes.get("lora_rank", 16)), "alpha": 32} if "method" in changes else None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_gives_back_the_very_logits(folder: Path, tmp_path: Path, variant: str, dtype: str) -> None:
    loaded, result, config = trained(folder, variant, tmp_path / "work", dtype)
    assert result.losses[-1] < result.losses[0]
    checkpoint = write_checkpoint(tmp_path / "checkpoint", result.weights, config, adapter_of(variant))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = loaded.model(ids).logits
        untuned = load_model(config, ContextConfig()).model(ids).logits
        found = load_model(config, ContextConfig(), checkpoint)
        assert torch.equal(found.model(ids).logits, expected)
    assert not torch.allclose(expected, untuned, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert found.digest != load_model(config, ContextConfig()).digest


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "attention"])
def test_killed_at_any_step_and_resumed_ends_bit_equal(folder: Path, tmp_path: Path, variant: str) -> None:
    class KilledError(Exception):
        pass

    def killer(at: int) -> Any:
        def kill(step: int, _metrics: object) -> None:
            if step == at:
                raise KilledError

        return kill

    _, whole, _ = trained(folder, variant, tmp_path / "whole")
    for at in (1, 4, 6):
        work = tmp_path / f"killed-{at}"
        with pytest.raises(KilledError):
            trained(folder, variant, work, on_step=killer(at))
        assert (work / STATE_FILE).is_file() == (at >= 2)
        _, resumed, _ = trained(folder, variant, work)
        assert resumed.losses == whole.losses
        assert set(resumed.weights) == set(whole.weights)
        assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())


@pytest.mark.parametrize("variant", ["attention", "lora", "qlora"])
def test_a_frozen_parameter_that_moved_ends_the_run(folder: Path, tmp_path: Path, variant: str) -> None:
    quantization, changes = VARIANTS[variant]
    loaded = load_model(held(folder, quantization), ContextConfig())
    layer = loaded.model.model.layers[1]

    def nudge(step: int, _metrics: object) -> None:
        if step == 2:  # what an optimizer over the wrong parameters would do
            weight = layer.mlp.up_proj.weight
            with torch.no_grad():
                weight.view(-1)[:1] += 1

    with pytest.raises(StudyError, match="frozen parameters must stay as they were"):
        finetune(loaded, examples(), TrainingConfig(**{**BASE, **changes}), seed=1, work_dir=tmp_path, on_step=nudge)


def test_adapters_start_as_nothing_and_from_the_seed(folder: Path, tmp_path: Path) -> None:
    settings = TrainingConfig(method="lora", learning_rate=1e-9)
    ids = torch.arange(3, 40)[None]
    plain = load_model(held(folder), ContextConfig())
    with torch.no_grad():
        expected = plain.model(ids).logits
    weights = []
    for seed in (1, 1, 2):
        loaded = load_model(held(folder), ContextConfig())
        result = finetune(loaded, examples(3), settings, seed=seed, work_dir=tmp_path / f"{len(weights)}")
        weights.append(result.weights)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-5, rtol=0)
    downs = [name for name in weights[0] if ".lora_A." in name]
    assert len(downs) == 3 * 4  # three layers of q, k, v and o
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in downs)
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in downs)


def test_peft_itself_reads_the_adapter_folder(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    loaded, result, config = trained(folder, "lora", tmp_path / "work")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", result.weights, config, {"rank": 4, "alpha": 32})
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, checkpoint)(ids).logits
        assert torch.equal(found, loaded.model(ids).logits)


def test_an_adapter_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    _, result, config = trained(folder, "lora", tmp_path / "work")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", result.weights, config, {"rank": 4, "alpha": 32})
    with pytest.raises(InputError, match=r"model\.quantization must be none as in training, got 'nf4'"):
        load_model(held(folder, "nf4"), ContextConfig(), checkpoint)
    with pytest.raises(InputError, match=r"context must be scaling theta, factor 1\.0 as in training, got 'yarn x2'"):
        load_model(config, ContextConfig(scaling="yarn", factor=2.0), checkpoint)
    kept = dict(list(result.weights.items())[:-2])
    save_file({f"base_model.model.{k.replace('.default', '')}": v for k, v in kept.items()},
              checkpoint / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(InputError, match="checkpoint must hold the very layers of its adapter"):
        load_model(config, ContextConfig(), checkpoint)


@pytest.mark.parametrize(
    ("model", "training", "text"),
    [
        ({"dtype": "float16"}, {}, r"model\.dtype must be bfloat16 or float32 for training, got 'float16'"),
        ({"quantization": "nf4"}, {}, r"model\.quantization must leave attention alone when it is trained whole"),
        (
            {},
            {"optimizer": "paged_adamw_8bit"},
            r"training\.optimizer must be adamw or adamw_8bit on a CPU",
        ),
    ],
)
def test_what_cannot_be_trained(model: Mapping[str, Any], training: Mapping[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        require_trainable(ModelConfig(device="cpu", **model), TrainingConfig(**training))


@pytest.mark.parametrize(
    ("model", "training", "text"),
    [
        (
            {"quantization": "nf4"},
            {"method": "lora"},
            r"model\.quantization must be none with training\.num_processes 2",
        ),
        ({}, {"optimizer": "adamw_8bit"}, r"training\.optimizer must be adamw with training\.num_processes 2"),
        ({}, {"packing": True}, r"training\.packing must be off with training\.num_processes 2"),
    ],
)
def test_what_several_processes_cannot_train(model: Mapping[str, Any], training: Mapping[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        require_processes(ModelConfig(device="cpu", **model), TrainingConfig(num_processes=2, **training))


def test_float16_is_refused_by_the_loop_too(tmp_path: Path) -> None:
    loaded = tiny_model("llama")
    loaded.model.half()
    with pytest.raises(InputError, match=r"model\.dtype must be bfloat16 or float32 for training, got 'float16'"):
        finetune(loaded, examples(), TrainingConfig(), seed=0, work_dir=tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("lora_rank", 0, "training.lora_rank must be at least 1, got 0"),
        ("lora_rank", 2000, "training.lora_rank must be at most 1024, got 2000"),
        ("lora_alpha", 0, r"training.lora_alpha must lie in \[1, 10000\], got 0"),
        ("micro_batch_size", -1, "training.micro_batch_size must be at least 0, got -1"),
    ],
)
def test_bad_settings(field: str, value: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainingConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"compile": "on"}, r"training\.packing must be off with training\.compile on, got True"),
        ({"gradient_checkpointing": "on"}, r"training\.packing must be off with training\.gradient_checkpointing on"),
    ],
)
def test_what_packing_is_not_combined_with(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainingConfig(packing=True, **changes)


def test_what_is_not_installed_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"training\.method must be used where PEFT is installed, got 'lora'"):
        trained(folder, "lora", tmp_path / "work")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"training\.optimizer must be installed, got 'adamw_8bit'"):
        trained(folder, "attention, 8-bit AdamW", tmp_path / "work")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"model\.quantization must be none where bitsandbytes is missing, got 'nf4'"):
        trained(folder, "qlora", tmp_path / "work")
