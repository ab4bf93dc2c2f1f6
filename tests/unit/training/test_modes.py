"""When layers are compiled, that compiled layers learn the same, and when the resumable state is due."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_example, tiny_model

from rhstudy.errors import InputError
from rhstudy.keeping import keeping
from rhstudy.seeding import generator
from rhstudy.training import modes, state
from rhstudy.training.config import TrainingConfig
from rhstudy.training.loop import finetune
from rhstudy.training.modes import WORTH_FLOPS, compiled_layers, compiles
from rhstudy.training.state import SaveTimes


def on_gpu() -> Any:
    """A model that says it lies on a GPU."""
    model: Any = tiny_model("llama").model
    model.__class__ = type("OnGpu", (type(model),), {"device": torch.device("cuda")})
    return model


def wanted(model: Any, *, num_flops: float = WORTH_FLOPS, num_processes: int = 1, **settings: Any) -> bool:
    return compiles(TrainingConfig(**settings), model, num_flops=num_flops, num_processes=num_processes)


def test_compiling_begins_by_itself_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_has_compiler", lambda: True)
    assert wanted(on_gpu())
    assert not wanted(on_gpu(), num_flops=WORTH_FLOPS / 2)
    assert not wanted(on_gpu(), num_flops=float("nan"))
    with keeping():
        assert wanted(on_gpu(), num_flops=0.0)
    for against in ({"packing": True}, {"deterministic": True}, {"compile": "off"}):
        assert not wanted(on_gpu(), **against)
    assert not wanted(on_gpu(), num_processes=2)
    quantised = on_gpu()
    quantised.is_quantized = True
    assert not wanted(quantised)
    assert not wanted(tiny_model("llama").model)
    assert wanted(tiny_model("llama").model, compile="on")
    monkeypatch.setattr(modes, "_has_compiler", lambda: False)
    assert not wanted(on_gpu())


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler here")
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    rows = [random_example(generator(3, "mode", i), i, length=30 + 7 * i) for i in range(3)]
    losses = []
    for setting in ("off", "on"):
        loaded = tiny_model("llama")
        config = TrainingConfig(batch_size=3, compile=setting, learning_rate=1e-2, num_epochs=2)
        losses.append(finetune(loaded, rows, config, seed=0, work_dir=tmp_path / setting).losses)
        layers = [module for name, module in loaded.model.named_modules() if name.endswith("layers.0")]
        assert [layer._compiled_call_impl for layer in layers] == [None]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("strict", [True, False])
def test_a_layer_that_does_not_compile_runs_as_it_is_unless_asked_for(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama").model
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits

    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    torch._dynamo.reset()
    with compiled_layers(model, True, strict=strict):
        if strict:
            with pytest.raises(Exception, match="no such kernel"):
                model(ids)
        else:
            torch.testing.assert_close(model(ids).logits, expected)
    torch._dynamo.reset()


def test_the_state_is_due_after_steps_or_when_it_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    assert [step for step in range(1, 8) if SaveTimes(3, 1).due(step)] == [3, 6]
    assert [step for step in range(1, 45) if SaveTimes(0, 2).due(step)] == [20, 40]
    saves = SaveTimes(0, 1)
    now[0] += 9.9
    assert not saves.due(1)
    now[0] += 0.1
    assert saves.due(2)
    with saves.timed():
        now[0] += 2.0
    now[0] += 39.9
    assert not saves.due(3)
    now[0] += 0.1
    assert saves.due(4)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"training\.save_every_steps must be at least 0, got -1"):
        TrainingConfig(save_every_steps=-1)
