"""Planted truth: a copying head patched into a model without it restores copying; no matched random draw does."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from planted import copying_model, planted_example

from rhstudy.interventions.controls import matched_draws
from rhstudy.interventions.pairs import require_pair
from rhstudy.interventions.patch_runs import PatchRuns
from rhstudy.seeding import generator

STOP = frozenset({2})
COPYING, POSITION = (0, 0), (0, 1)


def without_copying():
    """The copying model whose head 0 no longer finds its needle."""
    loaded = copying_model()
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.q_proj.weight[:96] = 0
    return dataclasses.replace(loaded, digest="without copying")


@pytest.fixture(scope="module")
def runs():
    donor, recipient = copying_model(), without_copying()
    require_pair(donor, recipient)
    chosen = [planted_example(index) for index in range(4)]
    with torch.inference_mode():
        return chosen, PatchRuns(
            donor.model,
            recipient.model,
            [example.prompt_ids for example in chosen],
            [example.answer_ids for example in chosen],
            [(0, head) for head in range(8)],
            max_new_tokens=5,
            stop_ids=STOP,
        )


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["all_positions", "answer_rows"])
def test_the_copying_head_restores_copying_and_random_heads_do_not(runs, positions):
    chosen, patched = runs
    gold = [list(example.answer_ids) for example in chosen]
    assert patched.donor().tokens == gold
    lost = patched.recipient()
    assert all(said[: len(right)] != right for said, right in zip(lost.tokens, gold, strict=True))
    assert float(lost.gold_nll.min()) > 1
    restored = patched.patched([COPYING], positions)
    assert restored.tokens == gold
    assert float(restored.gold_nll.max()) < 0.1
    controls = matched_draws([COPYING], [POSITION], [8], num_draws=6, draws=generator(0, "planted"))
    assert len(controls.draws) == math.comb(6, 1)
    for heads in [*controls.draws, (POSITION,)]:
        answered = patched.patched(heads, positions)
        assert answered.tokens == lost.tokens
        assert torch.equal(answered.gold_nll, lost.gold_nll)


@torch.inference_mode()
def test_the_other_way_round_the_head_is_lost(runs):
    chosen, _ = runs
    reverse = PatchRuns(
        without_copying().model,
        copying_model().model,
        [example.prompt_ids for example in chosen],
        [example.answer_ids for example in chosen],
        [COPYING],
        max_new_tokens=5,
        stop_ids=STOP,
    )
    gold = [list(example.answer_ids) for example in chosen]
    assert reverse.recipient().tokens == gold
    assert reverse.patched([COPYING], "answer_rows").tokens == reverse.donor().tokens != gold
