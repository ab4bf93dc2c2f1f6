"""Forks of a prompt: the same as one continuation at a time, whatever the family, the padding and the other forks."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from tiny_models import DECODERS, random_example, tiny_model

from rhstudy.errors import InputError
from rhstudy.models import forks as module
from rhstudy.models.attention import edit_heads, make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.cache import keeps_every_key
from rhstudy.models.decode import greedy
from rhstudy.models.forks import Forks, edit_forks, forkable, forks_that_fit, gold_forks, greedy_forks
from rhstudy.models.generate import from_last_token, gold_nll, prefix
from rhstudy.seeding import generator

NO_STOP: frozenset[int] = frozenset()
WHOLE = [name for name in DECODERS if keeps_every_key(tiny_model(name).model)]


def examples_of(num: int = 3):
    rng = generator(5, "fork examples")
    return [random_example(rng, index, length=30 + 9 * index, answer=2 + index) for index in range(num)]


def start_of(model, num: int = 3, room: int = 64):
    examples = examples_of(num)
    make_observable(model)
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * num, 0, "cpu")
    return prefix(model, batch, room=room), [example.answer_ids for example in examples]


def scaled(factor: float):
    """An edit that scales some heads of every layer."""

    def edit(layer, z):
        factors = torch.ones(z.shape[-2])
        factors[layer % 4 :] = factor
        return z * factors[:, None]

    return edit


@pytest.mark.parametrize("family", WHOLE)
def test_forks_are_continuations_one_at_a_time(family: str) -> None:
    model, factors = tiny_model(family).model, [1.0, 0.0, 0.5]

    def each(layer, z):
        return torch.stack([scaled(factor)(layer, z[:, fork]) for fork, factor in enumerate(factors)], dim=1)

    with torch.inference_mode():
        start, answers = start_of(model)
        before = copy.deepcopy([(layer.keys, layer.values) for layer in start.cache.layers])
        with edit_forks(model, 3, each):
            forks = Forks(model, start, 3, 7)
            losses = gold_forks(forks, answers)
            texts = greedy_forks(forks, max_new_tokens=7, stop_ids=NO_STOP)
        for layer, (keys, values) in zip(start.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys), "the prefix is left as it was"
            assert torch.equal(layer.values, values), "the prefix is left as it was"
        for fork, factor in enumerate(factors):
            with edit_heads(model, scaled(factor)), from_last_token(model, start) as prompt:
                torch.testing.assert_close(losses[fork], gold_nll(model, prompt, answers), atol=1e-5, rtol=1e-5)
                assert texts[fork] == greedy(model, prompt, max_new_tokens=7, stop_ids=NO_STOP)


def test_a_fork_does_not_depend_on_what_the_others_do() -> None:
    model = tiny_model("llama").model

    def run(others: float):
        def each(layer, z):
            return torch.stack([scaled(0.5)(layer, z[:, 0]), *(z[:, 1:] * others).unbind(1)], dim=1)

        with edit_forks(model, 4, each):
            forks = Forks(model, start, 4, 6)
            return gold_forks(forks, answers), greedy_forks(forks, max_new_tokens=6, stop_ids=NO_STOP)

    with torch.inference_mode():
        start, answers = start_of(model)
        (first, texts), (second, again) = run(1.0), run(-3.0)
    assert torch.equal(first[0], second[0])
    assert texts[0] == again[0]
    assert not torch.equal(first[1], second[1])


def test_an_edit_that_changes_nothing_changes_no_bit() -> None:
    model = tiny_model("qwen2").model
    with torch.inference_mode():
        start, answers = start_of(model)
        forks = Forks(model, start, 3, 6)
        plain = gold_forks(forks, answers)
        with edit_forks(model, 3, lambda layer, z: z.clone()):
            assert torch.equal(gold_forks(forks, answers), plain)


def test_forks_said_before_are_forgotten_and_room_is_made() -> None:
    model = tiny_model("llama").model
    with torch.inference_mode():
        start, answers = start_of(model, room=1)
        first = gold_forks(Forks(model, start, 2, 5), answers)
        many = Forks(model, start, 30, 9)
        assert start.cache.layers[0].key_room.shape[2] >= start.batch.num_prompt - 1 + 30 * 9
        greedy_forks(many, max_new_tokens=9, stop_ids=NO_STOP)
        torch.testing.assert_close(gold_forks(Forks(model, start, 2, 5), answers), first, atol=1e-5, rtol=1e-5)


@contextmanager
def donated(donor, recipient, num_forks: int, heads: list[int]):
    """z of some heads of every layer comes from the donor, which ran the same rows before."""
    seen = {}

    def take(layer, z):
        seen[layer] = z.clone()
        return z

    def give(layer, z):
        z = z.clone()
        z[..., heads, :] = seen[layer][..., heads, :]
        return z

    with edit_forks(donor, num_forks, take), edit_forks(recipient, num_forks, give):
        yield


def test_a_donor_in_lockstep_runs_the_recipients_tokens() -> None:
    """The slow twin runs donor and recipient over prompt and answer at once, and patches rows from P - 1 on."""
    donor, recipient = tiny_model("llama", seed=1).model, tiny_model("llama").model
    (example,), heads = examples_of(1), [1, 3]
    first = len(example.prompt_ids) - 1

    def slow(answer):
        ids, seen = torch.tensor([[*example.prompt_ids, *answer]]), {}

        def take(layer, z):
            seen[layer] = z.clone()
            return z

        def give(layer, z):
            z = z.clone()
            z[:, first:, heads] = seen[layer][:, first:, heads]
            return z

        with edit_heads(donor, take), edit_heads(recipient, give):
            donor(ids)
            return recipient(ids).logits[0, first:].log_softmax(-1)

    with torch.inference_mode():
        start, answers = start_of(recipient, 1)
        other, _ = start_of(donor, 1)
        forks, beside = Forks(recipient, start, 2, 6), Forks(donor, other, 2, 6)
        with donated(donor, recipient, 2, heads):
            losses = gold_forks(forks, answers, lockstep=[beside])
            texts = greedy_forks(forks, max_new_tokens=5, stop_ids=NO_STOP, lockstep=[beside])
        log_p, said = slow(example.answer_ids), []
        for _ in range(5):
            said.append(int(slow(said)[len(said)].argmax()))
    expected = -torch.stack([log_p[row, token] for row, token in enumerate(example.answer_ids)]).mean()
    torch.testing.assert_close(losses, expected.expand(2, 1), atol=1e-5, rtol=1e-5)
    assert texts == [[said]] * 2


def test_a_patch_from_the_model_itself_changes_no_bit() -> None:
    model = tiny_model("llama").model
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        (start, answers), (other, _) = start_of(model), start_of(twin)
        forks, beside = Forks(model, start, 2, 6), Forks(twin, other, 2, 6)
        plain = gold_forks(forks, answers)
        with donated(twin, model, 2, [0, 1, 2, 3]):
            assert torch.equal(gold_forks(forks, answers, lockstep=[beside]), plain)


def test_recorded_steps_begin_anew_after_their_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = tiny_model("llama").model, tiny_model("llama", seed=1).model
    with torch.inference_mode():
        (start, _), (other, _) = start_of(model), start_of(twin)
        forks, beside = Forks(model, start, 2, 9), Forks(twin, other, 2, 9)
        with donated(twin, model, 2, [0, 2]):
            direct = greedy_forks(forks, max_new_tokens=9, stop_ids=NO_STOP, lockstep=[beside])
            assert int(forks.place) == 9, "there is no room behind"
            monkeypatch.setattr(module, "on_one_gpu", lambda model: True)
            monkeypatch.setattr(module, "record", lambda run, device: (run(), run(), run)[-1])  # two warm-ups
            assert greedy_forks(forks, max_new_tokens=9, stop_ids=NO_STOP, lockstep=[beside]) == direct
            monkeypatch.setattr(module, "record", lambda run, device: (run(), None)[-1])  # cannot be recorded
            assert greedy_forks(forks, max_new_tokens=9, stop_ids=NO_STOP, lockstep=[beside]) == direct


def test_a_fork_ends_at_its_stop_id() -> None:
    model = tiny_model("llama").model
    with torch.inference_mode():
        start, _ = start_of(model)
        whole = greedy_forks(Forks(model, start, 1, 8), max_new_tokens=8, stop_ids=NO_STOP)[0]
        stops = frozenset({whole[0][3], whole[1][0]})
        found = greedy_forks(Forks(model, start, 1, 8), max_new_tokens=8, stop_ids=stops)[0]
    for text, cut in zip(whole, found, strict=True):
        ends = [place for place, token in enumerate(text) if token in stops]
        assert cut == text[: ends[0] if ends else 8]
    assert found[1] == []


def test_keys_are_freed_at_once() -> None:
    model = tiny_model("llama").model
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            start, _ = start_of(model)
            room = weakref.ref(start.cache.layers[0].key_room)
            forks = Forks(model, start, 2, 6)
            greedy_forks(forks, max_new_tokens=6, stop_ids=NO_STOP)
            assert room() is not None
            del start, forks
            assert room() is None, "no circle of references holds them"
    finally:
        gc.enable()


def test_how_many_forks_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").model
    assert forks_that_fit(model, 4, 100, 20) == 32, "own keys must not outgrow a short prompt's"
    assert forks_that_fit(model, 4, 3200, 20) == 160
    monkeypatch.setattr(module, "_MOST_BYTES", 0)
    assert forks_that_fit(model, 4, 3200, 20) == 1
    monkeypatch.setattr(module, "_MOST_BYTES", 16 * 10**7)
    few, more = forks_that_fit(model, 8, 3200, 20), forks_that_fit(model, 2, 3200, 20)
    assert 1 <= forks_that_fit(model, 8, 3200, 20, at_once=5) < few < more <= 160


def test_bad_forks_are_refused() -> None:
    sliding, model = tiny_model("mistral").model, tiny_model("llama").model
    assert not forkable(sliding)
    assert forkable(model)
    with torch.inference_mode():
        windowed, (start, _) = start_of(sliding)[0], start_of(model)
        with pytest.raises(
            InputError, match=r"model must keep every key of its prompts, got <Mistral.*sliding window>"
        ):
            Forks(sliding, windowed, 2, 5)
        with pytest.raises(InputError, match=r"num_forks must be at least 1, got 0"):
            Forks(model, start, 0, 5)
        with pytest.raises(InputError, match=r"num_rows must be at least 1, got 0"):
            Forks(model, start, 2, 0)
        with pytest.raises(InputError, match=r"num_rows must be at least 6, got 5"):
            greedy_forks(Forks(model, start, 2, 5), max_new_tokens=6, stop_ids=NO_STOP)
        with (
            edit_forks(model, 2, lambda layer, z: z[..., :2]),
            pytest.raises(InputError, match=r"edited z must keep its shape"),
        ):
            Forks(model, start, 2, 5).run(torch.zeros(6, 1, dtype=torch.long))
