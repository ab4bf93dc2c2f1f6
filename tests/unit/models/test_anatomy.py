"""Where heads are: layouts of every family, models inside PEFT wrappers, and a trial that leaves no trace."""

from __future__ import annotations

import pytest
import torch
from tiny_models import DECODERS, tiny_model
from transformers import AutoModelForCausalLM, CLIPVisionConfig, GPTBigCodeConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from rhstudy.errors import InputError
from rhstudy.models.anatomy import anatomy, attention_modules, base_model, require_observable

KEY_VALUE_HEADS = {"qwen2": 1, "llama_mqa": 1, "llama_mha": 4, "gpt_neox": 4, "gpt2": 4, "deepseek_v3": 4}


@pytest.mark.parametrize("family", DECODERS)
def test_layouts(family: str) -> None:
    layout = anatomy(tiny_model(family).model)
    assert (layout.num_layers, layout.num_heads, layout.num_total_heads, layout.hidden_size) == (3, 4, 12, 32)
    assert layout.num_kv_heads == KEY_VALUE_HEADS.get(family, 2)
    assert layout.head_dim == (16 if family == "deepseek_v3" else 8), "the size of a query, rotary part included"


@pytest.mark.parametrize("family", DECODERS)
def test_served_families_are_accepted_and_left_as_they_were(family: str) -> None:
    model = tiny_model(family).model
    ids, before = torch.arange(3, 40)[None], model.config._attn_implementation
    with torch.inference_mode():
        logits = model(ids).logits
        require_observable(model)
        assert torch.equal(model(ids).logits, logits)
    assert model.config._attn_implementation == before
    assert not model.training


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runs = tiny_model("llama").model, []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    require_observable(model)
    first = len(runs)
    require_observable(model)
    assert (first, len(runs)) == (4, 4)


def test_one_key_value_head_without_a_config_key_for_it() -> None:
    config = GPTBigCodeConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    assert anatomy(AutoModelForCausalLM.from_config(config)).num_kv_heads == 1


def test_the_decoder_of_a_vision_language_model() -> None:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = Llava(LlavaConfig(vision_config=vision, text_config=DECODERS["llama"], image_token_index=49))
    require_observable(model.train(False))
    layout = anatomy(model)
    assert (layout.num_layers, layout.num_heads, layout.num_kv_heads) == (3, 4, 2)
    assert layout.attention_names[0] == "model.language_model.layers.0.self_attn"


def test_the_model_inside_a_lora_wrapper() -> None:
    from peft import LoraConfig, get_peft_model

    plain = tiny_model("llama").model
    layout, wrapped = anatomy(plain), get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    assert base_model(wrapped) is plain
    assert base_model(plain) is plain
    assert anatomy(wrapped) == layout
    assert [name for name, _ in attention_modules(wrapped).values()] == list(layout.attention_names)
    require_observable(wrapped)


def test_virtual_tokens_are_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(tiny_model("llama").model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match=r"model must adapt weights, not prompts, got <PeftModelForCausalLM with virt"):
        require_observable(wrapped)
