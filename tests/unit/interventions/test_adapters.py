"""Knockouts and patches of models with LoRA layers, beside copies into whose weights the adapters were merged."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tiny_models import random_example, tiny_model

from rhstudy.interventions.answering import answer_under
from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import MODES, SCOPES, knock_out
from rhstudy.interventions.patch_plan import PatchCondition
from rhstudy.interventions.patch_runs import PatchRuns
from rhstudy.models.adapters import add_adapter, load_adapter, save_adapter
from rhstudy.models.load import LoadedModel
from rhstudy.seeding import generator

FAMILIES = ("llama", "qwen2")
SOME = ((0, 1), (1, 0), (1, 3), (2, 2))
ALL = tuple(itertools.product(range(3), range(4)))
RANK, ALPHA = 2, 4
CASES = [pair for pair in itertools.product(MODES, SCOPES) if pair != ("block_needle", "prefill_and_decode")]


@pytest.fixture(autouse=True)
def _no_gradients():
    pytest.importorskip("peft")
    with torch.inference_mode():
        yield


def adapted(family, folder, seed) -> LoadedModel:
    """A model with an adapter read from a folder, as a stage reads it."""
    made = tiny_model(family)
    with torch.inference_mode(mode=False):
        weights = add_adapter(made.model, rank=RANK, alpha=ALPHA, targets="all", seed=seed)
    draw = torch.Generator().manual_seed(seed)
    moved = {name: value + 0.2 * torch.randn(value.shape, generator=draw) for name, value in weights.items()}
    folder.mkdir()
    save_adapter(folder, moved, rank=RANK, alpha=ALPHA, base=family)
    loaded = tiny_model(family)
    model, digest = load_adapter(loaded.model, folder)
    return dataclasses.replace(loaded, model=model, digest=digest)


def merged(loaded: LoadedModel) -> LoadedModel:
    """The same model without adapter layers: W + (alpha / r) BA in every linear layer, nothing of PEFT left."""
    plain = tiny_model(loaded.label).model
    held = dict(loaded.model.named_modules())
    for name, module in plain.named_modules():
        if hasattr(held[name], "lora_A"):
            down, up = held[name].lora_A["default"].weight, held[name].lora_B["default"].weight
            module.weight.add_(ALPHA / RANK * up @ down)
    return dataclasses.replace(loaded, model=plain, digest="")


def examples():
    rng = generator(11, "adapters")
    return [random_example(rng, index, length=35 + 12 * index, answer=3 + index) for index in range(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_a_model_with_an_adapter_are_knocked_out_as_those_of_the_merged_one(family, tmp_path):
    loaded = adapted(family, tmp_path / "adapter", 1)
    whole = merged(loaded)
    ids = torch.arange(3, 43)[None]
    untuned = tiny_model(family).model(ids).logits
    assert not torch.allclose(loaded.model(ids).logits, untuned, atol=1e-2), "the adapter does something"
    for heads in ((), SOME, ALL):
        with knock_out(loaded.model, heads), knock_out(whole.model, heads):
            assert torch.allclose(loaded.model(ids).logits, whole.model(ids).logits, atol=1e-5)
    conditions = [
        Condition(condition_id=f"{mode} {scope}", kind="top", dose=len(SOME), heads=SOME, mode=mode, scope=scope)
        for mode, scope in CASES
    ]
    means = torch.randn(3, 4, loaded.layout.head_dim, generator=torch.Generator().manual_seed(5))
    found = [
        list(answer_under(model, examples(), conditions, max_new_tokens=4, means=means)) for model in (loaded, whole)
    ]
    for with_adapter, without in zip(*found, strict=True):
        assert with_adapter.generated == without.generated
        assert with_adapter.gold_nll == pytest.approx(without.gold_nll, abs=1e-5)


@pytest.mark.parametrize("positions", ["all_positions", "answer_rows"])
def test_heads_are_patched_between_adapters_as_between_merged_models(positions, tmp_path):
    donor, recipient = (adapted("llama", tmp_path / f"adapter{seed}", seed) for seed in (1, 2))
    conditions = [PatchCondition(condition_id="recipient", kind="recipient")]
    conditions += [
        PatchCondition(condition_id=f"set {len(heads)}", kind="patched", positions=positions, heads=heads)
        for heads in (SOME, ALL)
    ]
    found = []
    for one, other in ((donor, recipient), (merged(donor), merged(recipient))):
        chosen = examples()
        runs = PatchRuns(
            one.model,
            other.model,
            [example.prompt_ids for example in chosen],
            [example.answer_ids for example in chosen],
            list(ALL),
            max_new_tokens=4,
            stop_ids=frozenset(),
            positions=[positions],
        )
        found.append([answered for _, answered in runs.answers(conditions)])
    for with_adapter, without in zip(*found, strict=True):
        assert with_adapter.tokens == without.tokens
        assert with_adapter.gold_nll.tolist() == pytest.approx(without.gold_nll.tolist(), abs=1e-5)
    losses = [tuple(answered.gold_nll.tolist()) for answered in found[0]]
    assert len(set(losses)) == len(losses), "each patch does something"
