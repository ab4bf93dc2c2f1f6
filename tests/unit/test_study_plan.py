from __future__ import annotations

import pytest

from rhstudy.configs import digest, digest_view, from_mapping
from rhstudy.errors import InputError
from rhstudy.study import StudyConfig, plan_arms, work_order

DATA = {"train_file": "mdqa", "num_examples": 8, "num_tokens": 512}


def study(**changes: object) -> StudyConfig:
    return from_mapping(StudyConfig, {"data": DATA, **changes})


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_machine_begins_with_its_part_and_ends_with_everything(count: int) -> None:
    arms = list(plan_arms(study()))
    orders = [work_order(arms, (number, count)) for number in range(1, count + 1)]
    first = [order[: len(arms[number::count])] for number, order in enumerate(orders)]
    assert sorted(arm.name for part in first for arm in part) == sorted(arm.name for arm in arms)
    assert all(sorted(arm.name for arm in order) == sorted(arm.name for arm in arms) for order in orders)
    assert orders[0][0].name == "real/seed0"


def test_alone_the_order_is_the_plan() -> None:
    arms = list(plan_arms(study()))
    assert work_order(arms, (1, 1)) == arms


def test_the_part_does_not_change_what_the_study_is() -> None:
    one, other = (digest("study", digest_view(study(part=part))) for part in ([1, 2], [2, 2]))
    assert one == other


@pytest.mark.parametrize("part", [[0, 2], [3, 2], [1, 2, 3], [1]])
def test_parts_that_do_not_exist_are_refused(part: list[int]) -> None:
    with pytest.raises(InputError, match=r"part must be K N with K from 1 to N, got \("):
        study(part=part)
