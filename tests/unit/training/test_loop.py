"""The training loop: what moves, what the loss is, and that a killed run ends where an unbroken one ends."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.errors import InputError, StudyError
from rhstudy.seeding import generator
from rhstudy.training.config import TrainingConfig
from rhstudy.training.context import frozen_fingerprint, require_frozen, unfreeze_attention
from rhstudy.training.loop import finetune, plan_steps, rate_factor
from rhstudy.training.loss import answer_batch, answer_loss

END = 2


def _examples(num: int = 10) -> list:
    return [random_example(generator(3, "train", i), i, length=30 + 3 * i, answer=1 + i % 4) for i in range(num)]


def _naive_loss(model: torch.nn.Module, examples: list) -> tuple[float, int]:
    """Sum over answer and end tokens of -log p, one unpadded example at a time."""
    total, count = 0.0, 0
    for example in examples:
        ids = [*example.prompt_ids, *example.answer_ids, END]
        log_p = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for place in range(example.num_prompt_tokens, len(ids)):
            total -= float(log_p[place - 1, ids[place]])
            count += 1
    return total, count


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_loss_equals_the_naive_sum(family: str) -> None:
    loaded, examples = tiny_model(family), _examples(4)
    batch = answer_batch(examples, END, "cpu")
    with torch.no_grad():
        expected, count = _naive_loss(loaded.model, examples)
        assert float(answer_loss(loaded.model, batch)) == pytest.approx(expected, rel=1e-5)
    assert len(batch.targets) == count


@pytest.mark.parametrize("family", FAMILIES)
def test_only_attention_moves_and_the_loss_falls(family: str, tmp_path: Path) -> None:
    loaded = tiny_model(family)
    before = copy.deepcopy(loaded.model.state_dict())
    config = TrainingConfig(batch_size=5, micro_batch_size=2, num_epochs=6, learning_rate=1e-2)
    result = finetune(loaded, _examples(), config, seed=0, work_dir=tmp_path)
    moved = {name for name, value in loaded.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(result.weights)
    assert all("attn" in name or "attention" in name for name in moved)
    assert result.losses[-1] < result.losses[0]
    assert result.weight_change_norm > 0
    assert result.train_loss == pytest.approx(sum(result.losses[-2:]) / 2)


def test_micro_batches_do_not_change_the_result(tmp_path: Path) -> None:
    results = [
        finetune(
            tiny_model("llama"),
            _examples(),
            TrainingConfig(batch_size=5, micro_batch_size=size),
            seed=0,
            work_dir=tmp_path / str(size),
        )
        for size in (1, 5)
    ]
    for name, value in results[0].weights.items():
        torch.testing.assert_close(value, results[1].weights[name], atol=1e-5, rtol=1e-4)


def test_killed_at_any_step_and_resumed_ends_bit_equal(tmp_path: Path) -> None:
    config = TrainingConfig(batch_size=3, num_epochs=2, save_every_steps=2)
    whole = finetune(tiny_model("llama"), _examples(), config, seed=1, work_dir=tmp_path / "whole")

    class KilledError(Exception):
        pass

    for kill_at in (1, 4, 6):
        work = tmp_path / f"killed-{kill_at}"

        def kill(step: int, _metrics: object, kill_at: int = kill_at) -> None:
            if step == kill_at:
                raise KilledError

        with pytest.raises(KilledError):
            finetune(tiny_model("llama"), _examples(), config, seed=1, work_dir=work, on_step=kill)
        resumed = finetune(tiny_model("llama"), _examples(), config, seed=1, work_dir=work)
        assert resumed.losses == whole.losses
        assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())


def test_order_follows_from_the_seed_alone() -> None:
    config = TrainingConfig(batch_size=4, num_epochs=2)
    assert plan_steps(10, config, 7) == plan_steps(10, config, 7)
    assert plan_steps(10, config, 7) != plan_steps(10, config, 8)
    flat = [index for step in plan_steps(10, config, 7) for index in step]
    assert sorted(flat) == sorted([*range(10), *range(10)])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    loaded = tiny_model("llama")
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(StudyError, match=r"training loss must be finite, got nan \(step 0\)"):
        finetune(loaded, _examples(), TrainingConfig(), seed=0, work_dir=tmp_path)


def test_a_frozen_parameter_that_moved_is_an_error() -> None:
    model = tiny_model("llama").model
    unfreeze_attention(model)
    before = frozen_fingerprint(model)
    require_frozen(model, before)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(StudyError, match="frozen parameters must stay as they were"):
        require_frozen(model, before)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("learning_rate", 0.0, r"training.learning_rate must lie in \(0, 1\), got 0.0"),
        ("batch_size", 0, "training.batch_size must be at least 1, got 0"),
        ("warmup_fraction", 1.0, r"training.warmup_fraction must lie in \[0, 1\), got 1.0"),
        ("max_grad_norm", 0.0, "training.max_grad_norm must be positive, got 0.0"),
    ],
)
def test_bad_settings(field: str, value: float, text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainingConfig(**{field: value})


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data must hold at least one training example"):
        finetune(tiny_model("llama"), [], TrainingConfig(), seed=0, work_dir=tmp_path)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]), ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0])],
)
def test_learning_rate_rises_then_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    rates = [rate_factor(step, num_steps=6, num_warmup=2, schedule=schedule) for step in range(6)]
    assert rates == pytest.approx(expected)


def test_cosine_ends_near_zero_and_is_half_at_the_middle() -> None:
    assert rate_factor(5, num_steps=10, num_warmup=0, schedule="cosine") == pytest.approx(0.5)
    assert rate_factor(10, num_steps=10, num_warmup=0, schedule="cosine") == pytest.approx(0.0)
