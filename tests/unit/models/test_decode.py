"""Caches with room, and decoding steps whose every tensor stays where it is: the same tokens as direct decoding."""

from __future__ import annotations

import pytest
import torch
from tiny_models import DECODERS, FAMILIES, random_example, tiny_model
from transformers import Cache, DynamicCache

from rhstudy.models import decode, generate
from rhstudy.models.batch import pad_batch
from rhstudy.models.cache import RoomyLayer, borrowed, examples_that_fit, joined, keeps_every_key, room_for
from rhstudy.models.decode import FixedStep, greedy
from rhstudy.models.generate import gold_nll, prefill, prefix
from rhstudy.seeding import generator

NO_STOP: frozenset[int] = frozenset()
WITHOUT_WINDOW = [name for name in DECODERS if keeps_every_key(tiny_model(name).model)]


def prompts(num: int = 4) -> list[tuple[int, ...]]:
    rng = generator(5, "decode examples")
    return [random_example(rng, index, length=40 + 9 * (index % 3)).prompt_ids for index in range(num)]


def start_of(model, num: int = 4):
    return prefill(model, pad_batch(prompts(num), [[]] * num, 0, "cpu"))


def layer(num_tokens: int, room: int = 64) -> RoomyLayer:
    values = torch.arange(2.0 * room).reshape(1, 2, room, 1)
    return RoomyLayer(values.clone(), values.clone() + 0.5, num_tokens)


def test_new_tokens_are_written_behind_those_there() -> None:
    roomy = layer(3)
    place = roomy.key_room.data_ptr()
    keys, values = roomy.update(torch.full((1, 2, 2, 1), -1.0), torch.full((1, 2, 2, 1), -2.0))
    assert keys[0, :, :, 0].tolist() == [[0, 1, 2, -1, -1], [64, 65, 66, -1, -1]]
    assert values[0, 0, :, 0].tolist() == [0.5, 1.5, 2.5, -2, -2]
    assert roomy.get_seq_length() == 5
    assert keys.data_ptr() == place, "nothing was copied"


def test_a_full_layer_grows_and_keeps_what_it_has() -> None:
    roomy = layer(64)
    keys, _ = roomy.update(torch.full((1, 2, 1, 1), -1.0), torch.zeros(1, 2, 1, 1))
    assert keys.shape[2] == 65
    assert keys[0, 1, :64, 0].tolist() == list(range(64, 128))
    assert roomy.key_room.shape[2] == room_for(81) == 128


def test_a_borrowed_cache_is_given_back_as_it_was() -> None:
    cache = Cache(layers=[layer(3), layer(3)])
    with borrowed(cache) as lent:
        lent.update(torch.zeros(1, 2, 4, 1), torch.zeros(1, 2, 4, 1), 0)
    assert [part.keys.shape[2] for part in cache.layers] == [3, 3]
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 1, 2]


def test_joined_caches_end_together() -> None:
    first, second = DynamicCache(), DynamicCache()
    first.update(torch.arange(6.0).reshape(2, 1, 3, 1), torch.arange(6.0).reshape(2, 1, 3, 1) + 10, 0)
    second.update(torch.arange(5.0).reshape(1, 1, 5, 1) + 20, torch.arange(5.0).reshape(1, 1, 5, 1) + 30, 0)
    whole = joined([(first, [3, 2]), (second, [5])], 5, 2)
    assert whole.layers[0].keys[:, 0, :, 0].tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 3, 4], [20, 21, 22, 23, 24]]
    assert whole.layers[0].values[0, 0, :, 0].tolist() == [0, 0, 10, 11, 12]
    assert whole.layers[0].key_room.shape[2] == 64


@pytest.mark.parametrize("family", WITHOUT_WINDOW)
@pytest.mark.parametrize("max_new", [4, 9])
def test_steps_in_place_say_what_direct_ones_say(family: str, max_new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family).model
    with torch.inference_mode():
        direct = greedy(model, start_of(model), max_new_tokens=max_new, stop_ids=NO_STOP)
        monkeypatch.setattr(decode, "_recordable", lambda model, start: True)
        monkeypatch.setattr(decode, "_FEWEST", 0)
        monkeypatch.setattr(decode, "record", lambda run, device: (run(), run(), run)[-1])  # two warm-ups
        assert greedy(model, start_of(model), max_new_tokens=max_new, stop_ids=NO_STOP) == direct
        stop = frozenset({direct[0][-1], direct[1][max_new // 2]})
        monkeypatch.setattr(decode, "record", lambda run, device: run())  # cannot be recorded
        assert greedy(model, start_of(model), max_new_tokens=max_new, stop_ids=NO_STOP) == direct
        monkeypatch.undo()
        cut = greedy(model, start_of(model), max_new_tokens=max_new, stop_ids=stop)
        monkeypatch.setattr(decode, "_recordable", lambda model, start: True)
        monkeypatch.setattr(decode, "record", lambda run, device: run)
        assert greedy(model, start_of(model), max_new_tokens=max_new, stop_ids=stop) == cut


def test_a_step_reads_and_writes_the_same_tensors_every_time() -> None:
    model = tiny_model("llama").model
    with torch.inference_mode():
        state = FixedStep(model, start_of(model), 70)
        places = [(part.keys.data_ptr(), part.values.data_ptr()) for part in state._cache.layers]
        for _ in range(69):
            state.step()
        assert places == [(part.keys.data_ptr(), part.values.data_ptr()) for part in state._cache.layers]
        assert state.said.tolist() == greedy(model, start_of(model), max_new_tokens=70, stop_ids=NO_STOP)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 100, 2**14])
def test_how_many_prompts_share_a_pass_does_not_matter(family: str, tokens: int, monkeypatch) -> None:
    model = tiny_model(family).model
    answers = [[5, 6], [7], [8, 9, 10], [11]]
    batch = pad_batch(prompts(), [[]] * 4, 0, "cpu")
    with torch.inference_mode():
        expected = [
            (gold_nll(model, start, [answer]), greedy(model, start, max_new_tokens=6, stop_ids=NO_STOP))
            for prompt, answer in zip(prompts(), answers, strict=True)
            for start in [prefill(model, pad_batch([prompt], [[]], 0, "cpu"))]
        ]
        monkeypatch.setattr(generate, "PASS_TOKENS", tokens)
        start = prefill(model, batch)
        torch.testing.assert_close(gold_nll(model, start, answers), torch.cat([loss for loss, _ in expected]))
        said = greedy(model, start, max_new_tokens=6, stop_ids=NO_STOP)
    assert said == [tokens for _, (tokens,) in expected]


def test_no_pass_holds_more_tokens_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").model
    monkeypatch.setattr(generate, "PASS_TOKENS", 100)
    shapes = []
    model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode():
        prefix(model, pad_batch(prompts(5), [[]] * 5, 0, "cpu"))
    assert shapes == [(2, 48), (1, 57), (2, 48)]


def test_sliding_windows_keep_their_own_cache() -> None:
    assert not keeps_every_key(tiny_model("mistral").model)
    assert keeps_every_key(tiny_model("llama").model)


def test_a_cpu_decodes_eight_examples_at_once() -> None:
    assert examples_that_fit(tiny_model("llama").model, 10**6) == 8
