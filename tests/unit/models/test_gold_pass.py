"""Gold answers in one pass: an example's numbers do not depend on padding, partners or recording."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import DECODERS, random_example, tiny_model
from torch import nn

from rhstudy.errors import InputError
from rhstudy.models import gold_pass
from rhstudy.models.attention import make_observable
from rhstudy.models.gold_pass import GoldPasses, gold_batch, mean_gold_nll, only_rows, run_gold
from rhstudy.models.probe import ArgmaxObserver, MassObserver, observe

PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11],
    [3, 4, 5],
    [9, 8, 7, 6, 5, 4, 3, 9, 8, 7, 6, 5, 4, 3, 9, 8, 7, 6, 5, 4, 3, 9, 8, 7, 6],
]
ANSWERS = [[12, 13], [6, 7, 8], [7]]


def test_sequences_begin_at_0_and_are_padded_on_the_right() -> None:
    batch = gold_batch(PROMPTS[:2], ANSWERS[:2], 0, (12, 4))
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 0], [3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0]]
    assert batch.gold.tolist() == [[12, 13, 0, 0], [6, 7, 8, 0]]
    assert (batch.starts.tolist(), batch.counts.tolist()) == ([6, 2], [2, 3])
    assert gold_batch(PROMPTS[:2], ANSWERS[:2], 0, (2, 1)).ids.shape == (2, 9), "never cut"


@pytest.mark.parametrize(("prompts", "answers"), [([[1], []], [[1], [2]]), ([[1]], [[]]), ([], [])])
def test_empty_parts_are_refused(prompts: list[list[int]], answers: list[list[int]]) -> None:
    with pytest.raises(InputError, match="prompts and answers must be non-empty, got 0"):
        gold_batch(prompts, answers, 0)


def test_an_answer_a_prompt() -> None:
    with pytest.raises(InputError, match=r"answers must be one per prompt \(2\), got 1"):
        gold_batch([[1], [2]], [[1]], 0)


@pytest.mark.parametrize("family", list(DECODERS))
def test_padding_and_partners_change_nothing(family: str) -> None:
    model = tiny_model(family).model
    make_observable(model)
    with torch.inference_mode():
        together = run_gold(model, *gold_batch(PROMPTS, ANSWERS, 0, (64, 8)).tensors())
        for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            ids = torch.tensor([[*prompt, *answer]])
            rows = range(len(prompt) - 1, ids.shape[1] - 1)
            with observe(model, ArgmaxObserver(rows)) as observer:
                logits = model(input_ids=ids, use_cache=False).logits[0, rows.start : rows.stop].float()
            assert torch.equal(together[0][:, row, :, : len(answer)], observer.argmax()[:, 0])
            alone = nn.functional.cross_entropy(logits, torch.tensor(answer))
            torch.testing.assert_close(together[1][row], alone, atol=1e-5, rtol=1e-5)


def test_only_the_rows_asked_for_reach_the_lm_head() -> None:
    model = tiny_model("llama").model
    ids, rows = torch.arange(3, 33).reshape(2, 15), torch.tensor([[3, 4], [7, 14]])
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape)))
    with torch.inference_mode():
        whole = model(ids).logits
        with only_rows(model, rows):
            chosen = model(ids).logits
        assert model(ids).logits.shape == whole.shape, "the hook is gone"
    assert shapes == [(2, 15, 32), (2, 2, 32), (2, 15, 32)]
    torch.testing.assert_close(chosen, torch.stack([whole[0, [3, 4]], whole[1, [7, 14]]]))


def test_the_loss_is_the_mean_over_the_answer_s_own_tokens() -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    losses = mean_gold_nll(logits, torch.tensor([[1, 2, 3, 9], [4, 9, 9, 9]]), torch.tensor([3, 1]))
    logp = logits.log_softmax(dim=-1)
    expected = [-(logp[0, 0, 1] + logp[0, 1, 2] + logp[0, 2, 3]) / 3, -logp[1, 0, 4]]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_observed_rows_begin_at_0_where_examples_have_their_own() -> None:
    with pytest.raises(InputError, match="observer.rows must be contiguous, from 0 on beside `starts`"):
        ArgmaxObserver(range(1, 3), torch.tensor([4]))


class Recording:
    """Stands for `CudaGraphs`: notes the shapes it was called with and runs directly."""

    def __init__(self, run, device) -> None:
        self.run, self.shapes = run, []

    def __call__(self, *tensors):
        self.shapes.append(tuple(tensors[0].shape))
        return self.run(*tensors)


def test_only_passes_that_come_often_and_are_small_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gold_pass, "CudaGraphs", Recording)
    monkeypatch.setattr(gold_pass, "on_one_gpu", lambda model: True)
    loaded = tiny_model("llama")
    make_observable(loaded.model)
    rng = np.random.default_rng(0)
    examples = [random_example(rng, index, length=50 + index % 5) for index in range(gold_pass.GRAPH_REUSE)]
    pairs = [([item.prompt_ids], [item.answer_ids]) for item in examples]
    sizes = [(1, len(prompt[0]) + len(answer[0]), len(answer[0])) for prompt, answer in pairs]
    plain = GoldPasses(loaded.model, pad_id=0, cuda_graphs=False)

    def results(passes: GoldPasses) -> list[list[torch.Tensor]]:
        return [passes.launch(*pair)() for pair in pairs]

    with torch.inference_mode():
        often = GoldPasses(loaded.model, pad_id=0, sizes=sizes)
        for (prompt, answer), ours, direct in zip(pairs, results(often), results(plain), strict=True):
            assert torch.equal(ours[0][..., : len(answer[0])], direct[0][..., : len(answer[0])]), prompt
            torch.testing.assert_close(ours[1], direct[1])
        assert often._graphs.shapes == [(1, 64)] * len(pairs)
        seldom = GoldPasses(loaded.model, pad_id=0, sizes=sizes[1:])
        results(seldom)
        monkeypatch.setattr(gold_pass, "GRAPH_WORK", 64 * sum(map(torch.numel, loaded.model.parameters())) - 1)
        large = GoldPasses(loaded.model, pad_id=0, sizes=sizes)
        results(large)
    assert seldom._graphs.shapes == large._graphs.shapes == []
    assert plain._graphs is None


def test_recorded_lengths_waste_little() -> None:
    for tokens in range(1, 5000):
        _, padded, rows = gold_pass._rounded(1, tokens, 17)
        assert tokens <= padded <= max(tokens * 17 / 16 + 1, tokens + 15)
        assert rows == 24


def test_mass_is_observed_at_each_example_s_own_rows() -> None:
    model = tiny_model("mistral").model
    make_observable(model)
    ids = gold_batch(PROMPTS, ANSWERS, 0).ids
    positions = torch.tensor([[0, 5], [1, 2], [20, 23]])
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    with torch.inference_mode():
        with observe(model, MassObserver(range(2), weights, positions, torch.tensor([6, 2, 24]))) as observer:
            model(ids)
        model.set_attn_implementation("eager")
        maps = torch.stack(model(ids, output_attentions=True).attentions)
    for row, start in enumerate([6, 2, 24]):
        rows = maps[:, row, :, [start, min(start + 1, ids.shape[1] - 1)]]
        expected = (weights[row][:, None] * rows[..., positions[row]]).sum(dim=2)
        torch.testing.assert_close(observer.collected()[:, row], expected)
