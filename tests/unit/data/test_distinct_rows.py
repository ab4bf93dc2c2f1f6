"""Few rows: every recipe of a study is made of equally many distinct ones, used again with new padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_worlds import chain, musique_row, topic, write_passages, write_rows

from rhstudy.data import prompts
from rhstudy.data.assemble import assemble
from rhstudy.data.budget import check_distinct, distinct_counts
from rhstudy.data.build import build_dataset, num_distinct_of
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import load_corpus
from rhstudy.data.knobs import Knobs, preset
from rhstudy.data.recipes import finite_rows
from rhstudy.errors import InputError
from rhstudy.stages import make_data
from rhstudy.sweep.config import Searched, SweepConfig
from rhstudy.sweep.course import Budget
from rhstudy.sweep.equal_rows import with_equal_rows

RECIPES = ("real", "real_limited", "templated_in_filler", "symbolic")


def musique(folder: Path, **changes: Any) -> DataConfig:
    rows = [musique_row(number) for number in range(24)]
    for number, row in enumerate(rows):
        if number % 3:  # two of three rows have none of the relations that the limited recipe keeps
            row["question_decomposition"][0]["question"] = "#0 >> home"
    return DataConfig(
        task="musique", train_file=write_rows(folder / "rows.jsonl", rows), num_tokens=1400, num_examples=30,
        passages_file=write_passages(folder / "passages.jsonl"), **changes,
    )  # fmt: skip


def test_the_recipe_of_fewest_rows_decides_and_all_have_as_many(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = musique(tmp_path)
    recipes = [preset(name, "musique") for name in RECIPES]
    count = num_distinct_of(config, recipes, chat_tokenizer)
    limited = build_dataset(musique(tmp_path, recipe="real_limited"), chat_tokenizer)
    assert count == limited.card["parts"]["train"]["num_distinct_rows"] < 10
    assert num_distinct_of(config, recipes[:1], chat_tokenizer) > count
    assert num_distinct_of(config, recipes[2:], chat_tokenizer) == 30
    for name in RECIPES:
        data = build_dataset(musique(tmp_path, recipe=name, num_distinct=count), chat_tokenizer)
        part = data.card["parts"]["train"]
        assert part["num_distinct_rows"] == count
        check_distinct(part, preset(name, "musique"), 30, count)
        prompts = {example.prompt for example in data.parts["train"]}
        assert len(prompts) == part["num_examples"] == 30


def test_rows_that_cannot_be_built_do_not_count(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [musique_row(number) for number in range(24)]
    for number in range(0, 24, 2):
        rows[number]["paragraphs"][1]["paragraph_text"] += f" So {chain(number)['person']} went." * 200
    path = write_rows(tmp_path / "rows.jsonl", rows)
    passages = write_passages(tmp_path / "passages.jsonl")
    given: dict[str, Any] = {"task": "musique", "train_file": path, "passages_file": passages, "num_tokens": 1400}
    config = DataConfig(**given, num_examples=30, on_bad_row="skip")
    count = num_distinct_of(config, [preset("real")], chat_tokenizer)
    built = build_dataset(config, chat_tokenizer).card
    assert count == built["parts"]["train"]["num_distinct_rows"]
    assert count == built["num_rows_in_split"]["train"] - len(built["dropped_rows"]["train"])
    assert built["dropped_rows"]["train"]


def test_no_more_rows_are_built_than_the_count_takes(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow obvious way builds every row of every recipe; a third of the rows has no room."""
    rows = [musique_row(number) for number in range(48)]
    for number, row in enumerate(rows):
        if number % 3 == 0:
            row["paragraphs"][1]["paragraph_text"] += f" So {chain(number)['person']} went." * 200
        if number % 2:  # rows without any of the relations that the limited recipe keeps
            row["question_decomposition"][0]["question"] = "#0 >> home"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    passages = write_passages(tmp_path / "passages.jsonl")
    config = DataConfig(
        task="musique", train_file=path, passages_file=passages, num_tokens=1400, num_examples=30, on_bad_row="skip"
    )
    recipes = [preset(name, "musique") for name in ("real", "high_low", "real_limited")]
    tried: list[str] = []

    def counted(fact: Any, *others: Any) -> Any:
        tried.append(fact.fact_id)
        return assemble(fact, *others)

    monkeypatch.setattr(prompts, "assemble", counted)
    slow = 30
    for knobs in recipes:
        asked = dataclasses.replace(config, recipe="", knobs=knobs, num_examples=10_000)
        slow = min(slow, num_distinct_of(asked, [knobs], chat_tokenizer))
    num_slow = len(tried)
    tried.clear()
    assert num_distinct_of(config, recipes, chat_tokenizer) == slow
    num_limited, num_real = (len(finite_rows(item, load_corpus(config), "train") or []) for item in recipes[::-2])
    assert 1 < slow < num_limited < num_real
    # All rows of the recipe of fewest; so many usable ones of the other; of recorded facts there are enough unseen.
    assert num_limited + slow <= len(tried) < num_limited + num_real
    assert num_slow > num_limited + num_real + 100
    assert num_distinct_of(config, recipes[::-1], chat_tokenizer) == slow


