"""Every recipe of a task is built to the same examples and tokens; any values of the knobs give whole data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from drawn_knobs import values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_worlds import musique_row, topic, write_passages, write_rows
from transformers import PreTrainedTokenizerFast

from rhstudy.data.budget import SHARE, budget_facts, check_equal, tolerance
from rhstudy.data.build import build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs, preset, search_space
from rhstudy.data.tasks.registry import TASKS
from rhstudy.errors import InputError

NUM_TOKENS, NUM_EXAMPLES = 2048, 6
SPACE = search_space()
ONE_FILE_TASKS = tuple(task for task in TASKS if task in ("mdqa", "cue_retrieval"))
RECIPES = (
    "real", "real_limited", "symbolic", "high_high", "high_low", "diverse_high", "diverse_low", "low_high", "low_low",
    "high_on_topic", "low_on_topic",
)  # fmt: skip
CORNERS = ("real", "real_limited", "high_high", "high_low", "low_high", "low_low", "symbolic")


@pytest.fixture(scope="module")
def built(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast, world: Mapping[str, str]
) -> Callable[[str, str], Mapping[str, Any]]:
    """The card of a recipe's training part."""
    known: dict[tuple[str, str], Mapping[str, Any]] = {}

    def make(task: str, recipe: str) -> Mapping[str, Any]:
        if (task, recipe) not in known:
            files = {"train_file": world["passages_file"], "eval_file": ""} if task == "cue_retrieval" else {}
            knobs = preset(recipe, task)
            asked = config(task=task, knobs=knobs, num_tokens=NUM_TOKENS, num_examples=NUM_EXAMPLES, **files)
            known[task, recipe] = build_dataset(asked, chat_tokenizer).card["parts"]["train"]
        return known[task, recipe]

    return make


@pytest.mark.parametrize(
    ("task", "recipe"),
    [pair for pair in itertools.product(ONE_FILE_TASKS, RECIPES) if pair != ("cue_retrieval", "real_limited")],
)  # cues begin with no question word
def test_recipes_of_a_study_have_one_budget(task: str, recipe: str, built: Callable[..., Mapping[str, Any]]) -> None:
    part, reference = built(task, recipe), built(task, "real")
    assert tolerance(NUM_TOKENS) == SHARE == 0.01
    facts = budget_facts(part, NUM_EXAMPLES, NUM_TOKENS)
    assert part["num_examples"] == NUM_EXAMPLES
    assert abs(facts["deviation"]) <= 0.01
    excess = check_equal(recipe, part["num_tokens_total"], "real", reference["num_tokens_total"], NUM_TOKENS)
    assert abs(excess) <= 0.01


@pytest.fixture(scope="module")
def several_golds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """Sources of the tasks with several gold documents."""
    folder = tmp_path_factory.mktemp("several-golds")
    hops = [musique_row(number) for number in range(24)]
    return {
        "musique": {
            "train_file": write_rows(folder / "hops.jsonl", hops),
            "passages_file": write_passages(folder / "passages.jsonl"),
        },
        "summhay": {"train_file": write_rows(folder / "topics.jsonl", [topic(number, 80) for number in range(4)])},
    }


@pytest.mark.parametrize("num_tokens", [1600, 4096])
@pytest.mark.parametrize("task", ["musique", "summhay"])
def test_corners_of_several_gold_documents_have_one_budget_at_any_length(
    task: str, num_tokens: int, several_golds: Mapping[str, Mapping[str, Any]], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    reference = 0
    for recipe in CORNERS:
        asked = DataConfig(
            **several_golds[task], task=task, recipe=recipe, num_tokens=num_tokens, num_examples=3, on_bad_row="skip"
        )  # type: ignore[arg-type]
        part = build_dataset(asked, chat_tokenizer).card["parts"]["train"]
        assert abs(budget_facts(part, 3, num_tokens)["deviation"]) <= SHARE
        reference = reference or part["num_tokens_total"]
        assert abs(check_equal(recipe, part["num_tokens_total"], "real", reference, num_tokens)) <= SHARE
        assert part["num_leaks"] == 0


@st.composite
def _drawn_knobs(draw: st.DrawFn) -> dict[str, Any]:
    """Values for a few knobs, as a search draws them: each in its range, also where it does not matter."""
    chosen = draw(st.lists(st.sampled_from(SPACE), max_size=6, unique_by=lambda item: item.name))
    return {item.name: draw(values_of(item)) for item in chosen}


@settings(max_examples=300, deadline=None)
@given(_drawn_knobs())
def test_values_in_range_make_a_recipe_or_say_which_shares_are_too_many(values: dict[str, Any]) -> None:
    try:
        knobs = Knobs(**{"name": "drawn", **values})
    except InputError as error:
        assert "shares" in str(error) or "real beside other needles" in str(error)  # noqa: PT017
        return
    for shares in (knobs.needle_shares, knobs.context_shares):
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= -1e-9
    assert Knobs(**{**values, "name": "other"}).digest == knobs.digest


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=_drawn_knobs(), seed=st.integers(0, 9))
def test_any_recipe_keeps_its_budget_and_gives_back_its_needles(
    values: dict[str, Any], seed: int, config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    try:
        # Wider spreads make prompts of 1,024 tokens so short that no needle fits, which is refused.
        spread = min(values.get("length_spread", 0.0), 0.4)
        knobs = Knobs(**{"name": "drawn", "concept_expression": "templated", **values, "length_spread": spread})
    except InputError:
        return
    asked = config(knobs=knobs, num_tokens=1024, num_examples=3, seed=seed)
    data = build_dataset(asked, chat_tokenizer)
    budget_facts(data.card["parts"]["train"], 3, 1024)
    for example in data.parts["train"]:
        for needle in example.needles:
            text = example.prompt[slice(*needle.char_span)]
            assert text in chat_tokenizer.decode(example.prompt_ids[slice(*needle.token_span)])
            assert example.answer.strip() == example.prompt[slice(*needle.answer_char_span)]
