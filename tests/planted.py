"""A one-layer Llama whose heads are known by construction: one copies, one looks at a fixed position, two do nothing.

Tokens are one-hot in the residual stream. Head 0 asks for the token after its own (q(x) = key of x + 1), so where the
answer counts upwards it attends to the needle's copy of the token it must predict: a retrieval head. Head 1 attends to
the first token of the prompt whatever the query: a position head. Only RoPE's slowest dimensions are used, so positions
do not matter to head 0.

`planted_model` counts upwards by its LM head alone, so its answers do not need head 0. `copying_model` answers with
what head 0 copies and knows nothing else: without that head every logit is 0.
"""

from __future__ import annotations

import torch
from tiny_models import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rhstudy.models.anatomy import anatomy
from rhstudy.models.load import LoadedModel
from rhstudy.types import Example, Needle, Span

HEAD_DIM = 96
HIDDEN = 64
FIRST_TOKEN = 40
SLOW = 16
"""First of the dimensions that RoPE hardly turns; dimensions SLOW..47 pair with SLOW+48..95."""


def _one_layer(hidden_size: int, num_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=50,
        hidden_size=hidden_size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def planted_model() -> LoadedModel:
    """See the module docstring. Token ids 3..33 count; FIRST_TOKEN opens every prompt."""
    model = LlamaForCausalLM(_one_layer(HIDDEN, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
        model.model.layers[0].post_attention_layernorm.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        attention = model.model.layers[0].self_attn
        for token in range(50):
            model.model.embed_tokens.weight[token, token] = 1.0
        for token in range(3, 34):
            dim = SLOW + token - 3
            attention.k_proj.weight[dim, token] = 10.0  # kv head 0 serves heads 0 and 1
            attention.q_proj.weight[dim, token - 1] = 10.0  # head 0 asks for its successor
            model.lm_head.weight[token, token - 1] = 10.0  # greedy decoding counts upwards
        attention.k_proj.weight[HEAD_DIM - 1, FIRST_TOKEN] = 10.0
        attention.q_proj.weight[2 * HEAD_DIM - 1, :] = 10.0  # head 1 asks for the opening token, always
        model.lm_head.weight[2, 12] = 20.0  # after 12 comes the end token
    model.train(False)
    return LoadedModel(
        model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label="planted", digest="planted"
    )


def copying_model(num_heads: int = 8) -> LoadedModel:
    """A model of `num_heads` heads whose answer comes through head 0: its value is the token attended to.

    The other heads but head 1 attend evenly and, like head 1, put out values that o_proj ignores.
    """
    hidden = 2 * HIDDEN
    model = LlamaForCausalLM(_one_layer(hidden, num_heads))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = model.model.layers[0]
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        attention = layer.self_attn
        for token in range(50):
            model.model.embed_tokens.weight[token, token] = 1.0
            attention.v_proj.weight[token, token] = 1.0
            attention.o_proj.weight[HIDDEN + token, token] = 1.0  # head 0 alone reaches the residual stream
            model.lm_head.weight[token, HIDDEN + token] = 10.0
        for token in range(3, 34):
            dim = SLOW + token - 3
            attention.k_proj.weight[dim, token] = 10.0
            attention.q_proj.weight[dim, token - 1] = 10.0
        attention.k_proj.weight[HEAD_DIM - 1, FIRST_TOKEN] = 10.0
        attention.q_proj.weight[2 * HEAD_DIM - 1, :] = 10.0
        model.lm_head.weight[2, 12] = 200.0
    model.train(False)
    return LoadedModel(
        model=model, tokenizer=word_tokenizer(), layout=anatomy(model), label="copying", digest="copying"
    )


def planted_example(index: int = 0) -> Example:
    """Needle 8 9 10 11 12 among other tokens; the prompt ends in 9, the answer is 10 11 12."""
    filler = [20 + (place * 7 + index) % 13 for place in range(30)]
    start = 8 + index
    prompt = [FIRST_TOKEN, *filler[:start], 8, 9, 10, 11, 12, *filler[start:], 9]
    needle, answer = Span(start + 1, start + 6), Span(start + 3, start + 6)
    return Example(
        example_id=f"planted-{index}",
        task="mdqa",
        recipe="real",
        question="?",
        answers=("w10 w11 w12",),
        prompt=" ".join(f"w{token}" for token in prompt),
        answer=" w10 w11 w12",
        needles=(Needle(char_span=needle, token_span=needle, answer_char_span=answer, answer_token_span=answer),),
        prompt_ids=tuple(prompt),
        answer_ids=(10, 11, 12),
    )
