"""Trials given up on what they report on their way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import Fake, fake_sweep, recall
from test_sweep_config import config
from test_sweep_workers import run_of, trials_of

from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError, InterruptedRunError, PrunedTrialError
from rhstudy.sweep.claims import LostTrialError
from rhstudy.sweep.course import Budget, Course, TrialCourse
from rhstudy.sweep.halving import without_rungs
from rhstudy.sweep.measure import Measured
from rhstudy.sweep.pruning import make_pruner, steps_of
from rhstudy.sweep.storage import retry
from rhstudy.types import Estimate

THREE = (0.25, 0.5, 0.75)


class Reporting(Fake):
    """Reports a growing share of the recall at each step, seed by seed."""

    def __init__(self, report_at: Sequence[float] = THREE, num_seeds: int = 1, *, noise: float = 0.0) -> None:
        super().__init__()
        self.steps = [step for seed in steps_of(report_at, num_seeds) for step in seed]
        self.noise = noise
        self.reported: dict[str, list[int]] = {}

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        course.costs["finetune_s"] = 1.0
        for step in self.steps:
            self.reported.setdefault(run_id, []).append(step)
            value = recall(knobs) + self.noise * (step % 3)
            course.report(step, {"weighted_head_recall": value, "real_nll": 1 - value})
        return super().__call__(knobs, run_id, course)


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_trials_that_promise_little_are_given_up(world: Path, tmp_path: Path, pruner: str) -> None:
    sweep = fake_sweep(world, tmp_path, pruner=pruner, report_at=THREE, num_trials=16)
    measure = Reporting()
    result = sweep(measure)
    states = {trial.number: trial.state.name for trial in trials_of(sweep)}
    assert set(states.values()) == {"COMPLETE", "PRUNED"}
    assert result.facts["num_pruned"] == list(states.values()).count("PRUNED")
    assert result.facts["num_trials"] == 16
    for trial in trials_of(sweep):
        run = sweep.recorder.get_run(trial.user_attrs["run_id"])
        assert run.status == ("FINISHED" if trial.state.name == "COMPLETE" else "KILLED")
        steps = measure.reported[run.run_id]
        assert list(trial.intermediate_values) == steps
        assert trial.user_attrs["finetune_s"] == run.metrics["finetune_s"] == 1.0
        history = [point for point in sweep.recorder.metric_history(run.run_id)]
        curve = {point.step: point.value for point in history if point.key == "checkpoint_weighted_head_recall"}
        assert curve == trial.intermediate_values
        assert [point.step for point in history if point.key == "checkpoint_real_nll"] == steps
        if trial.state.name == "PRUNED":
            assert steps[-1] < 100
            assert "weighted_head_recall must promise more at step" in run.tags["rhstudy.error"]
        else:
            assert steps == [25, 50, 75, 100]
    if pruner == "median":
        complete = [trial.value for trial in trials_of(sweep) if trial.state.name == "COMPLETE"]
        pruned = [trial.value for trial in trials_of(sweep) if trial.state.name == "PRUNED"]
        assert max(pruned) < max(complete) == result.facts["best_value"]
        assert all(trial.state.name == "COMPLETE" for trial in trials_of(sweep)[:5])


def test_wilcoxon_gives_up_seed_by_seed_against_the_best(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, pruner="wilcoxon", seeds=list(range(1, 9)), num_trials=8)
    measure = Reporting((), 8, noise=0.01)
    sweep(measure)
    pruned = [trial for trial in trials_of(sweep) if trial.state.name == "PRUNED"]
    assert pruned
    for trial in pruned:
        assert 4 <= len(trial.intermediate_values) < 8  # no difference of three pairs is significant


def test_what_a_pruner_is_told_with_a_loss_is_the_less_the_better(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(
        world, tmp_path, pruner="median", report_at=THREE, num_trials=12, objective="real_nll", sampler="random"
    )

    class Loss(Reporting):
        def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
            return Measured(value=Estimate(1 - super().__call__(knobs, run_id, course).value.value))

    result = sweep(Loss())
    values = {trial.state.name: [] for trial in trials_of(sweep)}
    for trial in trials_of(sweep):
        values[trial.state.name].append(trial.value)
    assert set(values) == {"COMPLETE", "PRUNED"}
    assert result.facts["best_value"] == min(values["COMPLETE"]) < min(values["PRUNED"])


def test_without_a_pruner_the_curves_are_there_and_nothing_is_given_up(world: Path, tmp_path: Path) -> None:
    for name, changes in (("one", {}), ("two", {"objectives": ["weighted_head_recall", "real_nll"]})):
        sweep = fake_sweep(world, tmp_path / name, report_at=THREE, num_trials=2, **changes)

        class Both(Reporting):
            def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
                found = super().__call__(knobs, run_id, course)
                others = (Estimate(found.numbers["real_nll"]),) if name == "two" else ()  # noqa: B023
                return Measured(value=found.value, further=others, numbers=found.numbers)

        assert sweep(Both()).facts["num_complete"] == 2
        run = run_of(sweep, "trial")[0]
        keys = [point.key for point in sweep.recorder.metric_history(run.run_id)]
        assert keys.count("checkpoint_weighted_head_recall") == 4


def test_trials_given_up_end_a_row_of_failures(world: Path, tmp_path: Path) -> None:
    def before(number: int) -> None:
        raise ValueError if number % 2 else PrunedTrialError("too little")

    result = fake_sweep(world, tmp_path, num_trials=6, max_failures=2)(Fake(before=before))
    assert (result.facts["num_failed"], result.facts["num_pruned"]) == (3, 3)


def test_a_trial_that_is_another_workers_by_now_is_noticed_at_its_next_report() -> None:
    study = optuna.create_study()
    trial = study.ask()
    budget = Budget(num_examples=1, num_tokens=64)
    course = TrialCourse(trial=trial, objective="real_nll", log=lambda *_: None, budget=budget)
    course.report(25, {"real_nll": 1.0})
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(LostTrialError, match="trial 0 must be at work"):
        course.report(50, {"real_nll": 1.0})


def test_steps_are_per_cent_of_all_seeds_training() -> None:
    assert steps_of((0.25, 0.5), 2) == [[12, 25, 50], [62, 75, 100]]
    assert steps_of((), 4) == [[25], [50], [75], [100]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("none", optuna.pruners.NopPruner),
        ("median", optuna.pruners.MedianPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("successive_halving", optuna.pruners.SuccessiveHalvingPruner),
        ("wilcoxon", optuna.pruners.WilcoxonPruner),
    ],
)
def test_a_name_is_optunas_pruner(name: Any, kind: type) -> None:
    assert isinstance(make_pruner(name, THREE, 1), kind)


def fates(pruner: Any, values: Sequence[float], *, dies: int = -1) -> list[int]:
    """The last step of each recipe, in their order; the worker of number `dies` dies at step 50, and it is retried."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner, THREE, 1))
    found = []
    for number, value in enumerate(values):
        if number == dies:
            assert last_step(study.ask(), value, until=50) == 50
            study.tell(len(study.trials) - 1, state=optuna.trial.TrialState.FAIL)
            retry(config())(study, without_rungs(study.trials[-1]))
        trial = study.ask()
        found.append(last_step(trial, value))
        study.tell(trial, value)
    return found


