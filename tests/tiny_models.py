"""Tiny random decoders of several families, and hand-made examples for them."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
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


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is w3..w49 plus pad, begin and end."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, VOCABULARY)}}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_model(family: str, seed: int = 0) -> LoadedModel:
    """A random model with peaked attention (weights scaled up, so that argmax differs between heads)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(FAMILIES[family])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "proj" in name or "query_key_value" in name:
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
