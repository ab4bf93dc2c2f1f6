"""The cells of the pooled analysis: one per task, model and recipe (mean over seeds), clustered by recipe across tasks.

Notation: cell i of group g(i) (a task and model) and cluster c(i) (the recipe's knob hash without the task), F1 y_i,
predictor x_i. `within` takes the group means out, so that nothing is learned from differences between tasks or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rhstudy.shapes import Float, Int
from rhstudy.stats.frame import MEAN_DECIMALS, left_out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The points of every pooled model.

    Attributes:
        f1: mean F1 over seeds.
        predictors: name -> mean over the same seeds.
        group: index of the cell's task and model, 0 .. num_groups - 1.
        cluster: index of the cell's recipe, 0 .. num_clusters - 1.
        groups: names ``task/model``.
        clusters: a recipe name each.
        num_seeds: arms behind each cell.
        dropped: arms left out because F1 or a predictor is NaN, each with the reason.
    """

    f1: Float[np.ndarray, " cells"]
    predictors: Mapping[str, Float[np.ndarray, " cells"]]
    group: Int[np.ndarray, " cells"]
    cluster: Int[np.ndarray, " cells"]
    groups: tuple[str, ...]
    clusters: tuple[str, ...]
    num_seeds: Int[np.ndarray, " cells"]
    dropped: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.f1)

    def within(self, values: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
        """`values` minus the mean of their group."""
        counts = np.bincount(self.group, minlength=len(self.groups))
        means = np.bincount(self.group, values, minlength=len(self.groups)) / np.maximum(counts, 1)
        return np.asarray((values - means[self.group]).round(MEAN_DECIMALS))

    def dummies(self) -> Float[np.ndarray, "cells groups"]:
        """One column a group, with unit length, so that the columns are an orthonormal basis."""
        columns = np.zeros((self.n, len(self.groups)))
        columns[np.arange(self.n), self.group] = 1.0
        return np.asarray(columns / np.sqrt(np.maximum(columns.sum(axis=0), 1)))

    def without(self, index: int) -> Cells:
        """All cells but those of one recipe."""
        kept = self.cluster != index
        return replace(
            self,
            f1=self.f1[kept],
            predictors={name: values[kept] for name, values in self.predictors.items()},
            group=self.group[kept],
            cluster=self.cluster[kept] - (self.cluster[kept] > index),
            clusters=self.clusters[:index] + self.clusters[index + 1 :],
            num_seeds=self.num_seeds[kept],
        )


def point_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """Arms that may be points: neither of the reference's recipe nor untuned; with ``group`` and ``cluster`` names."""
    arms = frame[~frame["is_reference"] & ~frame["is_untuned"]]
    group = arms["task"] + "/" + arms["model"]
    cluster = arms["recipe_digest"].where(arms["recipe_digest"] != "", arms["recipe"])
    return arms.assign(group=group, cluster=cluster)


def cells_of(arms: pd.DataFrame, predictors: Sequence[str]) -> Cells:
    """The cells of `arms`; those with a NaN among F1 and `predictors` are left out of every mean.

    Args:
        arms: from `point_arms`.
        predictors: columns of the table.
    """
    names = [*predictors, "f1"]
    whole = arms[names].notna().all(axis=1)
    grouped = arms[whole].groupby(["group", "cluster"], sort=True)
    means = grouped[names].mean().round(MEAN_DECIMALS).reset_index()
    groups, group = np.unique(means["group"].to_numpy(dtype=str), return_inverse=True)
    digests, cluster = np.unique(means["cluster"].to_numpy(dtype=str), return_inverse=True)
    recipes = arms.drop_duplicates("cluster").set_index("cluster")["recipe"].to_dict()
    return Cells(
        f1=means["f1"].to_numpy(dtype=np.float64),
        predictors={name: means[name].to_numpy(dtype=np.float64) for name in predictors},
        group=group,
        cluster=cluster,
        groups=tuple(map(str, groups)),
        clusters=tuple(str(recipes[digest]) for digest in digests),
        num_seeds=grouped.size().to_numpy(dtype=np.int64),
        dropped=left_out(arms[~whole], names),
    )