def test_insights_that_too_many_documents_hold_do_not_count(tmp_path: Path, chat_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "topics.jsonl", [topic(number) for number in range(4)])
    config = DataConfig(task="summhay", train_file=path, num_tokens=3000, num_examples=12)
    assert num_distinct_of(config, [preset("real"), preset("low_low")], chat_tokenizer) == 5


def test_a_recipe_without_rows_is_no_measure_for_the_others(tmp_path: Path, chat_tokenizer: Any) -> None:
    recipes = [Knobs(name="nobody", question_words=("whence",)), preset("symbolic", "musique")]
    assert num_distinct_of(musique(tmp_path), recipes, chat_tokenizer) == 30


def test_counts_follow_the_mix_and_the_share() -> None:
    assert distinct_counts(Knobs(name="x"), 30) == (30, 0)
    assert distinct_counts(Knobs(name="x"), 30, 12) == (12, 0)
    mixed = Knobs(name="x", concept_expression="symbolic", real_fraction=0.25)
    assert distinct_counts(mixed, 40, 20) == (15, 5)
    assert distinct_counts(Knobs(name="x", distinct_share=0.5), 40, 20) == (10, 0)
    assert distinct_counts(Knobs(name="x", distinct_share=0.05), 4, 2) == (1, 0)


def test_other_counts_than_asked_for_are_an_error() -> None:
    part, knobs = {"num_distinct_rows": 9}, Knobs(name="few")
    check_distinct(part, knobs, 30, 9)
    match = r"distinct rows of recipe few must be 12 of 12, got 9\. Set data\.num_distinct, of the whole study, to 9"
    with pytest.raises(InputError, match=match):
        check_distinct(part, knobs, 30, 12)


def test_more_distinct_rows_than_examples_are_refused(config: Callable[..., DataConfig]) -> None:
    with pytest.raises(InputError, match=r"data\.num_distinct must be at most data\.num_examples \(6\), got 7"):
        config(num_distinct=7)
    with pytest.raises(InputError, match=r"data\.num_distinct must be 0 or more, got -1"):
        config(num_distinct=-1)


def test_a_number_that_no_example_repeats_changes_no_data(
    config: Callable[..., DataConfig], chat_tokenizer: Any
) -> None:
    for recipe in ("real", "symbolic"):
        free, bound = (
            build_dataset(config(recipe=recipe, num_distinct=count), chat_tokenizer).parts for count in (0, 6)
        )
        assert free == bound


def test_trials_of_a_sweep_are_made_of_as_many_rows_as_all_its_recipes_have(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_data, "tokenizer_of", lambda model: chat_tokenizer)
    data, symbolic = musique(tmp_path), Knobs(name="base", concept_expression="symbolic")
    levels = Searched(knob="concept_expression", choices=("symbolic", "real"))
    found = with_equal_rows(SweepConfig(space=(levels,), base=symbolic, data=data, reference_recipe="symbolic"))
    real = num_distinct_of(data, [preset("real", "musique")], chat_tokenizer)
    assert found.data.num_distinct == real < data.num_examples
    for name in ("real", "symbolic"):  # of a trial with a larger budget, which needs no more rows
        asked = Budget(num_examples=2 * data.num_examples, num_tokens=data.num_tokens).of(found.data)
        built = build_dataset(dataclasses.replace(asked, recipe=name), chat_tokenizer)
        assert built.card["parts"]["train"]["num_distinct_rows"] == real
    limited = SweepConfig(space=(levels,), base=symbolic, data=data, reference_recipe="real_limited")
    assert with_equal_rows(limited).data.num_distinct < real
    endless = SweepConfig(space=(Searched(knob="hops"),), base=symbolic, data=data, reference_recipe="symbolic")
    assert with_equal_rows(endless) == endless
    mixed = SweepConfig(space=(Searched(knob="real_fraction"),), base=symbolic, data=data, reference_recipe="symbolic")
    enough, few = (
        dataclasses.replace(mixed, data=dataclasses.replace(data, num_examples=2 * real + more)) for more in (0, 10)
    )
    assert with_equal_rows(enough) == enough
    assert with_equal_rows(few).data.num_distinct == (2 * real + 10) * real // (real + 5)
    given = dataclasses.replace(mixed, data=dataclasses.replace(data, num_distinct=3))
    assert with_equal_rows(given) == given
