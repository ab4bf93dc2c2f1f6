"""Pretraining from nothing: what weights depend on, that a killed run ends as an unbroken one, what copying counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from rhstudy.data.cue_sequences import SequenceMaker
from rhstudy.data.facts import Passage
from rhstudy.data.python_docs import python_docs_rows
from rhstudy.errors import InputError, StudyError
from rhstudy.models.tokenizer import train_tokenizer
from rhstudy.training.pretraining import (
    HELD_OUT_SHARE,
    ArchitectureConfig,
    PretrainingConfig,
    PretrainingResult,
    copy_accuracy,
    new_decoder,
    pretrain,
    rate_factor,
    sequence_maker,
    split_passages,
)
from rhstudy.training.state import STATE_FILE, restore_state, save_state

SMALL = ArchitectureConfig(
    vocabulary_size=320, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
SHORT = PretrainingConfig(num_steps=6, batch_tokens=512, learning_rate=1e-2, num_warmup_steps=2, save_every_steps=2)


@functools.cache
def small_maker() -> SequenceMaker:
    passages = [Passage(row["title"], row["text"]) for row in python_docs_rows()[:40]]
    tokenizer = train_tokenizer([passage.text for passage in passages], SMALL.vocabulary_size, 256)
    return sequence_maker(passages, tokenizer, 512, seed=0)


def small_decoder(seed: int = 0) -> LlamaForCausalLM:
    return new_decoder(SMALL, end_id=0, seed=seed)


def trained(work_dir: Path, config: PretrainingConfig = SHORT, **options: Any) -> PretrainingResult:
    return pretrain(small_decoder(), small_maker(), config, work_dir=work_dir, **options)


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PretrainingResult:
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [rate_factor(step, num_steps=100, num_warmup=4) for step in range(101)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(rates[3:76]) == {1.0}
    assert rates[75:] == pytest.approx([(100 - step) / 25 for step in range(75, 101)])
    assert rate_factor(0, num_steps=1, num_warmup=1) == 1.0


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first = small_decoder()
    torch.randn(7)
    assert equal(small_decoder(), first)
    assert not equal(small_decoder(seed=1), first)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    weights = first.state_dict()
    assert float(weights["model.layers.0.self_attn.q_proj.weight"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(weights["model.layers.0.self_attn.o_proj.weight"].std()) == pytest.approx(0.01, rel=0.2)


def test_the_loss_falls_and_is_that_of_the_first_batch(whole: PretrainingResult, tmp_path: Path) -> None:
    assert len(whole.curve) == SHORT.num_steps
    assert whole.curve[0][0] == pytest.approx(math.log(SMALL.vocabulary_size), abs=0.1)
    assert whole.curve[-1][0] < whole.curve[0][0] - 0.2
    batches = [small_maker().batch("train", step, SHORT.batch_tokens) for step in range(SHORT.num_steps)]
    assert whole.num_tokens == sum(int(batch.is_real.sum()) for batch in batches)
    ids, chosen = torch.from_numpy(batches[0].ids), torch.from_numpy(batches[0].is_answer)
    log_p = small_decoder()(input_ids=ids).logits.detach().log_softmax(-1)
    naive = [-float(log_p[row, place - 1, ids[row, place]]) for row, place in chosen.nonzero().tolist()]
    assert whole.curve[0][1] == pytest.approx(sum(naive) / len(naive), rel=1e-5)
    assert not whole.model.training


def test_every_step_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, Mapping[str, float]]] = []
    trained(tmp_path, on_step=lambda step, metrics: told.append((step, metrics)))
    assert [step for step, _ in told] == list(range(SHORT.num_steps))
    assert set(told[0][1]) == {"text_loss", "answer_loss", "learning_rate", "grad_norm"}
    peak = SHORT.learning_rate
    assert [metrics["learning_rate"] for _, metrics in told][:2] == pytest.approx([peak / 2, peak])


@pytest.mark.parametrize("kill_at", [0, 3, 5])
def test_killed_and_resumed_ends_bit_equal(whole: PretrainingResult, tmp_path: Path, kill_at: int) -> None:
    class KilledError(Exception):
        pass

    def kill(step: int, _metrics: object) -> None:
        if step == kill_at:
            raise KilledError

    with pytest.raises(KilledError):
        trained(tmp_path, on_step=kill)
    steps: list[int] = []
    resumed = trained(tmp_path, on_step=lambda step, _metrics: steps.append(step))
    assert steps == list(range(kill_at // 2 * 2, SHORT.num_steps))
    assert (resumed.curve, resumed.num_tokens) == (whole.curve, whole.num_tokens)
    assert equal(resumed.model, whole.model)


def test_a_finished_run_is_not_trained_further(whole: PretrainingResult, tmp_path: Path) -> None:
    trained(tmp_path)
    again = trained(tmp_path, on_step=lambda _step, _metrics: pytest.fail("trained further"))
    assert equal(again.model, whole.model)
    assert again.curve == whole.curve


@pytest.mark.timeout(120)
def test_the_number_of_workers_does_not_matter(
    whole: PretrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the command line sets it: a forked worker would wait for the tokenizer's threads of its parent for ever.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    config = PretrainingConfig(
        num_steps=6, batch_tokens=512, learning_rate=1e-2, num_warmup_steps=2, save_every_steps=100, num_workers=2
    )
    assert equal(trained(tmp_path, config).model, whole.model)
    assert not (tmp_path / STATE_FILE).exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    match = r"training loss must be finite, got \[nan, nan, nan\] \(step 0\)\. Lower pretraining\.learning_rate"
    with pytest.raises(StudyError, match=match):
        pretrain(model, small_maker(), SHORT, work_dir=tmp_path)


class Parrot(LlamaForCausalLM):
    """Predicts one token everywhere, or what in fact comes next."""

    token: int | None = None

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        said = input_ids.roll(-1, 1) if self.token is None else torch.full_like(input_ids, self.token)
        return SimpleNamespace(logits=nn.functional.one_hot(said, SMALL.vocabulary_size).float())


def test_copying_counts_words_and_never_the_end_token() -> None:
    maker, parrot = small_maker(), Parrot(small_decoder().config)
    assert copy_accuracy(parrot, maker, [256, 512], num_tokens=4096) == {256: 1.0, 512: 1.0}
    parrot.token = maker.end_id
    assert copy_accuracy(parrot, maker, [256, 512], num_tokens=4096) == {256: 0.0, 512: 0.0}


def test_one_passage_in_so_many_is_held_out() -> None:
    passages = [Passage("t", str(number)) for number in range(2 * HELD_OUT_SHARE + 1)]
    trained_on, held_out = split_passages(passages)
    assert [passage.text for passage in held_out] == ["0", "20", "40"]
    assert len(trained_on) == 38
    assert not set(trained_on) & set(held_out)


def test_sequences_are_asked_a_question_per_64_tokens() -> None:
    assert small_maker()._questions == {256: 4, 512: 8}


@pytest.mark.parametrize(
    ("config", "field", "value", "match"),
    [
        (ArchitectureConfig, "num_layers", 0, r"architecture\.num_layers must be at least 1, got 0"),
        (ArchitectureConfig, "num_kv_heads", 0, r"architecture\.num_kv_heads must be at least 1, got 0"),
        (ArchitectureConfig, "hidden_size", 0, r"architecture\.hidden_size must be at least 1, got 0"),
        (ArchitectureConfig, "intermediate_size", 0, r"architecture\.intermediate_size must be at least 1, got 0"),
        (ArchitectureConfig, "num_context_tokens", 127, r"architecture\.num_context_tokens must be at least 128"),
        (ArchitectureConfig, "vocabulary_size", 257, r"architecture\.vocabulary_size must be at least 258, got 257"),
        (ArchitectureConfig, "num_heads", 7, r"architecture\.num_heads must be a multiple of 2 key/value heads, got 7"),
        (ArchitectureConfig, "num_heads", 0, r"architecture\.num_heads must be a multiple of 2 key/value heads, got 0"),
        (ArchitectureConfig, "head_dim", 15, r"architecture\.head_dim must be even, got 15"),
        (ArchitectureConfig, "head_dim", 0, r"architecture\.head_dim must be at least 2, got 0"),
        (ArchitectureConfig, "rope_theta", 0.0, r"architecture\.rope_theta must be more than 1 and finite, got 0\.0"),
        (PretrainingConfig, "num_steps", 0, r"pretraining\.num_steps must be at least 1, got 0"),
        (PretrainingConfig, "batch_tokens", 255, r"pretraining\.batch_tokens must be at least 256, got 255"),
        (PretrainingConfig, "num_warmup_steps", 0, r"pretraining\.num_warmup_steps must be at least 1, got 0"),
        (PretrainingConfig, "num_workers", -1, r"pretraining\.num_workers must be at least 0, got -1"),
        (PretrainingConfig, "save_every_steps", 0, r"pretraining\.save_every_steps must be at least 1, got 0"),
        (PretrainingConfig, "learning_rate", 0.0, r"pretraining\.learning_rate must lie in \(0, 1\), got 0\.0"),
        (PretrainingConfig, "max_grad_norm", 0.0, r"pretraining\.max_grad_norm must be positive, got 0\.0"),
    ],
)
def test_bad_settings(config: type, field: str, value: float, match: str) -> None:
    with pytest.raises(InputError, match=match):
        config(**{field: value})


def test_state_is_whole_or_absent(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    parts = [dict(model.named_parameters()), torch.optim.AdamW(model.parameters())]
    parts.append(torch.optim.lr_scheduler.LambdaLR(parts[1], lambda _step: 1.0))
    path = tmp_path / "work" / STATE_FILE
    assert restore_state(path, *parts) == {}
    model(torch.ones(1, 3)).backward()
    parts[1].step()
    save_state(path, *parts, {"curve": [(1.0, 2.0)], "num_tokens": 3})
    saved = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert restore_state(path, *parts) == {"curve": [(1.0, 2.0)], "num_tokens": 3}
    assert torch.equal(model.weight, saved)
    assert [item.name for item in path.parent.iterdir()] == [STATE_FILE]
