from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhstudy.data.facts import Fact, Passage
from rhstudy.data.splits import PARTS, check_disjoint, split_facts
from rhstudy.errors import InputError, StudyError
from rhstudy.types import Span


def fact(number: int, title: int, text: int) -> Fact:
    passage = Passage(f"Title {title}", f"text {text} x")
    return Fact(
        fact_id=str(number),
        question=f"q {number}",
        answers=("x",),
        passage=passage,
        answer_span=Span(0, 1),
        origin="real",
    )


def facts(pairs: list[tuple[int, int]], first: int = 0) -> list[Fact]:
    return [fact(number, *pair) for number, pair in enumerate(pairs, start=first)]


PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=60, max_size=90)


@settings(max_examples=40, deadline=None)
@given(
    train=PAIRS,
    evaluation=st.lists(st.tuples(st.integers(40, 99), st.integers(55, 99)), min_size=1, max_size=9),
    seed=st.integers(0, 9),
)
def test_parts_share_no_passage_and_no_title(
    train: list[tuple[int, int]], evaluation: list[tuple[int, int]], seed: int
) -> None:
    try:
        splits = split_facts(facts(train), facts(evaluation, 1000), seed)
    except InputError:
        return  # nearly everything was one connected group
    titles = [{item.passage.title for item in splits.parts[name]} for name in PARTS]
    texts = [{item.passage.text for item in splits.parts[name]} for name in PARTS]
    for first in range(4):
        for second in range(first):
            assert titles[first].isdisjoint(titles[second])
            assert texts[first].isdisjoint(texts[second])
    assert sum(len(splits.parts[name]) for name in PARTS[:3]) + splits.num_dropped == len(train)


def test_links_are_transitive() -> None:
    chain = [(0, 0), (0, 1), (1, 1), (1, 2)]
    spread = [(number, number) for number in range(10, 60)]
    for seed in range(8):
        splits = split_facts(facts(chain + spread), None, seed)
        homes = {name for name in PARTS for item in splits.parts[name] if int(item.fact_id) < 4}
        assert len(homes) == 1


def test_rows_linked_to_eval_are_dropped_and_counted() -> None:
    spread = [(number, number) for number in range(40)]
    linked = [(100, 7), (100, 200)]  # the eval row shares text 200 with the second, which shares a title with the first
    splits = split_facts(facts(spread + linked), [fact(900, 300, 200)], 0)
    assert splits.num_dropped == 3
    assert not any(item.passage.title in ("Title 100", "Title 7") for name in PARTS for item in splits.parts[name])


def test_the_cut_ignores_file_order_and_follows_the_split_seed() -> None:
    rows = facts([(number, number) for number in range(80)])
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    first, again, other = split_facts(rows, None, 0), split_facts(shuffled, None, 0), split_facts(rows, None, 1)
    assert first.parts == again.parts
    assert first.parts != other.parts
    assert [len(first.parts[name]) for name in PARTS] == [48, 12, 8, 12]


def test_too_few_rows() -> None:
    with pytest.raises(InputError, match=r"data part train must have at least one row, got <2 rows in 2 groups"):
        split_facts(facts([(0, 0), (1, 1)]), None, 0)


def test_a_planted_overlap_is_found() -> None:
    with pytest.raises(
        StudyError, match=r"data parts must share no passage or title, got <train row 0 and eval row 1>"
    ):
        check_disjoint({"train": [fact(0, 5, 1)], "eval": [fact(1, 5, 2)]})