def last_step(trial: optuna.Trial, value: float, until: int = 100) -> int:
    for step in (25, 50, 75, 100):
        trial.report(value, step)
        if trial.should_prune() or step == until:
            return step
    raise ValueError(until)


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband"])
def test_a_trial_enqueued_again_competes_once_and_from_its_first_rung_on(
    pruner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.pruners.HyperbandPruner, "_get_bracket_id", lambda *given: 0)  # else by trial number
    values = [0.9, 0.5, 0.6, 0.7, 0.8, 0.95, 0.55, 0.85]
    expected = fates(pruner, values)
    assert len(set(expected)) > 2
    for number in (0, 5):
        assert expected[number] >= 50  # else its worker could not die there
        assert fates(pruner, values, dies=number) == expected


def test_a_worker_that_dies_leaves_its_retry_no_rung(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, pruner="successive_halving", report_at=THREE, num_trials=2)

    class Dies(Reporting):
        def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
            super().__call__(knobs, run_id, course)
            raise InterruptedRunError("stop")

    with pytest.raises(InterruptedRunError):
        sweep(Dies())
    lost, again = trials_of(sweep)
    rungs = [[key for key in trial.system_attrs if key.startswith("completed_rung")] for trial in (lost, again)]
    assert (rungs[0], rungs[1]) == (["completed_rung_0", "completed_rung_1"], [])
    assert again.system_attrs["retry_history"] == [0]
    sweep(Reporting())
    assert trials_of(sweep)[1].state.name == "COMPLETE"
    assert trials_of(sweep)[1].system_attrs["completed_rung_0"] == lost.system_attrs["completed_rung_0"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pruner": "median"}, r"report_at must be given for median with one seed"),
        ({"pruner": "asha", "report_at": [0.5]}, r"pruner must be one of none, hyperband, .*, got 'asha'"),
        ({"report_at": [0.5, 1.0]}, r"report_at must be shares of the training, above 0 and below 1"),
        ({"report_at": [0.5, 0.25]}, r"report_at must rise by steps that count"),
        ({"report_at": [0.5, 0.501]}, r"report_at must rise by steps that count"),
        (
            {"pruner": "median", "report_at": [0.5], "objectives": ["head_recall", "real_nll"]},
            r"pruner must go with one objective of .*, got <median, head_recall, real_nll>.*Optuna prunes by one",
        ),
        ({"pruner": "median", "report_at": [0.5], "objective": "gpu_seconds"}, r"pruner must go with one objective"),
        ({"pruner": "wilcoxon", "seeds": [1, 2, 3, 4]}, r"seeds must be at least 5 for wilcoxon"),
        ({"pruner": "wilcoxon", "seeds": [1, 2, 3, 4, 5], "report_at": [0.5]}, r"report_at must be empty for wilcoxon"),
        ({"report_at": [0.5], "training": {"num_processes": 2}}, r"report_at must be empty where several processes"),
    ],
)
def test_pruning_that_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(**changes)
