"""What the observer sees, what it costs the model (nothing), and which models it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM, GptOssConfig, MambaConfig

from rhstudy.errors import InputError, StudyError
from rhstudy.models import probe
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.generate import run_rows
from rhstudy.models.probe import ArgmaxObserver, MassObserver, RoundedArgmaxObserver, lowest_argmax, observe


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


ROWS = range(30, 41)


def seen_by(observer, model, chunk: int = 0) -> torch.Tensor:
    """What `observer` collects of 41 rows, two examples, the first with 5 tokens of padding."""
    ids = torch.stack([torch.arange(3, 44), (torch.arange(41) * 7) % 40 + 3])
    batch = pad_batch([ids[0, 5:].tolist(), ids[1].tolist()], [[], []], 0, "cpu")
    with torch.inference_mode(), observe(model, observer):
        run_rows(model, batch, first_row=40, chunk_tokens=chunk, observer=observer)
    return observer.collected()


def mass_observer() -> MassObserver:
    weights = torch.rand(2, len(ROWS), generator=torch.Generator().manual_seed(0))
    return MassObserver(ROWS, weights, torch.tensor([[6, 9, 33], [0, 20, 40]]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [lambda: ArgmaxObserver(ROWS), mass_observer], ids=["argmax", "mass"])
@pytest.mark.parametrize("chunk", [0, 16])
def test_how_layers_and_rows_are_grouped_does_not_matter(
    family: str, make, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family).model
    together = seen_by(make(), model, chunk)
    monkeypatch.setattr(probe, "QUERY_BYTES", 0)
    torch.testing.assert_close(seen_by(make(), model, chunk), together)
    monkeypatch.setattr(probe, "LAYER_BYTES", 0)
    torch.testing.assert_close(seen_by(make(), model, chunk), together)
    monkeypatch.setattr(probe, "BLOCK_BYTES", 1)
    torch.testing.assert_close(seen_by(make(), model, chunk), together)


def test_no_more_keys_are_kept_alive_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model("llama")
    one_layer = 2 * 2 * 41 * 8 * 4
    reduced: list[int] = []

    class Counting(ArgmaxObserver):
        def reduce(self, logits, held, rows):
            reduced.append(len(held.layers))
            return super().reduce(logits, held, rows)

    for budget, groups in ((3 * one_layer, [3]), (2 * one_layer, [3]), (one_layer, [2, 1]), (0, [1, 1, 1])):
        monkeypatch.setattr(probe, "KEY_BYTES", budget)
        reduced.clear()
        seen_by(Counting(ROWS), loaded.model)
        assert reduced == groups


def test_rounded_weights_tie_where_eager_attention_s_do() -> None:
    model = tiny_model("llama").model.to(torch.bfloat16)
    ids = ((torch.arange(200) * 11) % 45 + 3)[None]
    rows = range(100, 200)
    with torch.inference_mode():
        rounded, exact = RoundedArgmaxObserver(rows), ArgmaxObserver(rows)
        for observer in (rounded, exact):
            with observe(model, observer):
                model(ids)
        model.set_attn_implementation("eager")
        weights = torch.stack(model(ids, output_attentions=True).attentions)[:, :, :, 100:]
    # The first layer: what SDPA and eager attention put out differs by rounding, and with it what later layers see.
    assert torch.equal(rounded.argmax()[0], weights[0].float().argmax(dim=-1))
    assert not torch.equal(rounded.argmax()[0], exact.argmax()[0]), "the case has no ties, so it shows nothing"


def test_layers_on_two_devices_are_copied_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "QUERY_BYTES", 2 * 4 * 8 * 20 * 4 - 1)
    observer = ArgmaxObserver(range(15, 20))
    for layer, device in enumerate(("cpu", "meta")):
        query, key = torch.zeros(1, 4, 20, 8, device=device), torch.zeros(1, 2, 20, 8, device=device)
        module = torch.nn.Identity()
        module.layer_idx = layer
        observer.watch(module, query, key, None, 1.0, None)
    assert [layer.query.shape[2] for layer in observer._waiting] == [5, 5]
    assert observer._query_bytes == 0, "copied"


def test_rows_must_be_contiguous() -> None:
    with pytest.raises(InputError, match=r"observer.rows must be contiguous, .*, got range\(0, 9, 2\)"):
        ArgmaxObserver(range(0, 9, 2))


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
