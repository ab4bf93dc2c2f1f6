"""Knockout identities on every family, the scope of a knockout, and a planted head whose loss destroys copying."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager

import pytest
import torch
from planted import copying_model, planted_example
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.errors import InputError
from rhstudy.interventions.knockout import knock_out
from rhstudy.models.anatomy import attention_modules
from rhstudy.models.attention import edit_heads, make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import from_last_token, gold_nll, prefill, prefix
from rhstudy.seeding import generator

NO_STOP: frozenset[int] = frozenset()
ALL = list(itertools.product(range(3), range(4)))
SOME = [(0, 1), (1, 0), (1, 3), (2, 2)]
IDS = torch.arange(3, 43)[None]


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(ids).logits


def output_projections(model):
    return [
        module.o_proj if hasattr(module, "o_proj") else module.dense for _, module in attention_modules(model).values()
    ]


@contextmanager
def projection_inputs(model, change):
    """The other way to edit z: a forward pre-hook on each layer's output projection."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: (change(layer, args[0]),))
        for layer, module in enumerate(output_projections(model))
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_knockout_changes_no_bit(family):
    model = tiny_model(family).model
    plain = logits(model)
    with knock_out(model, []):
        assert torch.equal(logits(model), plain)
    with knock_out(model, SOME):
        assert not torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain), "nothing stays behind"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_any_head_the_output_projection_sees_zeros(family):
    model = tiny_model(family).model
    make_observable(model)
    with projection_inputs(model, lambda _, z: torch.zeros_like(z)):
        expected = logits(model)
    with knock_out(model, ALL):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_output_is_a_hook_before_the_output_projection(family):
    loaded = tiny_model(family)
    make_observable(loaded.model)

    def zero(layer, flat):
        z = flat.clone().unflatten(-1, (4, loaded.layout.head_dim))
        for where, head in SOME:
            if where == layer:
                z[:, :, head] = 0
        return z.flatten(-2)

    with projection_inputs(loaded.model, zero):
        expected = logits(loaded.model)
    with knock_out(loaded.model, [*SOME, SOME[0]]):
        assert torch.equal(logits(loaded.model), expected)


def test_a_knocked_out_head_of_a_group_leaves_the_others_of_its_key_value_head():
    model = tiny_model("llama").model  # heads 0 and 1 share a key/value head
    seen = {}

    def look(layer, z):
        seen[layer] = z.clone()
        return z

    with edit_heads(model, look):
        logits(model)
    before = seen[0]
    with knock_out(model, [(0, 1)]), edit_heads(model, look):
        logits(model)
    assert torch.equal(seen[0][:, :, [0, 2, 3]], before[:, :, [0, 2, 3]])
    assert not seen[0][:, :, 1].any()


def test_nested_knockouts_add_up_and_another_model_is_left_alone():
    model, other = tiny_model("llama").model, tiny_model("llama", seed=1).model
    plain = logits(other)
    with knock_out(model, SOME):
        expected = logits(model)
        assert torch.equal(logits(other), plain)
    with knock_out(model, SOME[:2]), knock_out(model, SOME[2:]):
        assert torch.equal(logits(model), expected)


def batch_of(num=3):
    rng = generator(5, "knockout examples")
    examples = [random_example(rng, index, length=40 + 9 * index, answer=2 + index) for index in range(num)]
    return examples, pad_batch([example.prompt_ids for example in examples], [[]] * num, 0, "cpu")


def tensors(cache):
    return [copy.deepcopy((layer.keys, layer.values, layer.get_seq_length())) for layer in cache.layers]


def same(first, second):
    return all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [0, 11])
