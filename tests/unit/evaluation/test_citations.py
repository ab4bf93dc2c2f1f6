"""F1 of cited documents: parsing, chance, and what an example's own task makes of a text."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_example

from rhstudy.errors import InputError
from rhstudy.evaluation.answering import AnsweringSettings, limited
from rhstudy.evaluation.answers import mark_example, summarize_predictions
from rhstudy.evaluation.citations import citation_marks, parse_citations
from rhstudy.seeding import generator
from rhstudy.types import Example


def citing(gold: str, num_documents: int, cluster: str = "", name: str = "e") -> Example:
    base = random_example(generator(0, "cites"), 0)
    metadata = {"cites": True, "num_documents": num_documents, "cluster": cluster}
    return dataclasses.replace(base, example_id=name, answers=(gold,), answer=f" {gold}", metadata=metadata)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[2], [5]", {2, 5}),
        ("[2, 5] and [11]", {2, 5, 11}),
        ("2, 5", {2, 5}),
        ("Documents [3] hold all 4 insights", {3}),
        ("none", set()),
        ("[2] [2]", {2}),
    ],
)
def test_parse_citations(text: str, found: set[int]) -> None:
    assert parse_citations(text) == found


@pytest.mark.parametrize(("size", "gold", "count"), [(1, 2, 6), (2, 2, 6), (3, 2, 7), (6, 1, 6)])
def test_chance_is_the_mean_over_all_sets_of_that_size(size: int, gold: int, count: int) -> None:
    wanted = set(range(1, gold + 1))
    every = [citation_marks(drawn, wanted, count) for drawn in itertools.combinations(range(1, count + 1), size)]
    assert np.mean([marks["set_f1"] for marks in every]) == pytest.approx(every[0]["random_same_size"], abs=1e-12)
    assert np.mean([marks["corrected_f1"] for marks in every]) == pytest.approx(0, abs=1e-12)


def test_cite_all_is_worth_nothing_however_high_its_f1() -> None:
    marks = citation_marks(range(1, 13), range(1, 7), 12)
    assert marks["set_f1"] == marks["cite_all"] == pytest.approx(2 / 3)
    assert marks["corrected_f1"] == pytest.approx(0)
    assert citation_marks([1, 2], [1, 2], 12)["corrected_f1"] == 1
    assert citation_marks([], [1, 2], 12) == {
        "set_f1": 0.0, "random_same_size": 0.0, "cite_all": 4 / 14, "corrected_f1": 0.0, "exact_match": 0.0,
    }  # fmt: skip


@given(
    cited=st.sets(st.integers(0, 60), max_size=40),
    gold=st.sets(st.integers(1, 20), min_size=1, max_size=19),
    count=st.integers(20, 40),
)
def test_marks_stay_in_their_ranges(cited: set[int], gold: set[int], count: int) -> None:
    marks = citation_marks(cited, gold, count)
    assert all(0 <= marks[key] <= 1 for key in ("set_f1", "random_same_size", "cite_all"))
    assert math.isfinite(marks["corrected_f1"])
    assert marks["corrected_f1"] <= 1
    assert (marks["corrected_f1"] == 1) == (cited == gold)


def test_more_numbers_than_documents_are_marked() -> None:
    marks = citation_marks(range(40), range(1, 20), 20)
    assert marks["random_same_size"] == marks["set_f1"] == pytest.approx(2 * 19 / 59)
    assert marks["corrected_f1"] == pytest.approx(0)
    assert citation_marks(range(1, 100), {1, 2}, 3)["corrected_f1"] == pytest.approx(0)
    with pytest.raises(InputError, match="gold documents must be numbers from 1 to 3, got"):
        citation_marks({1}, {4}, 3)


@pytest.mark.parametrize("gold", [set(), {1, 2, 3}])
def test_no_gold_or_only_gold_cannot_be_marked(gold: set[int]) -> None:
    with pytest.raises(InputError, match="gold documents must be 1 to 2 of 3"):
        citation_marks({1}, gold, 3)


def test_an_example_is_marked_as_its_task_is() -> None:
    marked = mark_example(citing("[2], [5]", 12, "insight"), " [2], [7]\nand more")
    assert marked.text == "[2], [7]"
    assert marked.marks == {"set_f1": 0.5, "random_same_size": pytest.approx(1 / 6), "cite_all": pytest.approx(2 / 7)}
    assert marked.f1 == pytest.approx((0.5 - 1 / 6) / (5 / 6))
    assert (marked.exact_match, marked.cluster) == (0.0, "insight")
    plain = random_example(generator(0, "plain"), 0)
    assert mark_example(plain, plain.answer).f1 == 1.0
    assert mark_example(plain, plain.answer).marks == {}


def test_summary_reports_chance_and_clusters() -> None:
    rows = [
        mark_example(citing("[1]", 10, cluster, name), text)
        for name, cluster, text in (("a", "x", "[1]"), ("b", "x", "[2]"), ("c", "y", "[1]"))
    ]
    found = summarize_predictions(rows)
    assert found.num_clusters == 2
    assert found.further()["set_f1"].value == pytest.approx(2 / 3)
    assert found.further()["random_same_size"].value == pytest.approx(0.1)
    assert not found.f1_by_needles


def test_summary_reports_f1_by_hops() -> None:
    base = random_example(generator(0, "hops"), 0)
    two = dataclasses.replace(base, example_id="two", needles=base.needles * 2)
    found = summarize_predictions([mark_example(base, base.answer), mark_example(two, "wrong")])
    assert {name: value.value for name, value in found.further().items()} == {"f1_1_needles": 1.0, "f1_2_needles": 0.0}
    assert found.facts()["f1_2_needles"] == 0.0


def test_lists_of_documents_may_be_longer_than_other_answers_and_never_depend_on_their_batch() -> None:
    settings = AnsweringSettings(max_new_tokens=4)
    long = dataclasses.replace(citing("[1], [2]", 10), answer_ids=tuple(range(5)))
    short = random_example(generator(0, "short"), 0)
    assert [settings.num_new_tokens(item) for item in (long, short)] == [10, 4]
    assert limited([list(range(12)), list(range(12))], [long, short], settings) == [list(range(10)), list(range(4))]
