"""Passes over a step's examples: what they hold, that padding and packing change nothing, and memory that runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_example, tiny_model

from rhstudy.errors import InputError, StudyError
from rhstudy.models.attention import OBSERVED_ATTENTION, make_observable
from rhstudy.seeding import generator
from rhstudy.training import loop
from rhstudy.training.batching import PASS_TOKENS, num_sequence_tokens, pass_size
from rhstudy.training.causal import CAUSAL_ATTENTION, PACKED_ATTENTION, causal_attention, is_plainly_causal
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import finetune
from rhstudy.training.loss import answer_batch, answer_loss
from rhstudy.training.memory import activation_bytes
from rhstudy.types import Example

END = 2
PLAIN = ["llama", "gpt_neox", "qwen3", "gpt2", "granite", "mixtral"]
MASKED = ["mistral", "gemma2", "gemma3", "phi3", "cohere2", "llama4"]


def examples(lengths: list[int]) -> list[Example]:
    return [random_example(generator(3, "pass", i), i, length=n, answer=1 + i % 4) for i, n in enumerate(lengths)]


def one_at_a_time(model: Any, rows: list[Example]) -> torch.Tensor:
    """The loss by its definition: whole logits of unpadded sequences, and a sum of -log p."""
    total = torch.zeros(())
    for row in rows:
        ids = [*row.prompt_ids, *row.answer_ids, END]
        log_p = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for place in range(row.num_prompt_tokens, len(ids)):
            total = total - log_p[place - 1, ids[place]]
    return total


def test_passes_are_sorted_by_length_and_hold_what_fits() -> None:
    rows = examples([30, 200, 60, 31, 90, 61])
    size = pass_size(0, on_gpu=True)
    size.max_tokens = 210
    groups = size.groups(rows)
    assert sorted(row.example_id for group in groups for row in group) == sorted(row.example_id for row in rows)
    padded = [len(group) * max(map(num_sequence_tokens, group)) for group in groups]
    assert all(tokens <= 210 or len(group) == 1 for tokens, group in zip(padded, groups, strict=True))
    flat = [num_sequence_tokens(row) for group in groups for row in group]
    assert flat == sorted(flat, reverse=True)
    assert [len(group) for group in pass_size(2, on_gpu=True).groups(rows)] == [2, 2, 2]
    assert [len(group) for group in pass_size(0, on_gpu=False).groups(rows)] == [1] * 6


def test_a_step_a_little_over_the_size_is_one_pass_and_others_are_cut_evenly() -> None:
    size = pass_size(0, on_gpu=True)
    answered = examples([PASS_TOKENS // 8] * 8)
    assert sum(map(num_sequence_tokens, answered)) > PASS_TOKENS
    assert [len(group) for group in size.groups(answered)] == [8]
    assert [len(group) for group in size.groups(examples([PASS_TOKENS // 6] * 8))] == [4, 4]
    assert [len(group) for group in size.groups(examples([PASS_TOKENS, *[PASS_TOKENS // 6] * 6]))] == [1, 6]
    assert [len(group) for group in size.groups(examples([PASS_TOKENS // 3] * 8), 2)] == [4, 4]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("family", PLAIN)
def test_padded_and_packed_losses_and_gradients_are_those_of_single_sequences(family: str, packing: bool) -> None:
    model, rows = tiny_model(family).model, examples([30, 55, 41])
    model.requires_grad_(True)
    one_at_a_time(model, rows).backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with causal_attention(model, packing=packing):
        assert model.config._attn_implementation == (PACKED_ATTENTION if packing else CAUSAL_ATTENTION)
        loss = answer_loss(model, answer_batch(rows, END, "cpu", packing=packing))
        loss.backward()
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(loss, one_at_a_time(model, rows), rtol=1e-5, atol=1e-5)
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad / scale, expected[name] / scale, rtol=0, atol=1e-5)


def test_a_model_that_was_watched_before_trains_as_any_other() -> None:
    model, rows = tiny_model("llama").model, examples([30, 55, 41])
    make_observable(model)
    with torch.no_grad(), causal_attention(model, packing=False):
        assert model.config._attn_implementation == CAUSAL_ATTENTION
        found = answer_loss(model, answer_batch(rows, END, "cpu"))
    assert model.config._attn_implementation == OBSERVED_ATTENTION
    torch.testing.assert_close(found, one_at_a_time(model, rows), rtol=1e-5, atol=1e-5)


def test_packed_sequences_do_not_see_each_other() -> None:
    model, rows = tiny_model("llama").model, examples([30, 55])
    other = random_example(generator(9, "other"), 7, length=30, answer=1)
    batches = [answer_batch([first, rows[1]], END, "cpu", packing=True) for first in (rows[0], other)]
    own = len(rows[1].answer_ids) + 1
    losses = []
    for batch in batches:
        kept = batch.__class__(
            ids=batch.ids, picks=batch.picks[-own:], targets=batch.targets[-own:],
            lengths=batch.lengths, positions=batch.positions,
        )  # fmt: skip
        with torch.no_grad(), causal_attention(model, packing=True):
            losses.append(float(answer_loss(model, kept)))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("family", MASKED)
def test_models_with_windows_or_caps_keep_their_own_attention(family: str) -> None:
    model, rows = tiny_model(family).model, examples([30, 55, 41])
    assert not is_plainly_causal(model)
    with pytest.raises(InputError, match=r"training\.packing must be for models with plain causal attention"):
        causal_attention(model, packing=True).__enter__()
    with torch.no_grad(), causal_attention(model, packing=False):
        found = answer_loss(model, answer_batch(rows, END, "cpu"))
        torch.testing.assert_close(found, one_at_a_time(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_only_answer_rows_reach_the_lm_head(family: str, packing: bool) -> None:
    if packing and family == "gemma2":
        pytest.skip("gemma2 caps its logits and is never packed")
    model, rows = tiny_model(family).model, examples([30, 55, 41])
    shapes: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _given, output: shapes.append(output.shape))
    batch = answer_batch(rows, END, "cpu", packing=packing)
    answer_loss(model, batch)
    num_answer_tokens = sum(len(row.answer_ids) + 1 for row in rows)
    assert shapes == [(1, num_answer_tokens, model.config.vocab_size)]


def test_packing_and_pass_size_do_not_change_what_is_learned(tmp_path: Path) -> None:
    results = [
        finetune(
            tiny_model("llama"),
            examples([30, 80, 33, 60, 45, 70, 31]),
            TrainingConfig(batch_size=4, micro_batch_size=size, packing=packing),
            seed=0,
            work_dir=tmp_path / f"{size}-{packing}",
        )
        for size, packing in ((0, False), (4, False), (4, True), (3, True))
    ]
    for other in results[1:]:
        assert other.losses == pytest.approx(results[0].losses, abs=1e-5)
        for name, value in results[0].weights.items():
            torch.testing.assert_close(value, other.weights[name], atol=1e-5, rtol=1e-4)


class Hungry:
    """Stands in for the loss: runs out of memory where a pass has more sequences than fit, or keeps activations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fits: int, needs_checkpointing: bool = False) -> None:
        self.fits, self.needs_checkpointing = fits, needs_checkpointing
        self.sizes: list[int] = []
        monkeypatch.setattr(loop, "answer_loss", self)

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        self.sizes.append(len(batch.ids))
        kept = not model.is_gradient_checkpointing
        if len(batch.ids) > self.fits or (self.needs_checkpointing and kept):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return answer_loss(model, batch)


