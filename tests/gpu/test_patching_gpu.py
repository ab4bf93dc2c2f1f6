"""Patching on a GPU: recorded steps of both models, conditions at once, and z kept in the host's memory.

python -m pytest tests/gpu/test_patching_gpu.py -m gpu
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from pairs_of_models import pair
from tiny_models import random_example

from rhstudy.interventions import patch_runs
from rhstudy.interventions.patch_runs import PatchRuns
from rhstudy.models.load import LoadedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

SETS = [(), ((0, 1), (1, 0), (2, 3)), ((1, 2),), tuple((layer, head) for layer in range(3) for head in range(4))]
MAX_NEW = 12


def on_gpu(loaded: LoadedModel) -> LoadedModel:
    return dataclasses.replace(loaded, model=loaded.model.to("cuda"))


def runs_of(donor: LoadedModel, recipient: LoadedModel, **changes: object) -> PatchRuns:
    rng = np.random.default_rng(3)
    chosen = [random_example(rng, index, length=60 + 9 * index, answer=2 + index) for index in range(4)]
    prompts, answers = [item.prompt_ids for item in chosen], [item.answer_ids for item in chosen]
    options = {"max_new_tokens": MAX_NEW, "stop_ids": frozenset(), **changes}
    return PatchRuns(donor.model, recipient.model, prompts, answers, SETS[-1], **options)


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["all_positions", "answer_rows"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt_neox"])
def test_at_once_and_recorded_is_one_at_a_time(family: str, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    donor, recipient = map(on_gpu, pair(family))
    alone = runs_of(donor, recipient, forked=False)
    expected = [alone.patched(heads, positions) for heads in SETS]
    monkeypatch.setattr(patch_runs, "_on_host", lambda *_: True)
    runs = runs_of(donor, recipient)
    late = positions == "answer_rows"
    found = runs.together(SETS) if late else [runs.patched(heads, positions) for heads in SETS]
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.gold_nll, other.gold_nll, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_a_twin_changes_no_bit_at_equal_shapes() -> None:
    _, recipient = map(on_gpu, pair("llama"))
    twin = dataclasses.replace(recipient, model=copy.deepcopy(recipient.model))
    runs = runs_of(twin, recipient)
    plain, patched = runs.together([()] * len(SETS)), runs.together(SETS)
    assert [one.tokens for one in plain] == [one.tokens for one in patched]
    assert all(torch.equal(one.gold_nll, other.gold_nll) for one, other in zip(plain, patched, strict=True))
