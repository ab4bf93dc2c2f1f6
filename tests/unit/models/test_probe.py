"""What the observer sees, what it costs the model (nothing), and which models it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM, GptOssConfig, MambaConfig

from rhstudy.errors import InputError, StudyError
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import make_observable
from rhstudy.models.probe import ArgmaxObserver, lowest_argmax, observe


def test_ties_take_the_lowest_position() -> None:
    assert lowest_argmax(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_observing_does_not_change_the_logits(family: str) -> None:
    ids = torch.arange(3, 40)[None]
    plain = tiny_model(family)
    with torch.inference_mode():
        before = plain.model(ids).logits
        with observe(plain.model, ArgmaxObserver(range(20, 37))) as observer:
            during = plain.model(ids).logits
        assert torch.equal(before, during)
    assert observer.argmax().shape == (3, 1, 4, 17)


def test_rows_that_were_never_run_are_an_error() -> None:
    loaded = tiny_model("llama")
    with torch.inference_mode(), observe(loaded.model, ArgmaxObserver(range(3, 100))) as observer:
        loaded.model(torch.arange(3, 20)[None])
        with pytest.raises(StudyError, match=r"observer.rows must all lie inside the passes run, got <14 of 97 rows>"):
            observer.argmax()


def test_nothing_observed_is_an_error() -> None:
    loaded = tiny_model("llama")
    with (
        observe(loaded.model, ArgmaxObserver(range(3, 4))) as observer,
        pytest.raises(StudyError, match="show every layer's attention"),
    ):
        observer.argmax()


TINY = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
REFUSED = {
    "sinks": (GptOssConfig(**TINY, num_local_experts=2), "GptOssForCausalLM with attention sinks"),
    "no heads": (MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4), "MambaForCausalLM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_observed_exactly_are_refused_by_name(case: str) -> None:
    config, name = REFUSED[case]
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=f"model must .*{name}"):
        make_observable(model)


def test_anatomy_of_grouped_query_models() -> None:
    layout = anatomy(tiny_model("llama").model)
    assert (layout.num_layers, layout.num_heads, layout.num_kv_heads, layout.num_total_heads) == (3, 4, 2, 12)
    assert layout.attention_names[2] == "model.layers.2.self_attn"
