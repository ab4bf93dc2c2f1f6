"""Several objectives, constraints, and the size of the training data as a knob."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import SPACE, Fake, FakeSweep, fake_sweep, recall
from storages import run_of, trials_of
from test_sweep_config import config

from rhstudy.configs import load_config
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError
from rhstudy.plan import StudyConfig
from rhstudy.sweep.course import Budget, Course
from rhstudy.sweep.front import recipe_of
from rhstudy.sweep.measure import Measured
from rhstudy.sweep.objectives import Constraint
from rhstudy.types import Estimate

BOTH = ["weighted_head_recall", "train_tokens"]
WITH_SIZE = [*SPACE, {"knob": "num_examples", "low": 8, "high": 64}]


class Costly:
    """Recall grows with the number of examples, and so do the tokens."""

    def __init__(self, *, both: bool = False) -> None:
        self.both = both
        self.trained: list[float] = []

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        tokens = float(course.budget.num_examples * course.budget.num_tokens)
        course.known({"train_tokens": tokens})
        self.trained.append(tokens)
        value = recall(knobs) * (1 - 4 / course.budget.num_examples)
        numbers = {"weighted_head_recall": value, "train_tokens": tokens}
        return Measured(value=Estimate(value), further=(Estimate(tokens),) if self.both else (), numbers=numbers)


def beats(one: optuna.trial.FrozenTrial, other: optuna.trial.FrozenTrial) -> bool:
    """More recall or fewer tokens, and the other no worse."""
    no_worse = one.values[0] >= other.values[0] and one.values[1] <= other.values[1]
    return no_worse and one.values != other.values


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc", "gp"])
def test_with_two_objectives_the_front_is_what_no_trial_beats(world: Path, tmp_path: Path, sampler: str) -> None:
    sweep = fake_sweep(world, tmp_path, objectives=BOTH, space=WITH_SIZE, sampler=sampler, num_trials=12)
    result = sweep(Costly(both=True))
    trials = trials_of(sweep)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 12
    best = [one for one in trials if not any(beats(other, one) for other in trials)]
    shown = [item["trial"] for item in result.facts["front"]]
    assert sorted(shown) == [trial.number for trial in best]
    found = [item["weighted_head_recall"] for item in result.facts["front"]]
    assert found == sorted(found, reverse=True)
    assert [line.split()[0] for line in result.text.splitlines()[1 : 1 + min(10, len(best))]] == [
        str(number) for number in shown[:10]
    ]
    assert set(result.facts["importance"]) > {"num_examples", "real_fraction"}


def test_every_recipe_of_the_front_is_in_a_study_with_its_own_budget(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, objectives=BOTH, space=WITH_SIZE, num_trials=8)
    result = sweep(Costly(both=True))
    files = Path(result.facts["best_recipe"]).parent.glob("best*.toml")
    written = {
        (knobs.name, study.data.num_examples, study.data.num_tokens)
        for study in (load_config(StudyConfig, str(path)) for path in files)
        for knobs in study.custom_recipes
    }
    front = [recipe_of(sweep.config, trials_of(sweep)[item["trial"]].params) for item in result.facts["front"]]
    assert len({budget for _, budget in front}) > 1
    assert written == {(knobs.name, budget.num_examples, budget.num_tokens) for knobs, budget in front}
    best = load_config(StudyConfig, result.facts["best_recipe"])
    assert best.data.num_examples == front[0][1].num_examples


def test_corners_are_tried_with_the_sweeps_own_budget(world: Path, tmp_path: Path) -> None:
    for low, first in ((8, 320), (400, 400)):
        space = [*SPACE, {"knob": "num_examples", "low": low, "high": 500}]
        sweep = fake_sweep(world, tmp_path, space=space, num_trials=1, name=f"from {low}")
        sweep()
        assert trials_of(sweep)[0].params["num_examples"] == first


def test_a_recipe_beyond_the_token_budget_is_not_trained(world: Path, tmp_path: Path) -> None:
    limit = [{"quantity": "train_tokens", "most": 32 * 1024}]
    sweep = fake_sweep(world, tmp_path, space=WITH_SIZE, constraints=limit, num_trials=16, sampler="tpe")
    measure = Costly()
    result = sweep(measure)
    assert measure.trained
    assert max(measure.trained) <= 32 * 1024
    pruned = [trial for trial in trials_of(sweep) if trial.state.name == "PRUNED"]
    assert result.facts["num_infeasible"] == len(pruned) == 16 - len(measure.trained) > 0
    for trial in pruned:
        tokens = 1024 * trial.params["num_examples"]
        assert trial.constraints == {"train_tokens": tokens - 32 * 1024}
        assert trial.user_attrs["infeasible"] == f"train_tokens {tokens}"
        assert sweep.recorder.get_run(trial.user_attrs["run_id"]).status == "KILLED"
    assert f"{len(pruned)} infeasible" in result.text
    rows = list(csv.DictReader(Path(result.facts["best_recipe"]).with_name("trials.csv").open()))
    assert [bool(row["infeasible"]) for row in rows] == [trial in pruned for trial in trials_of(sweep)]


def test_a_sampler_that_learns_from_measured_trials_alone_gets_infeasible_ones_too(world: Path, tmp_path: Path) -> None:
    limit = [{"quantity": "train_tokens", "most": 16 * 1024}]
    sweep = fake_sweep(world, tmp_path, space=WITH_SIZE, constraints=limit, num_trials=4, sampler="gp")
    result = sweep(Costly())
    assert (result.facts["num_complete"], result.facts["num_pruned"]) == (4, 0)
    assert result.facts["num_infeasible"] == sum(trial.params["num_examples"] > 16 for trial in trials_of(sweep)) > 0


def test_the_cheapest_recipe_that_is_good_enough_is_the_best(world: Path, tmp_path: Path) -> None:
    limit = [{"quantity": "weighted_head_recall", "least": 0.4}]

    def measure(knobs: Knobs, run_id: str, course: Course) -> Measured:
        found = Costly()(knobs, run_id, course)
        return Measured(value=Estimate(found.numbers["train_tokens"]), numbers=found.numbers)

    sweep = fake_sweep(world, tmp_path, space=WITH_SIZE, objective="train_tokens", constraints=limit, num_trials=11)
    result = sweep(measure)
    trials = trials_of(sweep)
    good = [trial for trial in trials if trial.user_attrs["weighted_head_recall"] >= 0.4]
    assert 0 < len(good) < len(trials)
    assert result.facts["best_value"] == min(trial.values[0] for trial in good)
    assert {trial.number for trial in trials if trial.user_attrs.get("infeasible")} == {
        trial.number for trial in trials if trial not in good
    }
    assert "infeasible: weighted_head_recall 0." in result.text


def test_without_a_feasible_trial_there_is_no_best(world: Path, tmp_path: Path) -> None:
    limit = [{"quantity": "real_nll", "most": 0.0}]
    result = fake_sweep(world, tmp_path, constraints=limit, num_trials=2, corners=False)(Fake(lambda number: None))
    assert (result.facts["num_complete"], result.facts["num_infeasible"]) == (2, 2)
    assert "best_trial" not in result.facts
    assert "infeasible: real_nll" in result.text
    said = "no best recipe: no complete trial keeps to the constraints (real_nll least None, most 0.0); the first tried"
    assert f"{said} has real_nll 0." in result.text


def test_a_token_budget_below_every_recipe_trains_nothing_and_says_so(world: Path, tmp_path: Path) -> None:
    limit = [{"quantity": "train_tokens", "most": 1024}]
    sweep = fake_sweep(world, tmp_path, space=WITH_SIZE, constraints=limit, num_trials=3)
    measure = Costly()
    result = sweep(measure)
    assert (measure.trained, result.facts["num_pruned"], result.facts["num_complete"]) == ([], 3, 0)
    assert "no complete trial keeps to the constraints (train_tokens least None, most 1024.0); the first" in result.text
    assert "best_recipe" not in result.facts
    assert [run.status for run in run_of(sweep, "sweep")] == ["FINISHED"]


def test_where_every_trial_failed_the_table_says_that_none_is_complete(sweep: FakeSweep) -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    result = sweep(Fake(before=fail), num_trials=3)
    assert "no best recipe: no trial is complete" in result.text


def test_costs_are_noted_and_averaged_over_the_trials(sweep: FakeSweep) -> None:
    class Timed(Fake):
        def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
            course.costs |= {"make_data_s": 1.0, "finetune_s": float(self.count)}
            return super().__call__(knobs, run_id, course)

    result = sweep(Timed(), num_trials=3)
    assert "make_data_s 1.00 (n = 3), finetune_s 1.00 (n = 3), seconds" in result.text
    assert [run.metrics["finetune_s"] for run in run_of(sweep, "trial")] == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"objectives": ["head_recall", "head_recall"]}, r"objectives must be different"),
        ({"objective": "recall"}, r"objective must be one of head_recall, .*, train_tokens, got 'recall'"),
        ({"constraints": [{"quantity": "real_nll"}]}, r"constraints\.least must be given where most is not"),
        ({"constraints": [{"quantity": "real_nll", "least": 2, "most": 1}]}, r"least must be at most most \(1\.0\)"),
        (
            {"constraints": [{"quantity": "head_recall", "least": 1.5}]},
            r"constraints must leave values of head_recall .*1",
        ),
        (
            {"constraints": [{"quantity": "real_nll", "most": -1}]},
            r"must leave values of real_nll that it can have, 0 to",
        ),
        ({"constraints": [{"quantity": "real_nll", "most": 1}] * 2}, r"constraints must each be of another quantity"),
        ({"space": [{"knob": "num_example", "low": 1, "high": 2}]}, r"got 'num_example'\. Did you mean num_examples"),
        ({"space": [{"knob": "num_examples", "low": 8}]}, r"space\[0\] must hold low and high for num_examples"),
        ({"space": [{"knob": "num_examples", "low": 0, "high": 9}]}, r"space\[0\] must hold low < high within \[1, "),
        ({"space": [{"knob": "num_tokens", "low": 64, "high": 4096}]}, r"within \[64, 1024\], got \[64.*, 4096"),
        ({"space": [{"knob": "num_tokens", "low": 64, "high": 512}] * 2}, r"space\[1\]\.knob must be named once"),
    ],
)
def test_objectives_and_budgets_that_cannot_be_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(**changes)


def test_a_constraint_is_kept_at_its_ends_and_broken_by_nan() -> None:
    constraint = Constraint(quantity="real_nll", least=1.0, most=2.0)
    assert [constraint.excess(value) for value in (0.5, 1.0, 1.5, 2.0, 2.25)] == [0.5, 0.0, -0.5, 0.0, 0.25]
    assert constraint.excess(float("nan")) == float("inf")


def test_a_budget_has_no_more_distinct_rows_than_examples() -> None:
    data = config(data={"train_file": "mdqa", "num_examples": 100, "num_distinct": 40}).data
    small, large = (Budget(num_examples=count, num_tokens=128).of(data) for count in (10, 80))
    assert (small.num_examples, small.num_tokens, small.num_distinct) == (10, 128, 10)
    assert (large.num_examples, large.num_distinct) == (80, 40)
