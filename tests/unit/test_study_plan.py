from __future__ import annotations

import pytest

from rhstudy.configs import digest, digest_view, from_mapping
from rhstudy.errors import InputError
from rhstudy.plan import StudyConfig, arms_of_part, plan_arms

DATA = {"train_file": "mdqa", "num_examples": 8, "num_tokens": 512}
NUM_ARMS = 7  # five recipes, a ceiling seed, a baseline


def study(**changes: object) -> StudyConfig:
    return from_mapping(StudyConfig, {"data": DATA, **changes})


@pytest.mark.parametrize("count", [1, 2, 3, NUM_ARMS])
def test_the_parts_share_out_every_arm_once(count: int) -> None:
    parts = [arms_of_part(study(part=[number, count])) for number in range(1, count + 1)]
    names = [arm.name for part in parts for arm in part]
    assert sorted(names) == sorted(arm.name for arm in plan_arms(study()))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts[0][0].name == "real/seed0"


def test_part_1_of_1_is_the_whole_study() -> None:
    whole = study(part=[1, 1])
    assert arms_of_part(whole) == list(plan_arms(whole))
    assert (whole.is_part, whole.run_name) == (False, "study")


def test_a_part_says_so_in_its_name_and_its_arms_are_the_same() -> None:
    one, other = study(part=[1, 2]), study(part=[2, 2])
    assert (one.run_name, other.run_name) == ("study, part 1 of 2", "study, part 2 of 2")
    assert digest("study", digest_view(one)) == digest("study", digest_view(other))


@pytest.mark.parametrize("part", [[0, 2], [3, 2], [1, 2, 3], [1], [-1, -1]])
def test_parts_that_do_not_exist_are_refused(part: list[int]) -> None:
    with pytest.raises(InputError, match=r"part must be K N with K from 1 to N, got \("):
        study(part=part)


def test_more_parts_than_arms_are_refused() -> None:
    text = rf"part must have N at most the number of arms \({NUM_ARMS}\), got \(1, 8\)\. Use fewer machines"
    with pytest.raises(InputError, match=text):
        study(part=[1, NUM_ARMS + 1])


def test_recipes_that_the_task_cannot_tell_apart_are_refused() -> None:
    two = [{"name": f"of {count}", "concept_expression": "templated", "num_relations": count} for count in (2, 3)]
    match = r"recipes must differ in more than their names, got \['of 2', 'of 3'\].*no data of summhay"
    with pytest.raises(InputError, match=match):
        study(data={**DATA, "task": "summhay"}, recipes=["real"], custom_recipes=two)
    assert len(study(recipes=["real"], custom_recipes=two).all_recipes) == 3
