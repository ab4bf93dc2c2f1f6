"""What a search file may ask, and how values become recipes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhstudy.configs import from_mapping
from rhstudy.data.knobs import Knobs, corners, search_space
from rhstudy.data.relevance import recipe_digest
from rhstudy.errors import InputError
from rhstudy.sweep.config import SweepConfig, dimensions
from rhstudy.sweep.space import corner_values, suggest

WHOLE = [{"knob": dimension.name} for dimension in search_space() if dimension.name not in ("hops",)]


def config(space: list[dict[str, Any]] = WHOLE, **changes: Any) -> SweepConfig:
    return from_mapping(SweepConfig, {"data": {"train_file": "mdqa"}, "space": space, **changes})


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ([], r"space must name at least one knob"),
        ([{"knob": "num_template"}], r"space\[0\]\.knob must be a knob .*'num_template'\. Did you mean num_templates"),
        ([{"knob": "filler"}], r"space\[0\]\.knob must be a knob with a range or choices, got 'filler'"),
        ([{"knob": "length_spread"}] * 2, r"space\[1\]\.knob must be named once"),
        ([{"knob": "length_spread", "high": 2.0}], r"space\[0\] must hold low < high within \[0, 0\.9\], got .*2\.0"),
        ([{"knob": "length_spread", "low": 0.5, "high": 0.5}], r"space\[0\] must hold low < high"),
        ([{"knob": "length_spread", "choices": ["a"]}], r"space\[0\]\.choices must be left out for length_spread"),
        ([{"knob": "num_hard_distractors", "high": 2.5}], r"space\[0\] must hold whole numbers"),
        ([{"knob": "needle_position", "low": 1.0}], r"space\[0\]\.low must be left out for needle_position"),
        ([{"knob": "needle_position", "choices": ["start", "moon"]}], r"space\[0\]\.choices must be some of uniform"),
        ([{"knob": "needle_position", "choices": ["start"]}], r"choices must hold two different values or more"),
        ([{"knob": "num_templates"}], r"must matter somewhere in the space: .* where concept_expression is"),
        ([{"knob": "concept_expression"}, {"knob": "hops"}], r"space\[1\]\.knob must matter .* task is one of musique"),
    ],
)  # fmt: skip
def test_an_impossible_space_is_refused(space: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(space)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": [0]}, r"reference_seed must be none of seeds \[0\], got 0"),
        ({"seeds": []}, r"seeds must hold at least one seed"),
        ({"seeds": [1, 1]}, r"seeds must be different"),
        ({"seeds": [-1]}, r"seeds must all be at least 0"),
        ({"num_trials": 0}, r"num_trials must be at least 1 without max_seconds"),
        ({"max_failures": 0}, r"sweep\.max_failures must be at least 1"),
        ({"name": ""}, r"name must be a label"),
        ({"sampler": "grid"}, r"sampler must be one of tpe, random, qmc, gp, nsga2, got 'grid'"),
        ({"reference_recipe": "reel"}, r"data\.recipe must be a known recipe, got 'reel'\. Did you mean real"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(**changes)


def test_a_named_reference_may_have_a_seed_of_the_trials() -> None:
    assert config(seeds=[0], reference="0" * 32).seeds == (0,)


class Drawn:
    """Suggests from a list of numbers in [0, 1), and notes what it was asked for."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers, self.asked = iter(numbers), dict[str, Any]()

    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float:
        self.asked[name] = low + next(self.numbers) * (high - low)
        return float(self.asked[name])

    def suggest_int(self, name: str, low: int, high: int, /, *, log: bool) -> int:
        self.asked[name] = low + int(next(self.numbers) * (high - low + 1))
        return int(self.asked[name])

    def suggest_categorical(self, name: str, choices: Any, /) -> Any:
        self.asked[name] = choices[int(next(self.numbers) * len(choices))]
        return self.asked[name]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 0.999), min_size=len(WHOLE), max_size=len(WHOLE)))
def test_every_point_of_the_whole_space_is_a_recipe(numbers: list[float]) -> None:
    search, drawn = config(), Drawn(numbers)
    knobs = suggest(drawn, dimensions(search), search.base, "mdqa")
    for dimension in dimensions(search):
        given = {item.name: getattr(knobs, item.name) for item in dataclasses.fields(knobs)}
        assert (dimension.name in drawn.asked) == dimension.matters({**given, "task": "mdqa"})
        if dimension.name not in drawn.asked:
            assert given[dimension.name] == dimension.default
        elif not dimension.name.endswith("_share") or dimension.name == "distinct_share":
            assert given[dimension.name] == drawn.asked[dimension.name]
    assert knobs.name == f"recipe-{recipe_digest(knobs, 'mdqa')[:12]}"


def test_shares_that_sum_to_more_than_one_are_divided_by_their_sum() -> None:
    search = config([{"knob": "passages_context_share"}, {"knob": "filler_context_share"}])
    knobs = suggest(Drawn([0.9, 0.6]), dimensions(search), search.base, "mdqa")
    assert (knobs.passages_context_share, knobs.filler_context_share) == pytest.approx((0.6, 0.4))


def test_a_knob_that_is_not_searched_stands_at_the_base() -> None:
    base = {"name": "base", "concept_expression": "templated", "length_spread": 0.3}
    search = config([{"knob": "num_templates"}], base=base)
    knobs = suggest(Drawn([0.0]), dimensions(search), search.base, "mdqa")
    assert (knobs.concept_expression, knobs.length_spread, knobs.num_templates) == ("templated", 0.3, 1)


def test_the_corners_of_the_space_give_the_papers_recipes() -> None:
    space = [{"knob": "concept_expression"}, {"knob": "context_diversity"}, {"knob": "num_templates"}]
    search = config(space)
    found = corner_values(dimensions(search), search.base, "mdqa")
    assert list(found) == ["real", "high_high", "high_low", "low_high", "low_low", "symbolic"]
    for name, values in found.items():
        knobs = Knobs(**{"name": name, **values})
        assert recipe_digest(knobs, "mdqa") == recipe_digest(corners("mdqa")[name], "mdqa")
    assert "low_low" not in corner_values(dimensions(config([space[0]])), search.base, "mdqa")
