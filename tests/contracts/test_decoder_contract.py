"""What must hold for every decoder family that is not refused: the observer sees exactly what the model does."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from contracts.decoder_runs import (
    LAYOUTS,
    Slow,
    assert_same_hits,
    examples,
    layers_of,
    model_of,
    observed_logits,
    plain_logits,
    scores_of,
    share_of_exact_argmax,
    slow,
    slow_of,
    spread,
)
from tiny_models import DECODERS, tiny_model, word_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rhstudy.models.anatomy import anatomy, base_model
from rhstudy.models.load import LoadedModel

SOFTCAPPED = {family for family, config in DECODERS.items() if getattr(config, "attn_logit_softcapping", None)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
@pytest.mark.parametrize("family", DECODERS)
def test_hits_are_those_of_nested_loops_over_eager_attention(family: str, mode: str, layout: str) -> None:
    assert_same_hits(model_of(family), slow_of(family, mode), mode, layout)


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("family", [family for family in DECODERS if family not in SOFTCAPPED])
def test_an_observed_model_is_the_plain_sdpa_model_bit_for_bit(family: str, chunk: int) -> None:
    model = tiny_model(family).model
    assert torch.equal(plain_logits(model, "sdpa", chunk), observed_logits(model, chunk)[0])


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("family", sorted(SOFTCAPPED))
def test_an_observed_model_with_a_softcap_is_the_eager_model(family: str, chunk: int) -> None:
    model = tiny_model(family).model
    eager, observed = plain_logits(model, "eager", chunk), observed_logits(model, chunk)[0]
    assert float((observed - eager).abs().max() / eager.abs().max()) < 1e-5
    assert torch.equal(observed.argmax(dim=-1), eager.argmax(dim=-1))


@pytest.mark.parametrize("family", sorted(SOFTCAPPED))
def test_the_softcap_of_these_tests_matters(family: str) -> None:
    model = tiny_model(family).model
    with_cap = plain_logits(model, "eager", 0)
    for module in model.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = None
    assert float((plain_logits(model, "eager", 0) - with_cap).abs().max() / with_cap.abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("dtype", "chunk"), [(torch.float32, 16), (torch.bfloat16, 0), (torch.bfloat16, 16), (torch.float16, 16)]
)
@pytest.mark.parametrize("family", DECODERS)
def test_the_argmax_is_that_of_the_queries_and_keys_the_model_used(family: str, dtype: torch.dtype, chunk: int) -> None:
    same, close = share_of_exact_argmax(tiny_model(family).model.to(dtype), chunk)
    assert close == 1
    assert same > 0.98, "positions that rounding decides are few"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "phi3"])
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_hits_of_a_model_in_four_bits_are_those_of_its_own_eager_attention(family: str, mode: str, tmp_path) -> None:
    tiny_model(family).model.save_pretrained(tmp_path)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=options, device_map={"": "cpu"})
    attention = model.get_submodule(anatomy(model).attention_names[0])
    assert {type(module).__name__ for module in attention.modules()} >= {"Linear4bit"}
    loaded = loaded_from(model.train(False), family)
    expected = slow(loaded, mode)
    for layout in LAYOUTS:
        assert_same_hits(loaded, expected, mode, layout)


def loaded_from(model, label: str) -> LoadedModel:
    return LoadedModel(model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label=label, digest=label)


def with_random_lora(family: str) -> LoadedModel:
    """The decoder inside a PEFT model; its adapters are inside its own layers."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model(family)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    wrapped = get_peft_model(base.model, config).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return loaded_from(base_model(wrapped.train(False)), f"{family} with LoRA")


def merged(loaded: LoadedModel) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "merge"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    assert not any("lora" in name for name, _ in model.named_parameters())
    return dataclasses.replace(loaded, model=model)


@functools.cache
def slow_of_merged(family: str, mode: str) -> Slow:
    return slow(merged(with_random_lora(family)), mode)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
def test_a_model_dispatched_over_devices_has_the_hits_of_one_in_one_piece(family: str, mode: str) -> None:
    """Here every part is on the CPU, which leaves what moves data between parts; `tests/gpu` has unlike devices."""
    loaded = spread(tiny_model(family), "cpu", "cpu")
    assert all(hasattr(layer, "_hf_hook") for layer in layers_of(loaded.model))
    assert_same_hits(loaded, slow_of(family, mode), mode, "padded and chunked")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3"])
def test_a_lora_wrapped_model_has_the_hits_of_the_merged_one(family: str, mode: str, layout: str) -> None:
    loaded = with_random_lora(family)
    assert loaded.layout == anatomy(model_of(family).model)
    assert_same_hits(loaded, slow_of_merged(family, mode), mode, layout)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_lora_changes_the_hits(family: str) -> None:
    tuned = scores_of(with_random_lora(family), examples(), "teacher_forced", "one by one")
    base = scores_of(model_of(family), examples(), "teacher_forced", "one by one")
    assert not np.array_equal(tuned, base)
