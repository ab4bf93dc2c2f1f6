"""Every decoder family on a GPU: the hits of a CPU in float32, exact argmax in two bytes, models in several parts.

python -m pytest tests/gpu -m gpu
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from contracts.decoder_runs import (
    MAX_NEW,
    Slow,
    examples,
    layers_of,
    model_of,
    observed_logits,
    scores_of,
    share_of_exact_argmax,
    slow_of,
    spread,
)
from tiny_models import DECODERS, tiny_model

from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import prefill
from rhstudy.models.load import LoadedModel
from rhstudy.types import Example

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
SPREAD = ["llama", "mistral", "qwen3", "gpt_neox", "gemma3", "mixtral"]


def on_gpu(family: str) -> LoadedModel:
    loaded = tiny_model(family)
    return dataclasses.replace(loaded, model=loaded.model.to("cuda"))


def assert_hits_but_for_ties(loaded: LoadedModel, expected: Slow, mode: str, layout: str) -> None:
    """Another device rounds otherwise: where two logits tie within that, one hit of a head may fall the other way."""
    found = scores_of(loaded, expected.examples, mode, layout)
    # A decoded word may fall the other way too (two logits at a final softcap tie): then another answer was watched.
    same = np.array([mode != "decode" or says_the_same(loaded, example) for example in expected.examples])
    assert same.sum() >= len(same) / 2
    assert np.sum(~np.isclose(found, expected.scores, equal_nan=True)[same]) <= 1


def says_the_same(loaded: LoadedModel, example: Example) -> bool:
    """Whether the model says on its device what it said on the CPU: the gold answer of a decode example."""
    start = prefill(loaded.model, pad_batch([example.prompt_ids], [[]], 0, loaded.model.device))
    said = greedy(loaded.model, start, max_new_tokens=MAX_NEW, stop_ids=frozenset({2}))[0]
    return tuple(said or (3,)) == example.answer_ids


@pytest.mark.parametrize("layout", ["one by one", "padded and chunked"])
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
@pytest.mark.parametrize("family", DECODERS)
def test_float32_hits_are_those_of_nested_loops_on_a_cpu(family: str, mode: str, layout: str) -> None:
    assert_hits_but_for_ties(on_gpu(family), slow_of(family, mode), mode, layout)


@pytest.mark.parametrize("family", DECODERS)
def test_float32_argmax_is_the_cpu_s(family: str) -> None:
    cpu, gpu = observed_logits(model_of(family).model, 0)[1], observed_logits(on_gpu(family).model, 0)[1]
    assert float((cpu == gpu).double().mean()) >= 0.99


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", DECODERS)
def test_the_argmax_is_that_of_the_queries_and_keys_the_model_used(family: str, dtype: torch.dtype, chunk: int) -> None:
    same, close = share_of_exact_argmax(on_gpu(family).model.to(dtype), chunk)
    assert close == 1
    assert same > 0.98, "positions that rounding decides are few"


def devices_of(loaded: LoadedModel) -> list[str]:
    """Where each layer computed, seen from its own output."""
    seen: list[str] = []

    def note(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append(str((output if isinstance(output, torch.Tensor) else output[0]).device))

    hooks = [
        layer.get_submodule(name.rpartition(".")[2]).register_forward_hook(note)
        for layer, name in zip(layers_of(loaded.model), loaded.layout.attention_names, strict=True)
    ]
    with torch.inference_mode():
        loaded.model(torch.tensor([examples()[0].prompt_ids], device=loaded.model.device))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
@pytest.mark.parametrize("family", SPREAD)
def test_a_model_on_the_cpu_and_a_gpu_at_once_has_the_hits_of_one_device(family: str, mode: str) -> None:
    loaded = spread(tiny_model(family), "cpu", 0)
    assert devices_of(loaded) == ["cpu", "cuda:0", "cuda:0"]
    assert_hits_but_for_ties(loaded, slow_of(family, mode), mode, "padded and chunked")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two CUDA devices are needed")
@pytest.mark.parametrize("mode", ["teacher_forced", "decode"])
@pytest.mark.parametrize("family", SPREAD)
def test_a_model_on_two_gpus_has_the_hits_of_one_device(family: str, mode: str) -> None:
    loaded = spread(tiny_model(family), 0, 1)
    assert devices_of(loaded) == ["cuda:0", "cuda:1", "cuda:1"]
    assert_hits_but_for_ties(loaded, slow_of(family, mode), mode, "padded and chunked")
