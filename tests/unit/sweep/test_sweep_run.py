"""One worker: what it does, records and refuses."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import Fake, FakeSweep, fake_sweep, recall
from storages import run_of, trials_of

from rhstudy.configs import load_config
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError, InterruptedRunError, PrunedTrialError, StudyError
from rhstudy.plan import StudyConfig
from rhstudy.sweep.course import Course
from rhstudy.sweep.measure import Measured
from rhstudy.types import Estimate


def fails(*numbers: int, error: Exception) -> Fake:
    def before(number: int) -> None:
        if number in numbers:
            raise error

    return Fake(before=before)


def test_a_sweep_records_a_run_a_trial_with_links_both_ways(sweep: FakeSweep) -> None:
    result = sweep()
    assert (result.facts["num_trials"], result.facts["num_complete"]) == (6, 6)
    (parent,) = run_of(sweep, "sweep")
    assert (parent.run_id, parent.status, parent.metrics["num_trials"]) == (result.run_id, "FINISHED", 6.0)
    assert parent.params["space"].count("knob") == 3
    runs = {run.run_id: run for run in run_of(sweep, "trial")}
    for trial in trials_of(sweep):
        run = runs.pop(trial.user_attrs["run_id"])
        assert (run.status, run.parent_run_id) == ("FINISHED", parent.run_id)
        assert run.tags["rhstudy.sweep.trial"] == str(trial.number)
        assert run.tags["rhstudy.run.detect"] == "d"
        assert run.metrics["objective"] == trial.value == pytest.approx(1.0 - run.metrics["real_nll"])
        assert float(run.params["values.real_fraction"]) == trial.params["real_fraction"]
        assert ("num_templates" in trial.params) == (trial.params["concept_expression"] == "templated")
    assert not runs


def test_the_papers_corners_are_tried_first(sweep: FakeSweep) -> None:
    sweep()
    corners = [trial.user_attrs.get("corner") for trial in trials_of(sweep)]
    assert corners == ["low_high", None, None, None, None, None]
    first = trials_of(sweep)[0]
    assert first.params == {"concept_expression": "templated", "real_fraction": 0.0, "num_templates": 1}
    names = {run.name for run in run_of(sweep, "trial")}
    assert names == {"trial 0 low_high", *(f"trial {number}" for number in range(1, 6))}


def test_the_base_is_tried_before_the_corners(sweep: FakeSweep) -> None:
    base = Knobs(name="base", concept_expression="templated", real_fraction=0.25, num_templates=3)
    sweep(base=base, num_trials=3)
    tried = [(trial.user_attrs.get("corner"), trial.params["real_fraction"]) for trial in trials_of(sweep)]
    assert tried[:2] == [("base", 0.25), ("low_high", 0.0)]
    assert tried[2][0] is None


def test_the_best_recipe_is_a_study_that_runs_as_it_is(sweep: FakeSweep) -> None:
    result = sweep()
    best = max(trials_of(sweep), key=lambda trial: trial.value or 0.0)
    assert (result.facts["best_trial"], result.facts["best_value"]) == (best.number, best.value)
    study = load_config(StudyConfig, result.facts["best_recipe"])
    (custom,) = study.custom_recipes
    assert recall(custom) == best.value
    assert study.recipes == ("real",)
    assert study.data == sweep.config.data
    rows = list(csv.DictReader(Path(result.facts["best_recipe"]).with_name("trials.csv").open()))
    assert [float(row["objective"]) for row in rows] == [trial.value for trial in trials_of(sweep)]
    assert f"{best.value:.4f}" in result.text.splitlines()[1]


def test_the_importance_names_its_evaluator(sweep: FakeSweep) -> None:
    assert sweep().facts["importance"] is None
    found = sweep(num_trials=30).facts["importance"]
    assert (found["evaluator"], found["n"]) == ("PED-ANOVA", 30)
    assert found["real_fraction"] > 0.5 > found["num_templates"]


def test_started_again_a_finished_sweep_only_shows_what_it_found(sweep: FakeSweep) -> None:
    fake = Fake()
    first, second = sweep(fake), sweep(fake)
    assert fake.count == 6
    assert first.facts == second.facts
    assert [run.status for run in run_of(sweep, "sweep")] == ["FINISHED"]


def test_with_a_larger_budget_it_goes_on_and_repeats_nothing(sweep: FakeSweep) -> None:
    sweep()
    sweep(num_trials=10)
    trials = trials_of(sweep)
    assert len(trials) == len({tuple(trial.params.items()) for trial in trials}) == 10


def test_a_trial_that_raises_fails_and_the_sweep_goes_on(sweep: FakeSweep) -> None:
    result = sweep(fails(2, error=ValueError("http://ada:secret@host is down")))
    assert (result.facts["num_complete"], result.facts["num_failed"]) == (5, 1)
    failed = trials_of(sweep)[1]
    assert failed.state == optuna.trial.TrialState.FAIL
    assert failed.user_attrs["error"] == "trial 1: ValueError: http://***@host is down"
    run = sweep.recorder.get_run(failed.user_attrs["run_id"])
    assert run.status == "FAILED"
    assert sweep().facts["num_trials"] == 6  # it is not tried again


def test_a_recall_that_is_nan_fails_its_trial_with_the_reason(sweep: FakeSweep) -> None:
    def measure(knobs: Knobs, run_id: str, course: Course) -> Measured:
        return Measured(value=Estimate.undefined("no head of the model is scored"))

    with pytest.raises(StudyError, match=r"trials must not fail 5 times in a row, got <trial 4: StudyError: weighted"):
        sweep(measure)
    trials = trials_of(sweep)
    assert all("must be a number, got <NaN>" in trial.user_attrs["error"] for trial in trials)
    assert "no head of the model is scored" in trials[0].user_attrs["error"]
    assert [run.status for run in run_of(sweep, "sweep")] == ["FAILED"]
    assert sweep().facts["num_complete"] == 1  # of six trials five had failed


def test_a_pruned_trial_is_killed_in_the_store(sweep: FakeSweep) -> None:
    result = sweep(fails(3, error=PrunedTrialError("below the median")))
    assert (result.facts["num_complete"], result.facts["num_pruned"]) == (5, 1)
    pruned = trials_of(sweep)[2]
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert sweep.recorder.get_run(pruned.user_attrs["run_id"]).status == "KILLED"


def test_an_interrupted_trial_is_enqueued_again(sweep: FakeSweep) -> None:
    with pytest.raises(InterruptedRunError, match="stop"):
        sweep(fails(3, error=InterruptedRunError("stop")))
    assert [run.status for run in run_of(sweep, "sweep")] == ["KILLED"]
    states = [trial.state.name for trial in trials_of(sweep)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    spent = sum(trial.user_attrs["seconds"] for trial in trials_of(sweep)[:3])
    assert sweep(num_trials=2).facts["trial_seconds"] == pytest.approx(spent)  # what waits has spent nothing
    result = sweep()
    assert (result.facts["num_complete"], result.facts["num_lost_workers"]) == (6, 1)
    trials = trials_of(sweep)
    assert trials[3].params == trials[2].params
    assert sweep.recorder.get_run(trials[2].user_attrs["run_id"]).status == "KILLED"


def test_a_trial_whose_worker_always_dies_is_given_up(sweep: FakeSweep) -> None:
    for _ in range(3):
        with pytest.raises(InterruptedRunError):
            sweep(fails(1, error=InterruptedRunError("stop")), max_retries=2)
    assert sweep(max_retries=2).facts["num_complete"] == 6
    assert [trial.state.name for trial in trials_of(sweep)][:3] == ["FAIL"] * 3
    assert len(trials_of(sweep)) == 9


def test_a_budget_of_seconds_ends_the_sweep(sweep: FakeSweep) -> None:
    result = sweep(Fake(seconds=0.1), num_trials=0, max_seconds=0.05)
    assert result.facts["num_complete"] == 1
    assert result.facts["trial_seconds"] > 0.1


def test_a_changed_search_file_is_refused_with_the_difference(sweep: FakeSweep, world: Path) -> None:
    sweep()
    with pytest.raises(
        InputError, match=r'got \'fake\'\. Take the change back.*: -sampler = "random"; \+sampler = "tpe"'
    ):
        sweep(sampler="tpe")
    other = fake_sweep(world, sweep.folder, data={"train_file": str(world / "data" / "eval.jsonl")})
    with pytest.raises(InputError, match=r'search file must be the one .*: -train_file = "\w+"; \+train_file = "\w+"'):
        other()
    assert sweep(num_trials=7, max_seconds=100, worker=True).facts["num_trials"] == 1


def test_a_study_of_somebody_else_is_left_alone(sweep: FakeSweep) -> None:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(sweep.config.storage))
    optuna.create_study(storage=storage, study_name="fake").optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(InputError, match="name must be free in the storage, got 'fake'"):
        sweep()


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        ("nothing://ada:secret@host/db", r"storage must be .*, got 'nothing://\*\*\*@host/db'"),
        ("/proc/no/such.journal", "storage must be a file that can be written"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_bad_input(sweep: FakeSweep, storage: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        sweep(storage=storage)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_journal_is_bad_input(sweep: FakeSweep) -> None:
    Path(sweep.config.storage).write_text("question,answer\n1,2\n")
    with pytest.raises(InputError, match="storage must be a journal of Optuna"):
        sweep()


def test_another_tracking_store_is_refused(sweep: FakeSweep, tmp_path: Path) -> None:
    sweep()
    sweep.folder = tmp_path / "elsewhere"
    with pytest.raises(InputError, match="tracking must hold the sweep's run"):
        sweep(num_trials=7)


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "gp", "nsga2"])
def test_every_sampler_searches_the_space(world: Path, tmp_path: Path, sampler: str) -> None:
    sweep: Any = fake_sweep(world, tmp_path, sampler=sampler, num_trials=14)
    assert sweep().facts["num_complete"] == 14


def test_sqlite_keeps_a_sweep_too(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, storage=f"sqlite:///{tmp_path}/sweep.db", num_trials=4)
    with pytest.raises(InterruptedRunError):
        sweep(fails(2, error=InterruptedRunError("stop")))
    assert sweep().facts["num_complete"] == 4