def test_conditions_share_one_prefix_that_they_leave_as_it_was(family, chunk):
    model = tiny_model(family).model
    examples, batch = batch_of()
    answers = [example.answer_ids for example in examples]

    def answered(start, heads):
        with knock_out(model, heads), from_last_token(model, start) as prompt:
            return gold_nll(model, prompt, answers), greedy(model, prompt, max_new_tokens=6, stop_ids=NO_STOP)

    with torch.inference_mode():
        start = prefix(model, batch, chunk_tokens=chunk)
        before = tensors(start.cache)
        first = answered(start, [])
        for heads in (SOME, ALL, []):
            again = answered(start, heads)
            assert same(tensors(start.cache), before), "rows before the last prompt token never change"
        assert torch.equal(again[0], first[0])
        assert again[1] == first[1]
        fresh = answered(prefix(model, batch, chunk_tokens=chunk), SOME)
        shared = answered(start, SOME)
        assert torch.equal(fresh[0], shared[0])
        assert fresh[1] == shared[1]
        assert not torch.equal(shared[0], first[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_and_its_last_token_are_a_prefill(family):
    model = tiny_model(family).model
    examples, batch = batch_of()
    answers = [example.answer_ids for example in examples]
    with torch.inference_mode():
        whole = prefill(model, batch)
        with from_last_token(model, prefix(model, batch)) as prompt:
            torch.testing.assert_close(prompt.logits, whole.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(gold_nll(model, prompt, answers), gold_nll(model, whole, answers))
            ours = greedy(model, prompt, max_new_tokens=6, stop_ids=NO_STOP)
        assert ours == greedy(model, whole, max_new_tokens=6, stop_ids=NO_STOP)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_scope_begins_with_the_row_that_predicts_the_first_answer_token(family):
    """The slow twin: one pass over prompt and answer, z zeroed by a hook from row P - 1 on."""
    loaded = tiny_model(family)
    (example,), batch = batch_of(1)
    first = batch.num_prompt - 1

    def zero(layer, flat):
        z = flat.clone().unflatten(-1, (4, loaded.layout.head_dim))
        for where, head in SOME:
            if where == layer:
                z[:, first:, head] = 0
        return z.flatten(-2)

    ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
    make_observable(loaded.model)
    with projection_inputs(loaded.model, zero):
        log_p = logits(loaded.model, ids)[0].float().log_softmax(-1)
    expected = -sum(float(log_p[first + t, token]) for t, token in enumerate(example.answer_ids)) / len(
        example.answer_ids
    )
    with torch.inference_mode():
        start = prefix(loaded.model, batch)
        with knock_out(loaded.model, SOME), from_last_token(loaded.model, start) as prompt:
            found = gold_nll(loaded.model, prompt, [example.answer_ids])
    assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_examples_one_at_a_time(family):
    model = tiny_model(family).model
    examples, batch = batch_of()

    def answered(examples, batch):
        with knock_out(model, SOME), from_last_token(model, prefix(model, batch)) as prompt:
            losses = gold_nll(model, prompt, [example.answer_ids for example in examples])
            return losses, greedy(model, prompt, max_new_tokens=6, stop_ids=NO_STOP)

    with torch.inference_mode():
        losses, texts = answered(examples, batch)
        for row, example in enumerate(examples):
            loss, text = answered([example], pad_batch([example.prompt_ids], [[]], 0, "cpu"))
            torch.testing.assert_close(losses[row : row + 1], loss, atol=1e-5, rtol=1e-5)
            assert text == texts[row : row + 1]


def test_copying_goes_through_the_planted_head_and_no_other():
    loaded = copying_model()
    examples = [planted_example(index) for index in range(3)]
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * 3, 0, "cpu")

    def answers(heads):
        with knock_out(loaded.model, heads), from_last_token(loaded.model, start) as prompt:
            return greedy(loaded.model, prompt, max_new_tokens=5, stop_ids=frozenset({2}))

    with torch.inference_mode():
        start = prefix(loaded.model, batch)
        assert answers([]) == [[10, 11, 12]] * 3
        assert answers([(0, head) for head in range(1, 8)]) == [[10, 11, 12]] * 3
        assert all(token not in (10, 11, 12) for answer in answers([(0, 0)]) for token in answer)


def test_bad_knockouts_are_refused():
    model = tiny_model("llama").model
    with pytest.raises(
        InputError, match=r"heads must lie within the model's 3 layers x 4 query heads, got \[\(3, 0\)\]"
    ):
        knock_out(model, [(0, 0), (3, 0)]).__enter__()
    with pytest.raises(InputError, match=r"heads must lie within .*got \[\(0, -1\), \(0, 4\)\]"):
        knock_out(model, [(0, 4), (0, -1)]).__enter__()
    with pytest.raises(InputError, match=r"knockout.mode must be one of zero_output, .*block_needle, got 'query_zero'"):
        knock_out(model, [], "query_zero").__enter__()


def test_bad_edits_and_prefixes_are_refused():
    model = tiny_model("llama").model
    with (
        edit_heads(model, lambda _, z: z[:, :, :2]),
        pytest.raises(InputError, match=r"edited z must keep its shape \(1, 40, 4, 8\), got \(1, 40, 2, 8\)"),
    ):
        logits(model)
    with pytest.raises(InputError, match=r"prompts must have at least 2 tokens, got 1"):
        prefix(model, pad_batch([[3, 4], [5]], [[], []], 0, "cpu"))
    with pytest.raises(InputError, match=r"batch must hold prompts alone, got 1"):
        prefix(model, pad_batch([[3, 4]], [[5]], 0, "cpu"))
