"""Tiny random decoders of several families, and hand-made examples for them."""

from __future__ import annotations

import copy

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel
from rhstudy.types import Example, Needle, Span

VOCABULARY = 50
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_COMMON, num_key_value_heads=2),
    "qwen2": Qwen2Config(**_COMMON, num_key_value_heads=1),
    "mistral": MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=24),
    "gpt_neox": GPTNeoXConfig(**_COMMON),
}
"""Four unlike families for tests that need some variety."""

_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_WINDOW = {**_GROUPED, "head_dim": 8, "sliding_window": 24}
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
DECODERS: dict[str, PretrainedConfig] = {
    **FAMILIES,
    "llama_mha": LlamaConfig(**_COMMON, num_key_value_heads=4),
    "llama_mqa": LlamaConfig(**_COMMON, num_key_value_heads=1),
    "qwen2_window": Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=24, max_window_layers=1),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**_WINDOW, attn_logit_softcapping=1.0, query_pre_attn_scalar=16, layer_types=_ALTERNATING),
    "gemma3": Gemma3TextConfig(**_WINDOW, query_pre_attn_scalar=16, layer_types=_ALTERNATING),
    "phi3": Phi3Config(**_GROUPED, sliding_window=24),
    "olmo2": Olmo2Config(**_GROUPED),
    "olmo3": Olmo3Config(**_GROUPED, sliding_window=24, layer_types=_ALTERNATING),
    "smollm3": SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0, 1]),
    "granite": GraniteConfig(**_GROUPED, attention_multiplier=0.5),
    "glm4": Glm4Config(**_GROUPED, head_dim=8),
    "starcoder2": Starcoder2Config(**_GROUPED, sliding_window=24),
    "cohere2": Cohere2Config(**_WINDOW, layer_types=_ALTERNATING),
    "gpt2": GPT2Config(**{**_COMMON, "n_inner": 64}),
    "llama4": Llama4TextConfig(
        **_GROUPED,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=24,
        interleave_moe_layer_step=2,
    ),
    "mixtral": MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(**_GROUPED, head_dim=8, num_experts=4, **_MOE),
    "deepseek_v3": DeepseekV3Config(
        **_COMMON,
        **_MLA,
        **_MOE,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}
"""Every kind of decoder the attention registry serves, at least once."""


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is w3..w49 plus pad, begin and end."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, VOCABULARY)}}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_model(family: str, seed: int = 0) -> LoadedModel:
    """A random model with peaked attention (weights scaled up, so that argmax differs between heads)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(DECODERS[family]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_norm.weight", "k_norm.weight")):
                    parameter.add_(2)  # a norm undoes the scale of what it is given
                elif any(part in name for part in ("proj", "query_key_value", "c_attn")):
                    parameter.mul_(8)
    model.train(False)
    return LoadedModel(
        model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label=family, digest=f"{family}-{seed}"
    )


def random_example(rng: np.random.Generator, index: int, length: int = 60, answer: int = 4) -> Example:
    """A prompt of random ids with a needle that contains the answer twice-spelled tokens included."""
    prompt = rng.integers(3, VOCABULARY, length).tolist()
    start = int(rng.integers(5, length - 20))
    span = Span(start, start + 15)
    place = start + int(rng.integers(0, 15 - answer))
    answer_ids = prompt[place : place + answer]
    needle = Needle(
        char_span=span, token_span=span, answer_char_span=span, answer_token_span=Span(place, place + answer)
    )
    return Example(
        example_id=f"example-{index}",
        task="mdqa",
        recipe="real",
        question="?",
        answers=("a",),
        prompt="p",
        answer=" a",
        needles=(needle,),
        prompt_ids=tuple(prompt),
        answer_ids=tuple(answer_ids),
    )