def run(tmp_path: Path, **settings: Any) -> Any:
    config = TrainingConfig(batch_size=4, **settings)
    model = tiny_model("llama")
    result = finetune(model, examples([30, 31, 32, 33]), config, seed=0, work_dir=tmp_path)
    assert not model.model.is_gradient_checkpointing
    return result


def test_out_of_memory_recomputes_activations_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "plain", micro_batch_size=2)
    hungry = Hungry(monkeypatch, fits=2, needs_checkpointing=True)
    found = run(tmp_path / "hungry", micro_batch_size=2)
    assert hungry.sizes == [2, 2, 2]
    assert found.gradient_checkpointing
    assert not expected.gradient_checkpointing
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for name, value in expected.weights.items():
        torch.testing.assert_close(value, found.weights[name], atol=1e-5, rtol=1e-4)


def test_out_of_memory_makes_passes_smaller_when_their_size_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry = Hungry(monkeypatch, fits=1)
    monkeypatch.setattr("rhstudy.training.memory.pass_size", lambda _size, on_gpu: pass_size(0, on_gpu=not on_gpu))
    expected_sizes = [4, 4, 2, 1, 1, 1, 1]  # short rows: activations are recomputed first, then passes are halved
    result = run(tmp_path)
    assert hungry.sizes == expected_sizes
    assert result.gradient_checkpointing


@pytest.mark.parametrize(("setting", "tries"), [("auto", 2), ("on", 1), ("off", 1)])
def test_out_of_memory_with_nothing_left_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, tries: int
) -> None:
    hungry = Hungry(monkeypatch, fits=0)
    with pytest.raises(StudyError, match=r"memory must hold a micro-batch, got 'CUDA out of memory\. Tried") as caught:
        run(tmp_path, gradient_checkpointing=setting, micro_batch_size=4)
    assert caught.value.exit_code == 1
    assert len(hungry.sizes) == tries


def test_other_errors_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(_model: Any, _batch: Any) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "answer_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path)
    assert calls == [1]


def test_the_estimate_of_activations_grows_with_tokens_layers_and_width() -> None:
    model = tiny_model("llama").model
    assert activation_bytes(model, 10) == 10 * 3 * (4 * (8 * 32 + 4 * 64) + 16 * 32)


def test_packed_passes_are_made_smaller_and_never_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(loop, "answer_loss", full)
    config = TrainingConfig(packing=True, micro_batch_size=4, batch_size=4)
    tiny = tiny_model("llama")
    with pytest.raises(StudyError, match="memory must hold a micro-batch"):
        finetune(tiny, examples([30, 40, 50, 60]), config, seed=0, work_dir=tmp_path)
    assert not tiny.model.is_gradient_checkpointing


@pytest.mark.parametrize("text", ["CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_an_optimizer_that_does_not_fit_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any, **_options: Any) -> None:
        raise (torch.OutOfMemoryError if text.startswith("CUDA out") else RuntimeError)(text)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(StudyError, match="memory must hold what is trained, its gradients and its optimizer's moments"):
        finetune(tiny_model("llama"), examples([30]), TrainingConfig(batch_size=1), seed=0, work_dir=tmp_path)


def test_another_error_of_the_optimizer_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: Any, **_options: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        finetune(tiny_model("llama"), examples([30]), TrainingConfig(batch_size=1), seed=0, work_dir=tmp_path)
