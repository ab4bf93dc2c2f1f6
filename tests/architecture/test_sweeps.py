"""An experiment file says what it asks, how it is run, what it costs and what is expected, and it can be run."""

from __future__ import annotations

import re
import runpy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from source import ROOT

from rhstudy.configs import from_mapping, load_config, load_toml, plain
from rhstudy.data.knobs import CORNERS, Knobs
from rhstudy.plan import StudyConfig, plan_arms
from rhstudy.stages.pretrain import PretrainConfig
from rhstudy.sweep.config import SweepConfig, dimensions
from rhstudy.sweep.space import BASE, corner_values, first_values
from rhstudy.tracking.config_files import toml_text

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
    if head[1].split()[2:4] == ["rhstudy", "sweep"]:
        search = load_config(SweepConfig, path)
        first = set(first_values(dimensions(search), search.base, search.data.task))
        results = (path.parent / "RESULTS.md").read_text(encoding="utf-8")
        assert first
        if "not run yet" in results:  # a knob without the corners' own value would shut them out silently
            assert {BASE, *CORNERS} & set(re.findall(r"`(\w+)`", results)) == first
        return
    arms = list(plan_arms(load_config(StudyConfig, path)))
    assert len(arms) == len({(arm.recipe, arm.seed) for arm in arms}) >= 2


def test_there_are_five_searches_and_none_claims_what_was_not_run() -> None:
    searches = [path for path in EXPERIMENTS if "rhstudy sweep" in path.read_text(encoding="utf-8").splitlines()[1]]
    assert {path.parent.name for path in searches} >= {"wording", "diversity", "mixture", "cheapest", "transfer"}
    names = [load_config(SweepConfig, path).name for path in searches]
    assert len(set(names)) == len(names)  # one journal each
    for path in searches:
        results = (path.parent / "RESULTS.md").read_text(encoding="utf-8")
        time = path.read_text(encoding="utf-8").splitlines()[2]
        assert "not run yet" in time or "not run yet" not in results, path


def _transfer(name: str) -> tuple[Any, str]:
    folder = ROOT / "sweeps" / "transfer"
    with_base = runpy.run_path(str(folder / "with_base.py"))["with_base"]
    return with_base, (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["search.toml", "summhay.toml"])
def test_the_best_recipe_of_one_sweep_becomes_the_base_of_another(name: str) -> None:
    with_base, search = _transfer(name)
    best = Knobs(name="recipe-1", concept_expression="templated", lexical_overlap=0.25, num_templates=7)
    made = with_base(toml_text({"recipes": ["real"], "custom_recipes": [plain(best)]}), search)
    assert made.splitlines()[:4] == search.splitlines()[:4]
    before, after = (from_mapping(SweepConfig, tomllib.loads(text)) for text in (search, made))
    assert after == replace(before, base=best)
    first = first_values(dimensions(after), after.base, after.data.task)
    assert next(iter(first)) == "base"
    assert {"concept_expression": "templated", "num_templates": 7}.items() <= first["base"].items()
    assert list(first)[1:] == list(corner_values(dimensions(after), after.base, after.data.task))


def test_a_study_without_a_recipe_of_its_own_carries_nothing_over() -> None:
    with_base, search = _transfer("search.toml")
    with pytest.raises(SystemExit, match="BEST.toml must hold a recipe of its own, got none"):
        with_base('recipes = ["real"]\n', search)
    with pytest.raises(SystemExit, match=r"SEARCH.toml must hold a table \[base\], got none"):
        with_base(toml_text({"custom_recipes": [plain(Knobs(name="a"))]}), search.replace("[base]", "[model]"))
