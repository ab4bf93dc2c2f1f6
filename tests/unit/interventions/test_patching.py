"""Patching identities on several families, against plain forward hooks; a planted head that carries copying over."""

from __future__ import annotations

import itertools

import pytest
import torch
from pairs_of_models import pair, projection_inputs, slow_answer, tuned_again
from tiny_models import random_example

from rhstudy.errors import InputError
from rhstudy.interventions import patch_runs
from rhstudy.interventions.patch_plan import PatchCondition
from rhstudy.interventions.patch_runs import PatchRuns
from rhstudy.interventions.patching import patch_heads, recorded_z
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import gold_nll, prefill
from rhstudy.seeding import generator

PATCHED_FAMILIES = ("llama", "qwen2", "mistral", "gpt_neox", "gemma2", "qwen3")
NO_STOP: frozenset[int] = frozenset()
ALL = list(itertools.product(range(3), range(4)))
SOME = [(0, 1), (1, 0), (1, 3), (2, 2)]
MAX_NEW = 5
IDS = torch.arange(3, 43)[None]
POSITIONS = ("all_positions", "answer_rows")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def examples(num: int = 3):
    rng = generator(9, "patching examples")
    return [random_example(rng, index, length=40 + 9 * index, answer=4 + index) for index in range(num)]


def runs_of(donor, recipient, chosen, heads=ALL, **changes) -> PatchRuns:
    return PatchRuns(
        donor.model,
        recipient.model,
        [example.prompt_ids for example in chosen],
        [example.answer_ids for example in chosen],
        heads,
        max_new_tokens=MAX_NEW,
        stop_ids=NO_STOP,
        **changes,
    )


def logits_with(donor, recipient, heads, positions="all_positions", first_answer_row=0, ids=IDS):
    with recorded_z(donor.model, heads, first_answer_row=first_answer_row) as found:
        donor.model(ids)
    with patch_heads(recipient.model, found, heads, positions=positions):
        return recipient.model(ids).logits


@pytest.mark.parametrize("family", PATCHED_FAMILIES)
def test_no_head_and_a_donor_like_oneself_change_no_bit(family):
    _, recipient = pair(family)
    plain = recipient.model(IDS).logits
    with recorded_z(recipient.model, ALL, first_answer_row=20) as own:
        assert torch.equal(recipient.model(IDS).logits, plain), "watching changes nothing"
    for heads, positions in itertools.product(([], SOME, ALL), POSITIONS):
        with patch_heads(recipient.model, own, heads, positions=positions):
            assert torch.equal(recipient.model(IDS).logits, plain)
    other = tuned_again(recipient, 3)
    assert not torch.equal(logits_with(other, recipient, SOME), plain)
    assert torch.equal(recipient.model(IDS).logits, plain), "nothing stays behind"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("chunk", [0, 16])
