"""Every mode and scope against attention written out naively, for several families, padded and in chunks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from planted import copying_model, planted_example
from test_knockout import output_projections, projection_inputs
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.errors import InputError
from rhstudy.interventions.answering import answer_under, needle_spans
from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import MODES, SCOPES, knock_out, knock_out_forks, require_mode
from rhstudy.interventions.means import head_means
from rhstudy.models.attention import edit_attention, make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.forks import Forks, gold_forks
from rhstudy.models.generate import from_last_token, gold_nll, prefix
from rhstudy.seeding import generator
from rhstudy.types import Span

ALL = tuple(itertools.product(range(3), range(4)))
SETS = [(), ((0, 1), (1, 0), (1, 3), (2, 2)), ((2, 0),), ALL]
CASES = [pair for pair in itertools.product(MODES, SCOPES) if pair != ("block_needle", "prefill_and_decode")]
STOP = 2


def examples_of(num: int = 2):
    rng = generator(7, "knockout modes")
    return [random_example(rng, index, length=35 + 12 * index, answer=3 + index) for index in range(num)]


def conditions_of(mode, scope, sets=SETS):
    return [
        Condition(condition_id=f"set{number}", kind="top", dose=len(heads), heads=heads, mode=mode, scope=scope)
        for number, heads in enumerate(sets)
    ]


def window_of(config, layer):
    kinds = getattr(config, "layer_types", None)
    windowed = kinds is None or kinds[layer] == "sliding_attention"
    return getattr(config, "sliding_window", None) if windowed else None


def naive(config, example, heads, mode, first, means):
    """Attention with nothing left out: a full matrix for each head, changed for the heads and rows that are out."""
    softcap = getattr(config, "attn_logit_softcapping", None)

    def edit(layer, inputs, attend):
        window = window_of(config, layer)
        query, key, value, _ = inputs
        total = query.shape[2]
        groups = query.shape[1] // key.shape[1]
        rows, columns = torch.arange(total)[:, None], torch.arange(total)[None]
        seen = columns <= rows if window is None else (columns <= rows) & (columns > rows - window)
        z = torch.zeros(1, total, query.shape[1], value.shape[3])
        for head in range(query.shape[1]):
            size = getattr(config, "query_pre_attn_scalar", query.shape[3])
            logits = query[0, head] @ key[0, head // groups].T / math.sqrt(size)
            logits = softcap * torch.tanh(logits / softcap) if softcap else logits
            visible, out = seen, ((layer, head) in heads) & (rows >= first)
            if mode == "uniform_attention":
                logits = torch.where(out, torch.zeros(()), logits)
            if mode == "block_needle":
                for needle in example.needles:
                    inside = (columns >= needle.token_span.start) & (columns < needle.token_span.end)
                    visible = visible & ~(out & inside)
            put_out = logits.masked_fill(~visible, float("-inf")).softmax(-1) @ value[0, head // groups]
            if mode == "zero_output":
                put_out = torch.where(out, torch.zeros(()), put_out)
            if mode == "mean_output":
                put_out = torch.where(out, means[layer, head], put_out)
            z[0, :, head] = put_out
        return z

    return edit


def slow(loaded, example, condition, means, num_new):
    """(gold loss, greedy answer), every token from a pass over everything before it."""
    prompt = list(example.prompt_ids)
    last = len(prompt) - 1
    first = {"decode": last, "prefill_and_decode": 0, "published_decode": last + 1}[condition.scope]
    edit = naive(loaded.model.config, example, condition.heads, condition.mode, first, means)

    def rows(tail):
        return loaded.model(torch.tensor([prompt + tail]), use_cache=False).logits[0, last:]

    with edit_attention(loaded.model, edit):
        log_p = rows(list(example.answer_ids)).log_softmax(-1)
        loss = -sum(float(log_p[row, token]) for row, token in enumerate(example.answer_ids)) / len(example.answer_ids)
        said: list[int] = []
        for _ in range(num_new):
            said.append(int(rows(said)[-1].argmax()))
    return loss, said[: said.index(STOP)] if STOP in said else said


OTHERS = ["gemma2", "deepseek_v3", "gpt2", "llama_mqa", "qwen3"]
"""A softcap with windows in some layers; values of another size than keys; learned positions; one key/value head."""


@pytest.mark.parametrize(
    ("family", "mode", "scope"),
    [(family, *case) for family in FAMILIES for case in CASES]
    + [(family, mode, "decode") for family in OTHERS for mode in MODES],
)
def test_every_mode_and_scope_is_attention_written_out(family: str, mode: str, scope: str) -> None:
    loaded, examples = tiny_model(family), examples_of()
    make_observable(loaded.model)
    means = torch.from_numpy(generator(1, "means").normal(size=(3, 4, 8))).float()
    conditions = conditions_of(mode, scope)
    found = list(answer_under(loaded, examples, conditions, max_new_tokens=3, means=means))
    assert [answered.condition for answered in found] == conditions
    with torch.inference_mode():
        for answered in found:
            for row, example in enumerate(examples):
                loss, said = slow(loaded, example, answered.condition, means, 3)
                assert answered.gold_nll[row] == pytest.approx(loss, abs=2e-5)
                assert answered.generated[row] == said
    losses = [answered.gold_nll for answered in found]
    assert losses[0] != losses[1] != losses[3], "the knockouts did something"


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("mode", MODES)
def test_chunks_and_partners_change_nothing(family: str, mode: str) -> None:
    loaded, examples = tiny_model(family), examples_of(3)
    means = head_means(loaded.model, [example.prompt_ids for example in examples])
    scopes = [scope for scope in SCOPES if (mode, scope) in CASES]
    conditions = [condition for scope in scopes for condition in conditions_of(mode, scope, SETS[:3])]
    together = list(answer_under(loaded, examples, conditions, max_new_tokens=5, chunk_tokens=11, means=means))
    for condition, batched in zip(conditions, together, strict=True):
        for row, example in enumerate(examples):
            (alone,) = answer_under(loaded, [example], [condition], max_new_tokens=5, means=means)
            assert alone.gold_nll[0] == pytest.approx(batched.gold_nll[row], abs=1e-5)
            assert alone.generated[0] == batched.generated[row]


@pytest.mark.parametrize("mode", MODES)
def test_no_head_and_dose_0_change_no_bit_and_a_condition_knows_no_other(mode: str) -> None:
    loaded, examples = tiny_model("llama"), examples_of()
    make_observable(loaded.model)
    answers = [example.answer_ids for example in examples]
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * 2, 0, "cpu")
    given = {"means": torch.ones(3, 4, 8), "needles": needle_spans(examples, batch.pads)}
    with torch.inference_mode():
        start = prefix(loaded.model, batch)
        forks = Forks(loaded.model, start, 3, 5)
        plain = gold_forks(forks, answers)
        with knock_out_forks(loaded.model, [((), mode)] * 3, **given):
            assert torch.equal(gold_forks(forks, answers), plain)
        with knock_out_forks(loaded.model, [((), mode), (ALL, mode), (SETS[1], mode)], **given):
            mixed = gold_forks(forks, answers)
        with knock_out_forks(loaded.model, [((), mode), (SETS[1], "zero_output"), (SETS[1], mode)], **given):
            again = gold_forks(forks, answers)
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[2], again[2])
    assert not torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_output_is_a_hook_before_the_output_projection(family: str) -> None:
    loaded = tiny_model(family)
    make_observable(loaded.model)
    ids, means = torch.arange(3, 43)[None], torch.rand(3, 4, loaded.layout.head_dim)

    def put(layer, flat):
        z = flat.clone().unflatten(-1, (4, loaded.layout.head_dim))
        for where, head in SETS[1]:
            if where == layer:
                z[:, :, head] = means[layer, head]
        return z.flatten(-2)

    with torch.inference_mode():
        with projection_inputs(loaded.model, put):
            expected = loaded.model(ids).logits
        with knock_out(loaded.model, SETS[1], "mean_output", means=means):
            assert torch.equal(loaded.model(ids).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [0, 13])
def test_head_means_are_means_over_all_positions_of_all_prompts(family: str, chunk: int) -> None:
    loaded, prompts = tiny_model(family), [example.prompt_ids for example in examples_of(3)]
    make_observable(loaded.model)
    rows: dict[int, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: rows.setdefault(layer, []).append(args[0][0]))
        for layer, module in enumerate(output_projections(loaded.model))
    ]
    with torch.inference_mode():
        for prompt in prompts:
            loaded.model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    expected = torch.stack([torch.cat(rows[layer]).double().mean(0).unflatten(0, (4, -1)) for layer in range(3)])
    found = head_means(loaded.model, prompts, chunk_tokens=chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_needle_hidden_in_one_pass_is_seen_up_to_its_end(family: str) -> None:
    """Around a whole padded pass the rows before a needle's end are those of the plain model."""
    loaded, examples = tiny_model(family), examples_of()
    batch = pad_batch(*zip(*[(one.prompt_ids, one.answer_ids) for one in examples], strict=True), 0, "cpu")
    needles = needle_spans(examples, batch.pads)

    def run():
        return loaded.model(batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits

    with torch.inference_mode():
        make_observable(loaded.model)
        plain = run()
        with knock_out(loaded.model, ALL, "block_needle", needles=needles):
            blocked = run()
    assert blocked.isfinite().all()
    for row, ((span,), pad) in enumerate(zip(needles, batch.pads, strict=True)):
        torch.testing.assert_close(blocked[row, pad : span.end], plain[row, pad : span.end], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(blocked[row, span.end], plain[row, span.end])


@pytest.mark.parametrize("mode", MODES)
def test_copying_is_lost_with_the_planted_head_and_with_no_other_under_every_mode(mode: str) -> None:
    loaded, examples = copying_model(), [planted_example(index) for index in range(3)]
    means = head_means(loaded.model, [example.prompt_ids for example in examples])
    scopes = [scope for scope in SCOPES if (mode, scope) in CASES and scope != "published_decode"]
    copied = [[10, 11, 12]] * 3
    for scope in scopes:
        sets = [((0, 0),), *(((0, head),) for head in range(1, 8)), tuple((0, head) for head in range(1, 8))]
        destroyed, *others = answer_under(
            loaded, examples, conditions_of(mode, scope, sets), max_new_tokens=5, means=means
        )
        assert all(answered.generated == copied for answered in others)
        assert all(tokens[:1] != [10] for tokens in destroyed.generated)
        assert min(destroyed.gold_nll) > 1 > max(max(answered.gold_nll) for answered in others)


def test_published_code_leaves_the_first_answer_token_alone() -> None:
    loaded, examples = copying_model(), [planted_example(index) for index in range(3)]
    conditions = conditions_of("uniform_attention", "published_decode", [((0, 0),)])
    (answered,) = answer_under(loaded, examples, conditions, max_new_tokens=5)
    assert all(tokens[0] == 10 and tokens[1:2] != [11] for tokens in answered.generated)


def test_conditions_in_several_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples = tiny_model("llama"), examples_of()
    conditions = [*conditions_of("zero_output", "decode"), *conditions_of("uniform_attention", "decode")]
    whole = list(answer_under(loaded, examples, conditions, max_new_tokens=4))
    sizes = {1: 3, 4: 2}  # rows at once -> forks at once
    monkeypatch.setattr(
        "rhstudy.interventions.answering.forks_that_fit", lambda model, num, tokens, rows, at_once: sizes[at_once]
    )
    for one, other in zip(whole, answer_under(loaded, examples, conditions, max_new_tokens=4), strict=True):
        assert one.condition == other.condition
        assert one.generated == other.generated
        assert one.gold_nll == pytest.approx(other.gold_nll, abs=1e-5)


def test_a_resumed_group_has_the_room_and_the_bits_of_an_unbroken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples, rooms = tiny_model("llama"), examples_of(), []
    named = zip("abcdefg", [*SETS, *SETS[1:]], strict=True)
    conditions = [Condition(condition_id=name, kind="top", dose=1, heads=heads) for name, heads in named]

    def noted(*given, room, **named):
        rooms.append(room)
        return prefix(*given, room=room, **named)

    monkeypatch.setattr("rhstudy.interventions.answering.forks_that_fit", lambda *_: 3)
    monkeypatch.setattr("rhstudy.interventions.answering.prefix", noted)
    whole = list(answer_under(loaded, examples, conditions, max_new_tokens=4))
    rest = list(answer_under(loaded, examples, conditions, max_new_tokens=4, done=("a", "b", "c")))
    assert whole[3:] == rest
    assert len(rooms) == 2
    assert rooms[0] == rooms[1], "the first part is the largest"


def test_a_sliding_window_answers_as_the_context_manager_does() -> None:
    loaded, (example,) = tiny_model("mistral"), examples_of(1)
    batch = pad_batch([example.prompt_ids], [[]], 0, "cpu")
    (answered,) = answer_under(loaded, [example], conditions_of("block_needle", "decode", [ALL]), max_new_tokens=6)
    with torch.inference_mode():
        start = prefix(loaded.model, batch)
        spans = needle_spans([example], batch.pads)
        with (
            knock_out(loaded.model, ALL, "block_needle", needles=spans),
            from_last_token(loaded.model, start) as prompt,
        ):
            assert answered.gold_nll == gold_nll(loaded.model, prompt, [example.answer_ids]).tolist()
            assert answered.generated == greedy(loaded.model, prompt, max_new_tokens=6, stop_ids=frozenset({STOP}))


def test_bad_modes_scopes_means_and_needles_are_refused() -> None:
    loaded, (example,) = tiny_model("llama"), examples_of(1)
    model, heads, ids = loaded.model, [(0, 1)], torch.arange(3, 43)[None]
    with pytest.raises(InputError, match=r"knockout.mode must be one of zero_output, .* got 'query_zero'"):
        require_mode("query_zero")
    with pytest.raises(InputError, match=r"knockout.scope must be one of decode, .* got 'prefill'"):
        require_mode("zero_output", "prefill")
    with pytest.raises(InputError, match=r"knockout.scope must begin with the answer rows under block_needle, got"):
        next(answer_under(loaded, [example], conditions_of("block_needle", "prefill_and_decode"), max_new_tokens=2))
    with pytest.raises(InputError, match=r"means must be given under mean_output, got None"):
        knock_out(model, heads, "mean_output").__enter__()
    for shape in [(8, 4, 3), (2, 4, 8), (3, 3, 8)]:
        with pytest.raises(InputError, match=r"means must have shape \(3, 4, 'dim'\), got"):
            knock_out(model, heads, "mean_output", means=torch.zeros(shape)).__enter__()
    with (
        knock_out(model, heads, "mean_output", means=torch.zeros(3, 4, 9)),
        pytest.raises(InputError, match=r"means must have dim 8, got 9"),
    ):
        model(ids)
    for needles in (None, [], [[]]):
        with pytest.raises(InputError, match=r"needles must hold a span for each example under block_needle, got"):
            knock_out(model, heads, "block_needle", needles=needles).__enter__()
    with (
        knock_out(model, heads, "block_needle", needles=[[Span(3, 5)], [Span(3, 5)]]),
        pytest.raises(InputError, match=r"needles must be 1 lists, got 2"),
    ):
        model(ids)
    with pytest.raises(InputError, match=r"prompts must hold at least one prompt, got 0"):
        head_means(model, [])
