"""Models whose attention cannot be observed exactly are refused, by name and with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from rhstudy.errors import InputError
from rhstudy.models.anatomy import require_observable

PLAIN: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
EIGHT = {**GROUPED, "head_dim": 8}
FOUR_LAYERS = {**EIGHT, "num_hidden_layers": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MOE = {"num_experts_per_tok": 1, "moe_intermediate_size": 32}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
SMALL_HEADS = {"decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32}

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    # name of the class without its ending: (ending, config, reason)
    "GptOss": ("ForCausalLM", {**EIGHT, "num_local_experts": 2}, "with attention sinks"),
    "T5": (
        "ForConditionalGeneration",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4},
        "be decoder-only",
    ),
    "Bart": (
        "ForConditionalGeneration",
        {"vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, **SMALL_HEADS},
        "be decoder-only",
    ),
    "Mamba": ("ForCausalLM", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, "heads"),
    "Rwkv": (
        "ForCausalLM",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2},
        "observable attention heads",
    ),
    "RecurrentGemma": ("ForCausalLM", {**GROUPED, "num_hidden_layers": 3, "lru_width": 32}, r"with layers \[2\]"),
    "Lfm2": ("ForCausalLM", {**GROUPED, "layer_types": ["conv", "full_attention"]}, r"with layers \[1\]"),
    "Jamba": (
        "ForCausalLM",
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
        "declares no support",
    ),
    "Qwen3Next": (
        "ForCausalLM",
        {**FOUR_LAYERS, **LINEAR, **MOE, "num_experts": 2, "shared_expert_intermediate_size": 32},
        "declares no support",
    ),
    "Bloom": ("ForCausalLM", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "declares no support"),
    "Falcon": ("ForCausalLM", {**PLAIN, "alibi": True}, "declares no support"),
    "Mpt": ("ForCausalLM", {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4}, "declares no support"),
    "DiffLlama": ("ForCausalLM", GROUPED, r"layer 0 \(DiffLlamaAttention\) computes 2 registered softmaxes"),
    "Doge": ("ForCausalLM", GROUPED, r"layer 0 \(DogeAttention\) adds numbers to its attention logits"),
    "DeepseekV32": (
        "ForCausalLM",
        {**PLAIN, **MLA, **MOE, "num_key_value_heads": 4, "n_routed_experts": 2, "n_group": 1, "topk_group": 1}
        | {"first_k_dense_replace": 1, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 16},
        "passes indices to its attention",
    ),
    "JetMoe": (
        "ForCausalLM",
        {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
        | {"kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 2},
        "with experts inside its attention",
    ),
    "HrmText": ("ForCausalLM", PLAIN, "with 2 for 16 layers"),
    "MiniMax": ("ForCausalLM", {**EIGHT, "num_local_experts": 2}, "cannot run a padded prompt and go on from a cache"),
    "Moshi": (
        "ForCausalLM",
        {key: value for key, value in GROUPED.items() if key != "intermediate_size"} | {"ffn_dim": 64},
        "sliding window that its code does not apply",
    ),
    "Llama": ("ForCausalLM", {**GROUPED, "sliding_window": 24}, "sliding window that its code does not apply"),
    "Roberta": ("ForCausalLM", {**PLAIN, "is_decoder": True}, "its positions do not count from 0"),
    "Bert": ("LMHeadModel", PLAIN, r"layer 0 \(BertSelfAttention\) is not causal"),
    "GPT2": ("LMHeadModel", {**PLAIN, "add_cross_attention": True}, "none of its numbered layers"),
    "Laguna": (
        "ForCausalLM",
        {**EIGHT, **MOE, "num_attention_heads_per_layer": [4, 2], "num_experts": 2}
        | {"shared_expert_intermediate_size": 32},
        "has 2 heads and 2 key/value heads where the model has 4 and 2",
    ),
    "Gemma3": ("ForCausalLM", {**EIGHT, "attn_logit_softcapping": 5.0}, "uses softcap None where the config says"),
    "Mllama": (
        "ForCausalLM",
        {**GROUPED, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "rope_parameters": ROPE},
        r"layer 1 \(MllamaTextCrossAttention\) computes 0 registered softmaxes",
    ),
    "Gemma4": (
        "ForCausalLM",
        {**EIGHT, "global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50},
        "with a head size per layer",
    ),
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "Gemma3": transformers.Gemma3TextConfig,
    "Gemma4": transformers.Gemma4TextConfig,
    "Mllama": MllamaTextConfig,
}


def build(name: str, ending: str, options: dict[str, Any]) -> PreTrainedModel:
    config = CONFIGS.get(name) or getattr(transformers, f"{name}Config")
    with torch.random.fork_rng():
        return getattr(transformers, name + ending)(config(**options)).train(False)


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name_with_the_reason(name: str) -> None:
    ending, options, reason = CASES[name]
    model = build(name, ending, options)
    before = model.config._attn_implementation
    with pytest.raises(InputError, match=f"model must .*{reason}") as caught:
        require_observable(model)
    assert f"{name}{ending}" in str(caught.value)
    assert model.config._attn_implementation == before


def test_a_refused_model_is_refused_again() -> None:
    model = build("DiffLlama", *CASES["DiffLlama"][:2])
    for _ in range(2):
        with pytest.raises(InputError, match="DiffLlamaForCausalLM"):
            require_observable(model)


def test_layers_that_leave_rows_out_are_refused() -> None:
    """Gemma 4 runs layers that share keys only for the rows whose logits are wanted."""
    options = {**FOUR_LAYERS, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50}
    types = ["sliding_attention", "full_attention"] * 2
    require_observable(build("Gemma4", "ForCausalLM", {**options, "layer_types": types}))
    model = build("Gemma4", "ForCausalLM", {**options, "layer_types": types, "num_kv_shared_layers": 2})
    with pytest.raises(InputError, match=r"Gemma4ForCausalLM: layer 2 .* runs 1 of the 6 rows of a pass"):
        require_observable(model)


def test_out_of_memory_is_not_a_property_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llama", "ForCausalLM", GROUPED)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        require_observable(model)


VARYING = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("rope", VARYING)
def test_rotations_that_change_with_the_length_are_refused(rope: str) -> None:
    config = LlamaConfig(**GROUPED, max_position_embeddings=256, rope_parameters=VARYING[rope])
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=rf"model must turn positions alike at every length .*with \['{rope}'\] rope"):
        require_observable(model.eval())


def test_an_offloaded_model_is_told_so() -> None:
    model = cpu_offload(AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED)).eval(), execution_device="cpu")
    with pytest.raises(InputError, match=r"model must have its weights on devices, got <\d+ offloaded, .* first>"):
        require_observable(model)
