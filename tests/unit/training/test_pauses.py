"""A model looked at in mid-training: nothing of it, of its weights or of chance, is changed by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.heads.detect import detect
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import finetune
from rhstudy.training.pauses import Pauses, lent_for_a_look, pause_steps
from rhstudy.types import HeadScores

ROWS = [random_example(generator(4, "score", i), i, length=40 + 5 * i) for i in range(3)]
TRAIN = [random_example(generator(3, "train", i), i, length=30 + 3 * i, answer=1 + i % 4) for i in range(9)]


def scores_of(loaded: LoadedModel) -> HeadScores:
    torch.rand(3)  # a detector may draw
    return detect(loaded.model, loaded.tokenizer, ROWS, batch_size=2, cuda_graphs=False)


def trained(folder: Path, looks: dict[int, HeadScores] | None, family: str = "llama", **given: object) -> tuple:
    """Weights, losses and the next random number of a run of six steps, looked at after steps 2 and 3."""
    loaded = tiny_model(family)
    config = TrainingConfig(batch_size=3, num_epochs=2, learning_rate=1e-2, **given)
    seen = {} if looks is None else looks
    pauses = Pauses(steps=() if looks is None else (2, 3), look=lambda step: seen.update({step: scores_of(loaded)}))
    torch.manual_seed(5)
    result = finetune(loaded, TRAIN, config, seed=1, work_dir=folder, pauses=pauses)
    return result.weights, result.losses, torch.rand(1)


@pytest.mark.parametrize("family", [*FAMILIES, "lora", "packed", "recomputed"])
def test_a_run_with_pauses_ends_bit_equal_to_one_without(family: str, tmp_path: Path) -> None:
    given = {
        "lora": {"method": "lora", "lora_rank": 4},
        "packed": {"packing": True, "micro_batch_size": 3},
        "recomputed": {"gradient_checkpointing": "on", "deterministic": True},
    }.get(family, {})
    name = family if family in FAMILIES else "llama"
    looks: dict[int, HeadScores] = {}
    weights, losses, drawn = trained(tmp_path / "looked at", looks, name, **given)
    plain_weights, plain_losses, plain_drawn = trained(tmp_path / "plain", None, name, **given)
    assert list(looks) == [2, 3]
    assert not np.array_equal(looks[2].real_nll, looks[3].real_nll)
    assert losses == plain_losses
    assert torch.equal(drawn, plain_drawn)
    assert all(torch.equal(value, plain_weights[name]) for name, value in weights.items())


def test_a_look_sees_what_a_checkpoint_of_that_step_would_give(tmp_path: Path) -> None:
    looks: dict[int, HeadScores] = {}
    trained(tmp_path / "whole", looks)
    loaded = tiny_model("llama")
    config = TrainingConfig(batch_size=3, num_epochs=2, learning_rate=1e-2, save_every_steps=3)

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(loaded, TRAIN, config, seed=1, work_dir=tmp_path, pauses=Pauses(steps=(3,), look=stop))
    loaded.model.eval()  # a run that was ended leaves the weights of its last step
    assert np.array_equal(scores_of(loaded).score, looks[3].score)
    assert np.array_equal(scores_of(loaded).real_nll, looks[3].real_nll)
    assert not (tmp_path / "training-state.pt").exists()  # a step is saved after the look, never before


def test_a_lent_model_is_put_back_however_the_look_ends() -> None:
    loaded = tiny_model("llama")
    layers = list(loaded.model.model.layers)
    loaded.model.train()
    layers[0].eval()
    layers[1]._compiled_call_impl = compiled = object()
    before = loaded.model.config._attn_implementation
    torch.use_deterministic_algorithms(True, warn_only=True)
    drawn = torch.get_rng_state()

    def look() -> None:
        with lent_for_a_look(loaded.model, loaded.model.dtype):
            assert not any(module.training for module in loaded.model.modules())
            assert layers[1]._compiled_call_impl is None
            assert not torch.are_deterministic_algorithms_enabled()
            scores_of(loaded)
            assert loaded.model.config._attn_implementation != before
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            look()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert loaded.model.config._attn_implementation == before
    assert layers[1]._compiled_call_impl is compiled
    assert (layers[0].training, layers[1].training, loaded.model.training) == (False, True, True)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_masters_are_scored_in_the_models_own_number_format() -> None:
    loaded = tiny_model("llama")
    loaded.model.to(torch.bfloat16)
    expected = scores_of(loaded)
    for layer in loaded.model.model.layers:
        layer.self_attn.float()
    loaded.model.train()
    with lent_for_a_look(loaded.model, torch.bfloat16):
        assert np.allclose(scores_of(loaded).real_nll, expected.real_nll, rtol=2e-2)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(100, [25, 50, 75]), (4, [1, 2, 3]), (2, [1, 1, 1]), (3, [1, 2, 2]), (1, [])],
)
def test_shares_are_reached_after_whole_steps_before_the_last(num_steps: int, expected: list[int]) -> None:
    assert list(pause_steps((0.25, 0.5, 0.75), num_steps).values()) == expected
