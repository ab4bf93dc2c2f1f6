"""An experiment file says what it asks, how it is run, what it costs and what is expected, and it can be run."""

from __future__ import annotations

from pathlib import Path

import pytest
from source import ROOT

from rhstudy.configs import from_mapping, load_config, load_toml
from rhstudy.plan import StudyConfig, plan_arms
from rhstudy.stages.pretrain import PretrainConfig
from rhstudy.sweep.config import SweepConfig, dimensions
from rhstudy.sweep.space import corner_values

EXPERIMENTS = sorted((ROOT / "sweeps").glob("*/*.toml"))
HEADER = ("# question:", "# command:", "# time:", "# expected:")


def test_there_are_experiments_and_a_log_that_names_each() -> None:
    log = (ROOT / "sweeps" / "LOG.md").read_text(encoding="utf-8")
    assert EXPERIMENTS
    assert [path.name for path in EXPERIMENTS if path.name not in log or path.parent.name not in log] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_experiment_has_its_header_its_results_and_a_valid_config(path: Path) -> None:
    head = path.read_text(encoding="utf-8").splitlines()[: len(HEADER)]
    assert [line.split(":")[0] + ":" for line in head] == list(HEADER)
    assert path.relative_to(ROOT).as_posix() in head[1]
    assert (path.parent / "RESULTS.md").is_file()
    if path.stem == "pretrain":
        values = load_toml(path) | {"passages_file": "given by a flag"}
        assert from_mapping(PretrainConfig, values).pretraining.num_steps >= 1
        return
    if path.stem == "search":
        search = load_config(SweepConfig, path)
        assert corner_values(dimensions(search), search.base, search.data.task)
        return
    arms = list(plan_arms(load_config(StudyConfig, path)))
    assert len(arms) == len({(arm.recipe, arm.seed) for arm in arms}) >= 2
