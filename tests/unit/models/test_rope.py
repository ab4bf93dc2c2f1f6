"""Context extension: frequencies by their equations, computed here from nothing, and what a model cannot do."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECODERS, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import InputError
from rhstudy.models.load import load_model
from rhstudy.models.rope import apply_context, require_rotation

NATIVE, DIM, THETA = 256, 8, 1e4  # of the tiny llama: max_position_embeddings, head size, base


def built(context: ContextConfig, family: str = "llama") -> torch.nn.Module:
    config = copy.deepcopy(DECODERS[family])
    apply_context(config, context, family)
    model = AutoModelForCausalLM.from_config(config)
    require_rotation(model, context, family)
    return model


def frequencies(theta: float = THETA, dim: int = DIM) -> torch.Tensor:
    return torch.tensor([theta ** (-2 * pair / dim) for pair in range(dim // 2)])


def yarn(factor: float) -> torch.Tensor:
    """arXiv 2309.00071: pairs that turn more than 32 times over the native context stay, fewer than once are slowed."""

    def pair_of(turns: float) -> float:
        return DIM * math.log(NATIVE / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(0, math.floor(pair_of(32))), min(DIM - 1, math.ceil(pair_of(1)))
    ramp = [min(1.0, max(0.0, (pair - low) / (high - low))) for pair in range(DIM // 2)]
    plain = frequencies()
    return torch.stack([f * (1 - r) + f / factor * r for f, r in zip(plain, ramp, strict=True)])


@pytest.mark.parametrize(
    ("context", "expected", "attention"),
    [
        (ContextConfig(), frequencies(), 1.0),
        (ContextConfig(rope_theta=5e5), frequencies(5e5), 1.0),
        (ContextConfig(scaling="linear", factor=4.0), frequencies() / 4, 1.0),
        (ContextConfig(scaling="linear", factor=4.0, rope_theta=5e5), frequencies(5e5) / 4, 1.0),
        (ContextConfig(scaling="ntk", factor=4.0), frequencies(THETA * 4 ** (DIM / (DIM - 2))), 1.0),
        (ContextConfig(scaling="yarn", factor=4.0), yarn(4.0), 0.1 * math.log(4.0) + 1),
    ],
    ids=lambda value: value.label if isinstance(value, ContextConfig) else "",
)
def test_frequencies_follow_the_equations(context: ContextConfig, expected: torch.Tensor, attention: float) -> None:
    rotary = built(context).model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, expected, rtol=1e-5, atol=1e-9)
    assert rotary.attention_scaling == pytest.approx(attention)


def test_ntk_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    found = built(ContextConfig(scaling="ntk", factor=8.0)).model.rotary_emb.inv_freq
    assert float(found[0]) == 1.0
    assert float(frequencies()[-1] / found[-1]) == pytest.approx(8.0, rel=1e-5)


def test_a_part_of_a_head_rotates_by_its_own_size() -> None:
    config = copy.deepcopy(DECODERS["gpt_neox"])
    config.rope_parameters["partial_rotary_factor"] = 0.5
    apply_context(config, ContextConfig(scaling="ntk", factor=4.0), "gpt_neox")
    found = AutoModelForCausalLM.from_config(config).gpt_neox.rotary_emb.inv_freq
    torch.testing.assert_close(found, frequencies(THETA * 4**2, dim=4))  # 4^(4/(4-2))


def test_two_rotated_dimensions_have_no_ntk() -> None:
    with pytest.raises(InputError, match=r"context\.scaling must be ntk where heads rotate more than two dimensions"):
        built(ContextConfig(scaling="ntk", factor=4.0), "gpt_neox")  # a quarter of 8


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_positions_turn_alike_in_a_longer_batch(scaling: str) -> None:
    model = built(ContextConfig(scaling=scaling, factor=4.0)).eval()
    ids = torch.arange(3, 43)[None].repeat(1, 10)  # 400 tokens, beyond the native 256
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :100], model(ids[:, :100]).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_a_loaded_model_is_extended_and_its_digest_says_so(tmp_path: Path, scaling: str) -> None:
    tiny_model("llama").model.save_pretrained(tmp_path / "llama")
    word_tokenizer().save_pretrained(tmp_path / "llama")
    config = ModelConfig(name=str(tmp_path / "llama"), device="cpu", cache_dir=str(tmp_path / "cache"))
    plain, extended = (load_model(config, ContextConfig(**c)) for c in ({}, {"scaling": scaling, "factor": 2.0}))
    assert extended.model.config.max_position_embeddings == 2 * plain.model.config.max_position_embeddings
    other = load_model(config, ContextConfig(scaling=scaling, factor=3.0))
    assert len({plain.digest, extended.digest, other.digest}) == 3
    ids = torch.arange(3, 40)[None]
    assert not torch.allclose(plain.model(ids).logits, extended.model(ids).logits)


@pytest.mark.parametrize(
    ("family", "context", "text"),
    [
        ("gpt2", {"rope_theta": 1e5}, r"context\.rope_theta must fit a model with rotary positions, got <gpt2 without"),
        ("gpt2", {"scaling": "yarn", "factor": 2.0}, r"context\.scaling must fit a model with rotary positions"),
        ("gemma3", {"rope_theta": 1e5}, r"context\.rope_theta must fit a model with one set of rotary positions, got"),
        ("gemma3", {"scaling": "ntk", "factor": 2.0}, r"context\.scaling must fit a model with one set of rotary"),
    ],
)
def test_models_that_cannot_be_extended_so(family: str, context: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        built(ContextConfig(**context), family)


def test_scaled_positions_are_not_scaled_again_but_take_another_theta() -> None:
    config = copy.deepcopy(DECODERS["llama"])
    config.rope_parameters |= {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(InputError, match=r"context\.scaling must scale plain rotary positions, got <llama with linear"):
        apply_context(config, ContextConfig(scaling="yarn", factor=2.0), "llama")
    apply_context(config, ContextConfig(rope_theta=5e5), "llama")
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}


def test_a_model_that_does_not_look_at_its_rope_parameters_is_refused() -> None:
    model = built(ContextConfig())
    with pytest.raises(InputError, match=r"context\.scaling must be rope of type yarn in the model, got <llama with"):
        require_rotation(model, ContextConfig(scaling="yarn", factor=2.0), "llama")
    with pytest.raises(InputError, match=r"context\.rope_theta must be the model's base frequency once loaded"):
        require_rotation(model, ContextConfig(rope_theta=5e5), "llama")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rope_theta": 0.5}, r"context\.rope_theta must be 0 \(as shipped\) or at least 1, got 0\.5"),
        ({"rope_theta": math.nan}, r"context\.rope_theta must be 0 \(as shipped\) or at least 1, got nan"),
        ({"factor": 2.0}, r"context\.factor must be 1 with scaling theta, got 2\.0"),
        ({"scaling": "yarn"}, r"context\.factor must lie in \(1, 1024\] with scaling yarn, got 1\.0"),
        (
            {"scaling": "linear", "factor": math.inf},
            r"context\.factor must lie in \(1, 1024\] with scaling linear",
        ),
        ({"scaling": "ntk", "factor": 2.0, "rope_theta": 1e5}, r"context\.rope_theta must be 0 with scaling ntk"),
    ],
)
def test_bad_settings(settings: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        ContextConfig(**settings)


def test_yarn_finds_the_size_of_heads_that_a_config_leaves_out() -> None:
    config = copy.deepcopy(DECODERS["mixtral"])
    config.head_dim = None
    context = ContextConfig(scaling="yarn", factor=2.0)
    apply_context(config, context, "mixtral")
    model = AutoModelForCausalLM.from_config(config)
    require_rotation(model, context, "mixtral")
    assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


@pytest.mark.parametrize(
    "context",
    [
        {"rope_theta": 5e5},
        {"scaling": "ntk", "factor": 4.0},
        {"scaling": "linear", "factor": 4.0, "rope_theta": 5e5},
        {"scaling": "yarn", "factor": 4.0},
    ],
)
def test_a_class_that_ignores_its_rope_parameters_is_refused(context: dict[str, Any]) -> None:
    wanted = ContextConfig(**context)
    model = built(wanted)
    require_rotation(model, wanted, "llama")
    model.model.rotary_emb.inv_freq.copy_(built(ContextConfig()).model.rotary_emb.inv_freq)
    with pytest.raises(InputError, match="whose frequencies do not follow it"):
        require_rotation(model, wanted, "llama")
