"""Forks on a GPU: recorded steps say what direct ones say, and conditions at once what they say one at a time.

python -m pytest tests/gpu/test_forks_gpu.py -m gpu
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import DECODERS, random_example, tiny_model

from rhstudy.interventions.answering import answer_under, needle_spans
from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import MODES, knock_out_forks
from rhstudy.interventions.means import head_means
from rhstudy.models import graphs
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.cache import keeps_every_key
from rhstudy.models.decode import greedy
from rhstudy.models.forks import Forks, gold_forks, greedy_forks
from rhstudy.models.generate import from_last_token, gold_nll, prefix
from rhstudy.models.load import LoadedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

WHOLE = [name for name in DECODERS if keeps_every_key(tiny_model(name).model)]
HEADS = [(), ((0, 1), (1, 0), (2, 3)), ((1, 2),), ((0, 0), (0, 1), (0, 2), (0, 3)), ((2, 1), (1, 1))]
NO_STOP: frozenset[int] = frozenset()


def on_gpu(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    loaded = tiny_model(family)
    return dataclasses.replace(loaded, model=loaded.model.to("cuda", dtype))


def examples_of(num: int = 4) -> list:
    rng = np.random.default_rng(3)
    return [random_example(rng, index, length=60 + 9 * index, answer=2 + index) for index in range(num)]


def conditions(modes=MODES, scope="decode") -> list[Condition]:
    return [
        Condition(condition_id=f"{mode}{n}", kind="top", dose=len(heads), heads=heads, mode=mode, scope=scope)
        for mode in modes
        for n, heads in enumerate(HEADS)
    ]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (counted.append(1), replay(graph)))
    return counted


@pytest.mark.parametrize("family", WHOLE)
def test_recorded_forks_say_what_direct_ones_say(family: str, replays: list[int]) -> None:
    loaded, examples = on_gpu(family), examples_of()
    make_observable(loaded.model)
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * len(examples), 0, "cuda")
    knockouts = [(condition.heads, condition.mode) for condition in conditions()]
    with torch.inference_mode():
        means = head_means(loaded.model, [example.prompt_ids for example in examples])
        forks = Forks(loaded.model, prefix(loaded.model, batch), len(knockouts), 12)
        with knock_out_forks(loaded.model, knockouts, means=means, needles=needle_spans(examples, batch.pads)):
            direct = greedy_forks(forks, max_new_tokens=12, stop_ids=NO_STOP, recorded=False)
            assert not replays
            recorded = greedy_forks(forks, max_new_tokens=12, stop_ids=NO_STOP)
    routed = any("expert" in name for name in vars(loaded.model.config))  # which kernels run is known on the way only
    assert routed or len(replays) == 12, "every mode can be recorded"
    assert recorded == direct


@pytest.mark.parametrize("family", WHOLE)
def test_forks_are_conditions_one_at_a_time(family: str) -> None:
    loaded, examples = on_gpu(family), examples_of()
    means = head_means(loaded.model, [example.prompt_ids for example in examples])
    given = {"max_new_tokens": 10, "means": means}
    together = list(answer_under(loaded, examples, conditions(), **given))
    for condition, found in zip(conditions(), together, strict=True):
        (alone,) = answer_under(loaded, examples, [condition], **given)
        np.testing.assert_allclose(found.gold_nll, alone.gold_nll, atol=1e-4)
        same = sum(a == b for a, b in zip(found.generated, alone.generated, strict=True))
        assert same >= len(examples) - 1, "logits that tie within rounding may fall the other way"


def test_bfloat16_forks_are_those_one_at_a_time_within_rounding() -> None:
    """A random model of real depth and width: the loss differs by no more than bf16 rounding of its logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=576, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    model.train(False)
    make_observable(model)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 4096, 2000 - 37 * index).tolist() for index in range(6)]
    answers = [rng.integers(3, 4096, 5).tolist() for _ in prompts]
    batch = pad_batch(prompts, [[]] * len(prompts), 0, "cuda")
    knockouts = [([(layer, number % 9) for layer in range(number)], "zero_output") for number in range(12)]
    with torch.inference_mode():
        start = prefix(model, batch)
        with knock_out_forks(model, knockouts):
            losses = gold_forks(Forks(model, start, len(knockouts), 5), answers)
            said = greedy_forks(Forks(model, start, len(knockouts), 8), max_new_tokens=8, stop_ids=NO_STOP)
        same = []
        for (heads, mode), loss, texts in zip(knockouts, losses, said, strict=True):
            with knock_out_forks(model, [(heads, mode)]), from_last_token(model, start) as prompt:
                torch.testing.assert_close(gold_nll(model, prompt, answers), loss, atol=0.03, rtol=0.01)
                alone = greedy(model, prompt, max_new_tokens=8, stop_ids=NO_STOP)
            same += [a == b for a, b in zip(texts, alone, strict=True)]
    print(f"bf16: {np.mean(same):.2f} of texts are the same one at a time")
    assert np.mean(same) > 0.25, "logits of random weights tie often; chance would be 0"


def test_what_cannot_be_recorded_runs_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples = on_gpu("llama"), examples_of(2)
    first = [answered.generated for answered in answer_under(loaded, examples, conditions(), max_new_tokens=8,
                                                             means=torch.zeros(3, 4, 8))]  # fmt: skip
    monkeypatch.setattr(graphs, "_recording", lambda run, device, pool: (run(), run(), None)[-1])
    again = [answered.generated for answered in answer_under(loaded, examples, conditions(), max_new_tokens=8,
                                                             means=torch.zeros(3, 4, 8))]  # fmt: skip
    assert again == first
