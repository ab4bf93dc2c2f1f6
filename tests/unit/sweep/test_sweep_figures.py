"""What a sweep draws at its end, and what it says about what it could not draw."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import optuna
import pytest
from fakes import FakeSweep

from rhstudy.data.knobs import search_space
from rhstudy.figures.searches import SearchKnob, SearchPoint
from rhstudy.sweep import figures
from rhstudy.sweep.front import cheapest_within
from rhstudy.sweep.importance import importances

NAMES = ["history", "importance_ped_anova", "importance_fanova", "slices", "contours", "pareto"]
KNOBS = ("concept_expression", "real_fraction", "num_templates", "length_spread")
SPACE = [one for one in search_space() if one.name in KNOBS]


def study(num_trials: int, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        wording = trial.suggest_categorical("concept_expression", ("templated", "symbolic"))
        value = trial.suggest_float("real_fraction", 0.0, 0.5)
        trial.suggest_float("length_spread", 0.0, 0.9)
        if wording == "templated":
            value += 0.01 * trial.suggest_int("num_templates", 1, 42, log=True)
        trial.set_user_attr("seconds", 10 + value)
        return (value, 10 + value)[: len(directions)]

    made.optimize(objective, n_trials=num_trials)
    return made


def drawn(folder: Path, made: optuna.Study, objectives: tuple[str, ...] = ("head_recall",)) -> dict[str, str]:
    return figures.draw_figures(folder, made, SPACE, objectives, importances(made, objectives))


@pytest.mark.draws
def test_a_sweep_logs_its_figures_and_importance_by_two_methods(sweep: FakeSweep) -> None:
    result = sweep(num_trials=12)
    folder = Path(result.facts["best_recipe"]).parent
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(NAMES)
    assert result.facts["figures"] == NAMES
    assert f"figures in sweep/figures of the run: {', '.join(NAMES)}" in result.text
    rows = list(csv.DictReader((folder / "importance.csv").open()))
    assert {row["evaluator"] for row in rows} == {"PED-ANOVA", "fANOVA"}
    assert {row["objective"] for row in rows} == {"weighted_head_recall"}
    # fANOVA knows only what every trial has
    assert {row["knob"] for row in rows if row["evaluator"] == "fANOVA"} == {"concept_expression", "real_fraction"}
    assert {row["knob"] for row in rows if row["evaluator"] == "PED-ANOVA"} >= {"num_templates", "real_fraction"}


@pytest.mark.draws
def test_with_few_trials_the_reason_stands_for_the_figure(sweep: FakeSweep) -> None:
    result = sweep(num_trials=1)
    assert result.facts["figures"] == ["history", "slices", "pareto"]
    missing = result.text.splitlines()[-1]
    assert missing.startswith(
        "figures left out: importance_ped_anova, importance_fanova: 1 complete trials, and it takes"
    )
    assert "contours: no pair of numeric knobs has four complete trials" in missing


def test_without_a_complete_trial_nothing_is_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path / "none", study(0)) == dict.fromkeys(NAMES, "no trial is complete")
    assert list((tmp_path / "none").iterdir()) == []


def test_several_objectives_have_figures_each_and_a_front(tmp_path: Path) -> None:
    found = drawn(tmp_path, study(12, ("maximize", "minimize")), ("head_recall", "gpu_seconds"))
    assert set(found.values()) == {""}
    assert list(found) == [*NAMES[:-1], *(f"{name}_gpu_seconds" for name in NAMES[:-1]), "pareto"]


def test_importance_points_the_same_way_with_and_without_a_second_objective() -> None:
    one, two = study(30), study(30, ("maximize", "minimize"))
    alone, beside = (importances(made, names)[0] for made, names in ((one, ("a",)), (two, ("a", "b"))))
    assert alone.shares == beside.shares
    direct = optuna.importance.get_param_importances(one, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    assert alone.shares == pytest.approx(direct)
    assert next(iter(alone.shares)) in ("num_templates", "real_fraction")


def test_equal_values_have_no_importance_and_no_exception() -> None:
    made = optuna.create_study()
    made.optimize(lambda trial: 0.0 * trial.suggest_float("real_fraction", 0, 1), n_trials=12)
    for one in importances(made, ("a",)):
        assert bool(one.shares) != bool(one.reason)


def test_a_figure_that_breaks_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> None:
        raise ValueError("no such colour")

    monkeypatch.setattr(figures, "search_history", broken)
    with caplog.at_level(logging.INFO):
        found = drawn(tmp_path, study(12))
    assert found == {**dict.fromkeys(NAMES, ""), "history": "ValueError: no such colour"}
    assert "no figure history: ValueError: no such colour" in caplog.text


def test_a_full_disk_is_not_a_missing_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "save_png", full)
    with pytest.raises(OSError, match="No space left"):
        drawn(tmp_path, study(3))


def test_contours_are_of_the_most_important_numeric_knobs() -> None:
    knobs = [SearchKnob(name=name) for name in "abcd"] + [SearchKnob(name="e", choices=("x", "y"))]
    places = [(0, 0, 1, 2), (1, 0, 2, 1), (0, 1, 5, 3), (2, 1, 0, 0), (3, 4, 1, 1)]
    points = [
        SearchPoint(number=i, state="complete", params=dict(zip("abcd", one, strict=True)))
        for i, one in enumerate(places)
    ]
    pairs, reason = figures.contour_pairs(points, knobs, {"e": 0.5, "d": 0.3, "b": 0.1, "a": 0.05})
    assert [(one.name, other.name) for one, other in pairs] == [("d", "b"), ("d", "a"), ("b", "a")]
    assert reason == ""
    assert figures.contour_pairs(points, knobs[:1], {}) == ([], "two numeric knobs are needed, and the trials have 1")


def test_cost_is_gpu_seconds_where_they_are_known() -> None:
    timed = SearchPoint(number=0, state="complete", values={"seconds": 1.0})
    assert figures.cost_of([timed]).name == "seconds"
    both = SearchPoint(number=1, state="complete", values={"seconds": 1.0, "gpu_seconds": 2.0})
    assert figures.cost_of([timed, both]).name == "gpu_seconds"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_cheapest_trial_within_five_percent_is_found(direction: str) -> None:
    made = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("gpu_seconds", trial.suggest_float("cost", 1, 9))
        if trial.number % 5 == 0:
            trial.set_user_attr("infeasible", "too long")
        return trial.suggest_float("value", 0.5, 0.6)

    made.optimize(objective, n_trials=40)
    slow: list[tuple[float, int]] = []
    allowed = [trial for trial in made.trials if trial.number % 5]
    values = [trial.value for trial in allowed]
    for trial in allowed:
        near = trial.value >= 0.95 * max(values) if direction == "maximize" else trial.value <= 1.05 * min(values)
        slow += [(trial.params["cost"], trial.number)] if near else []
    found = cheapest_within(made, "gpu_seconds")
    assert found is not None
    assert (1 < len(slow) < len(allowed), found.number) == (True, min(slow)[1])
    assert cheapest_within(made, "seconds") is None
    assert cheapest_within(optuna.create_study(), "gpu_seconds") is None
