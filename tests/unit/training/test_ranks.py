"""Sharing out a step's examples: each is taken once, and whoever has none left takes part at weight 0."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_example

from rhstudy.seeding import generator
from rhstudy.training.batching import pass_size
from rhstudy.training.ranks import ALONE, Ranks, cut_like, local, whole


@pytest.mark.parametrize("num_examples", [1, 2, 5, 8])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_example_is_taken_once_and_all_processes_do_as_many_passes(
    num_examples: int, num_ranks: int, size: int
) -> None:
    examples = [random_example(generator(0, "ranks", i), i, length=30 + i) for i in range(num_examples)]
    groups = pass_size(size, on_gpu=False).groups(examples, num_ranks)
    shares = [Ranks(rank=rank, size=num_ranks).shares(groups) for rank in range(num_ranks)]
    assert len({len(share) for share in shares}) == 1
    taken = [(example.example_id, weight) for share in shares for part, weight in share for example in part]
    counted = sorted((name, weight) for name, weight in taken if weight)
    assert counted == [(example.example_id, 1.0) for example in examples]
    assert {name for name, weight in taken if not weight} <= {"example-0"}, "the shortest"
    assert all(0 < len(part) <= size for share in shares for part, _ in share)


def test_a_process_alone_takes_every_group_and_exchanges_nothing() -> None:
    examples = [random_example(generator(0, "ranks", i), i) for i in range(5)]
    assert ALONE.shares([examples[:2], examples[2:]]) == [(examples[:2], 1.0), (examples[2:], 1.0)]
    value = torch.tensor([1.0, 2.0])
    assert whole(value) is local(value) is cut_like(value, value) is ALONE.total(value) is value
    assert ALONE.joint_norm(3.0, torch.device("cpu")) == 3.0
