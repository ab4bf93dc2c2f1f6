"""A row is the same row in every part and data set."""

from __future__ import annotations

from rhstudy.stages.measurement import rows_of


def test_the_part_an_example_was_built_for_is_no_property_of_its_row() -> None:
    assert rows_of(["score-nq-1", "eval-nq-1", "dev-nq-1", "train-00007-nq-1"]) == {"nq-1"}


def test_other_rows_stay_apart() -> None:
    assert rows_of(["score-nq-1", "eval-nq-2", "evaluation-3"]) == {"nq-1", "nq-2", "evaluation-3"}
