"""The signals of a search, from the head scores of its trials: of all score rows or of some, against any reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rhstudy.errors import require
from rhstudy.heads.sets import head_recall, weighted_head_recall
from rhstudy.shapes import Float, Int
from rhstudy.stages.detect import ScoringSettings
from rhstudy.sweep.measure import MEASURES, mean_estimate, recalls_of
from rhstudy.types import Estimate, HeadScores

SeedScores = Sequence[HeadScores]
"""Scores of one recipe, a model a seed."""


def recalls(scores: SeedScores, reference: HeadScores, scoring: ScoringSettings) -> dict[str, Estimate]:
    """Both recalls of the reference's heads, means over the seeds."""
    found = [recalls_of(item, reference, scoring) for item in scores]
    return {name: mean_estimate([one[name] for one in found]) for name in MEASURES}


def signals_of(scores: SeedScores, reference: HeadScores, scoring: ScoringSettings) -> dict[str, Estimate]:
    """Every signal of `rhstudy.sweep.selection.SIGNALS`, higher is better."""
    losses = [Estimate(-float(np.mean(item.real_nll, dtype=np.float64))) for item in scores]
    return {**recalls(scores, reference, scoring), "real_nll": mean_estimate(losses)}


def some_rows(scores: HeadScores, rows: Int[np.ndarray, " rows"]) -> HeadScores:
    """`scores` of the examples `rows` alone."""
    names = tuple(scores.example_ids[index] for index in rows)
    return dataclasses.replace(
        scores,
        score=scores.score[rows],
        aligned=scores.aligned[rows],
        real_nll=scores.real_nll[rows],
        example_ids=names,
        unscored={name: scores.unscored[name] for name in names if name in scores.unscored},
        further={},
    )


class RowSignals:
    """The signals of several recipes on any of the rows that all of them and the reference have scored.

    The reference's own scores are taken on the same rows: a search that has n rows has them for both.
    """

    def __init__(self, recipes: Sequence[SeedScores], reference: HeadScores, scoring: ScoringSettings) -> None:
        """Args: as `signals_of`, of several recipes.

        Raises:
            InputError: they are scored on different rows.
        """
        everyone = [reference, *(item for scores in recipes for item in scores)]
        same = all(item.example_ids == reference.example_ids for item in everyone)
        require(same, "scores", "be of the same score rows", "<different example ids>", "Detect them on the same rows")
        unscored = {name for item in everyone for name in item.unscored}
        whole = np.array([row for row, name in enumerate(reference.example_ids) if name not in unscored], dtype=int)
        self._recipes = [[some_rows(item, whole) for item in scores] for scores in recipes]
        self._reference, self._scoring = some_rows(reference, whole), scoring
        self.num_rows = len(whole)

    def values(self, name: str, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " recipes"]:
        """Signal `name` of every recipe on `rows` (numbers below `num_rows`); NaN where undefined."""
        if name == "real_nll":
            losses = [[item.real_nll[rows].mean(dtype=np.float64) for item in scores] for scores in self._recipes]
            return -np.array([np.mean(item) for item in losses])
        reference = some_rows(self._reference, rows)
        if name == "weighted_head_recall":
            real = reference.mean()
            found = [[weighted_head_recall(_mean(item, rows), real) for item in scores] for scores in self._recipes]
        else:
            wanted = self._scoring.heads(reference)
            found = [
                [head_recall(self._scoring.heads(some_rows(item, rows)), wanted) for item in scores]
                for scores in self._recipes
            ]
        return np.array([mean_estimate(values).value for values in found])


def _mean(scores: HeadScores, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "layers heads"]:
    return np.asarray(scores.score[rows].mean(axis=0, dtype=np.float64))