def test_patching_from_an_equal_model_is_the_plain_evaluation_bit_for_bit(positions, chunk):
    _, recipient = pair("llama")
    chosen = examples()
    start = prefill(recipient.model, pad_batch([e.prompt_ids for e in chosen], [[]] * 3, 0, "cpu"), chunk_tokens=chunk)
    losses = gold_nll(recipient.model, start, [example.answer_ids for example in chosen])
    tokens = greedy(recipient.model, start, max_new_tokens=MAX_NEW, stop_ids=NO_STOP)
    twin = tuned_again(recipient, 3)
    twin.model.load_state_dict(recipient.model.state_dict())
    runs = runs_of(twin, recipient, chosen, chunk_tokens=chunk, forked=False)
    for answered in (runs.patched(SOME, positions), runs.patched(ALL, positions), runs.recipient(), runs.donor()):
        assert torch.equal(answered.gold_nll, losses)
        assert answered.tokens == tokens
    forked = runs_of(twin, recipient, chosen, chunk_tokens=chunk)
    plain, patched = forked.together([[], [], []]), forked.together([SOME, ALL, []])
    assert all(torch.equal(one.gold_nll, other.gold_nll) for one, other in zip(plain, patched, strict=True))
    assert [each.tokens for each in plain] == [each.tokens for each in patched] == [tokens] * 3
    one, other = forked.patched([], positions), forked.patched(SOME, positions)
    assert torch.equal(one.gold_nll, other.gold_nll)
    assert one.tokens == other.tokens == tokens
    torch.testing.assert_close(one.gold_nll, losses, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", PATCHED_FAMILIES)
def test_conditions_at_once_are_conditions_one_at_a_time(family, monkeypatch):
    donor, recipient = pair(family)
    chosen, sets = examples(), [[], SOME, ALL, [(0, 0)], [(2, 3), (1, 1)]]
    alone = runs_of(donor, recipient, chosen, forked=False)
    expected = [alone.patched(heads, "answer_rows") for heads in sets]
    assert len({tuple(each.gold_nll.tolist()) for each in expected}) == len(sets)
    for fit in (99, 4):
        monkeypatch.setattr(patch_runs, "forks_that_fit", lambda *_, fit=fit: fit)
        answered = runs_of(donor, recipient, chosen).together(sets)
        assert [each.tokens for each in answered] == [each.tokens for each in expected]
        for one, other in zip(answered, expected, strict=True):
            torch.testing.assert_close(one.gold_nll, other.gold_nll, atol=1e-5, rtol=0)


def condition(identity, heads, positions="answer_rows", kind="patched"):
    return PatchCondition(condition_id=identity, kind=kind, positions=positions, heads=tuple(heads))


def test_equal_conditions_are_run_once_and_known_ones_not_at_all(monkeypatch):
    donor, recipient = pair("llama")
    monkeypatch.setattr(patch_runs, "forks_that_fit", lambda *_: 4)  # two conditions at once
    conditions = [
        condition("recipient", [], None, "recipient"),
        condition("donor", [], None, "donor"),
        condition("early", SOME, "all_positions"),
        condition("late", SOME),
        condition("late again", SOME),
        condition("other", ALL),
    ]
    found = dict(runs_of(donor, recipient, examples()).answers(conditions))
    names = {item.condition_id: answered for item, answered in found.items()}
    assert set(names) == {item.condition_id for item in conditions}
    assert names["late"] is names["late again"]
    assert names["early"].gold_nll.tolist() != names["late"].gold_nll.tolist()
    assert names["donor"].gold_nll.tolist() != names["recipient"].gold_nll.tolist()
    done = {"recipient", "donor", "late", "late again", "early"}
    rest = {
        item.condition_id: answered
        for item, answered in runs_of(donor, recipient, examples()).answers(conditions, done)
    }
    assert list(rest) == ["other"]
    assert torch.equal(rest["other"].gold_nll, names["other"].gold_nll), "the bits of an unbroken run"
    assert not list(runs_of(donor, recipient, examples()).answers(conditions, {*done, "other"}))


@pytest.mark.parametrize("family", PATCHED_FAMILIES)
def test_all_heads_at_all_positions_make_the_attention_the_donors(family):
    donor, recipient = pair(family)
    theirs, seen = {}, {}

    def keep(found):
        return found.setdefault

    with recorded_z(donor.model, ALL) as found, projection_inputs(donor.model, keep(theirs)):
        donor.model(IDS)
    plain = recipient.model(IDS).logits
    with patch_heads(recipient.model, found, ALL), projection_inputs(recipient.model, keep(seen)):
        patched = recipient.model(IDS).logits
    for layer in range(3):
        assert torch.equal(seen[layer], theirs[layer]), layer
    with projection_inputs(recipient.model, lambda layer, _: theirs[layer]):
        assert torch.equal(recipient.model(IDS).logits, patched)
    assert not torch.allclose(patched, plain)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", PATCHED_FAMILIES)
def test_a_padded_batch_is_the_slow_way_one_token_at_a_time(family, positions):
    donor, recipient = pair(family)
    chosen = examples()
    runs = runs_of(donor, recipient, chosen)
    for heads in (SOME, ALL):
        answered = runs.patched(heads, positions)
        expected = [
            slow_answer(donor.model, recipient.model, e.prompt_ids, e.answer_ids, heads, positions, MAX_NEW)
            for e in chosen
        ]
        assert answered.tokens == [tokens for _, tokens in expected]
        torch.testing.assert_close(answered.gold_nll, torch.tensor([loss for loss, _ in expected]), atol=1e-4, rtol=0)
    plain = slow_answer(
        donor.model, recipient.model, chosen[0].prompt_ids, chosen[0].answer_ids, [], positions, MAX_NEW
    )
    assert runs.recipient().tokens[0] == plain[1]
    assert abs(float(answered.gold_nll[0]) - plain[0]) > 1e-3, "the patch does something"


def test_the_two_claims_differ_and_chunks_do_not_matter():
    donor, recipient = pair("llama")
    chosen = examples()
    whole, cut = runs_of(donor, recipient, chosen), runs_of(donor, recipient, chosen, chunk_tokens=13)
    losses = {positions: whole.patched(SOME, positions).gold_nll for positions in POSITIONS}
    assert not torch.allclose(losses["all_positions"], losses["answer_rows"], atol=1e-3)
    for positions in POSITIONS:
        again = cut.patched(SOME, positions)
        torch.testing.assert_close(again.gold_nll, losses[positions], atol=2e-5, rtol=0)
        assert again.tokens == whole.patched(SOME, positions).tokens


def test_a_run_leaves_nothing_for_the_next():
    donor, recipient = pair("mistral")
    runs = runs_of(donor, recipient, examples())
    first = runs.patched(SOME, "all_positions")
    runs.patched(ALL, "answer_rows")
    again = runs.patched(SOME, "all_positions")
    assert torch.equal(first.gold_nll, again.gold_nll)
    assert first.tokens == again.tokens


def test_answer_rows_of_a_whole_sequence_begin_where_they_are_said_to():
    donor, recipient = pair("llama")
    plain = recipient.model(IDS).logits
    late = logits_with(donor, recipient, ALL, "answer_rows", 30)
    assert torch.equal(late[:, :30], plain[:, :30])
    assert not torch.allclose(late[:, 30:], plain[:, 30:], atol=1e-3)
    assert torch.equal(logits_with(donor, recipient, ALL, "answer_rows", 0), logits_with(donor, recipient, ALL))
    with recorded_z(donor.model, ALL, first_answer_row=99) as found:
        donor.model(IDS)
    with patch_heads(recipient.model, found, ALL, positions="answer_rows"):
        assert torch.equal(recipient.model(IDS).logits, plain)


def test_z_kept_in_the_hosts_memory_is_the_same():
    donor, recipient = pair("llama")
    with recorded_z(donor.model, SOME, on_host=True) as found:
        donor.model(IDS)
    assert all(z.device.type == "cpu" for each in found.passes for z in each.z.values())
    expected = logits_with(donor, recipient, SOME)
    with patch_heads(recipient.model, found, SOME):
        assert torch.equal(recipient.model(IDS).logits, expected)


def patched_with(found, recipient, heads, *passes, positions="all_positions"):
    with patch_heads(recipient.model, found, heads, positions=positions):
        for ids in passes:
            recipient.model(ids)


def test_bad_patches_are_refused():
    donor, recipient = pair("llama")
    with recorded_z(donor.model, SOME) as found:
        donor.model(IDS)
    with pytest.raises(
        InputError, match=r"heads must lie within the model's 3 layers x 4 query heads, got \[\(3, 0\)\]"
    ):
        patched_with(found, recipient, [(3, 0)])
    with pytest.raises(InputError, match=r"heads must be among those recorded of the donor, got \[\(0, 0\)\]"):
        patched_with(found, recipient, [(0, 0), (0, 1)])
    with pytest.raises(InputError, match="positions must be one of all_positions, answer_rows, got 'prompt'"):
        patched_with(found, recipient, SOME, positions="prompt")
    with pytest.raises(InputError, match=r"recipient must make no more passes than its donor \(1\), got 2"):
        patched_with(found, recipient, SOME, IDS, IDS)
    with pytest.raises(InputError, match="donor must be another object than the recipient"):
        runs_of(recipient, recipient, examples())
    found.passes[0].z[0] = found.passes[0].z[0][..., :4]
    with pytest.raises(InputError, match=r"donor z must have \(batch, rows, dim\) \(1, 40, 8\), got \(1, 40, 4\)"):
        patched_with(found, recipient, SOME, IDS)


@pytest.mark.parametrize("other", [IDS + 1, IDS[:, :-1]])
def test_other_prompt_ids_are_refused(other):
    donor, recipient = pair("llama")
    with recorded_z(donor.model, SOME) as found:
        donor.model(IDS)
    with pytest.raises(InputError, match="prompt ids must be those that the donor was run on, got <pass 1"):
        patched_with(found, recipient, SOME, other)
