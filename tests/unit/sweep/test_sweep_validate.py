"""The check of a sweep whose models cost nothing: what it evaluates and when, what fails, how it goes on."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from evidence import scores
from fakes import FakeSweep, fake_sweep, recall

from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError, InterruptedRunError
from rhstudy.heads.files import save_scores
from rhstudy.stages.evaluate import PREDICTIONS, write_predictions
from rhstudy.stages.inputs import resolved_data
from rhstudy.sweep import validate
from rhstudy.sweep.equal_rows import with_equal_rows
from rhstudy.sweep.measure import REFERENCE_TAG, Measured
from rhstudy.tracking.artifacts import seal_artifacts, write_summary
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult
from rhstudy.types import Estimate, Prediction

ASKED = {
    "top_k": 1,
    "num_random": 99,
    "reference_sizes": [0, 10],
    "statistics": {"num_resamples": 100, "num_permutations": 100, "num_power_draws": 100},
}


def recorded(recorder: Any, stage: str, write: Callable[[Path], Any], tags: Any = None, **metrics: float) -> str:
    """A finished run with what `write` leaves in its folder."""
    run_id = recorder.create_run(stage, stage, "", tags)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        write_summary(Path(name), {})
        seal_artifacts(Path(name), stage)
        recorder.log_artifacts(run_id, Path(name))
    recorder.log_metrics(run_id, metrics)
    recorder.end_run(run_id, "FINISHED")
    return str(run_id)


def detected(recorder: Any, quality: float, seed: int) -> str:
    data = recorded(recorder, "make-data", lambda folder: None, duration_s=1.0)
    tuned = recorded(
        recorder, "finetune", lambda folder: None, {"rhstudy.input.train_data.run_id": data}, duration_s=3.0
    )
    write = lambda folder: save_scores(scores(quality, seed), folder)  # noqa: E731
    tags = {"rhstudy.input.checkpoint.run_id": tuned}
    return recorded(recorder, "detect", write, tags, scoring_s=8.0, num_examples=40)


class FakeArms:
    """Models whose F1 is the recall of their recipe; notes what was asked of it."""

    log: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, BaseException]] = {}
    data: ClassVar[list[DataConfig]] = []

    def __init__(self, config: Any, recorder: FolderRecorder, parent: str) -> None:
        self.recorder, self.quality = recorder, dict[str, float]()
        self.data.append(config.data)

    def trained(self, knobs: Knobs, seed: int, data: Any, name: str) -> Any:
        self.log.append(f"train {name}")
        for part, error in self.failing.items():
            if part in name:
                raise error
        self.quality[name] = recall(knobs)
        return dataclasses.make_dataclass("Tuned", ["run_id"])(name)

    def evaluated(self, checkpoint: str, name: str) -> StageResult:
        self.log.append(f"evaluate {name}")
        draws = np.random.default_rng(len(name))
        marks = (draws.random(30) < self.quality.get(checkpoint, 0.1)).astype(float)
        rows = [
            Prediction(example_id=f"eval-{row}", text="", answers=("a",), f1=f1, exact_match=f1, gold_nll=1.0,
                       num_prompt_tokens=1, num_new_tokens=1)
            for row, f1 in enumerate(marks)
        ]  # fmt: skip
        run_id = recorded(self.recorder, "evaluate", lambda folder: write_predictions(folder / PREDICTIONS, rows),
                          evaluation_s=15.0, num_examples=30)  # fmt: skip
        return StageResult(run_id=run_id, artifacts=resolve(self.recorder, run_id), summary={}, reused=False)

    def reference(self, num_distinct: int, name: str) -> StageResult:
        self.log.append(f"score {name}")
        run_id = detected(self.recorder, 0.2 + num_distinct / 20, 300 + num_distinct)
        return StageResult(run_id=run_id, artifacts=resolve(self.recorder, run_id), summary={}, reused=False)


@pytest.fixture
def swept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    """A sweep of six trials with head scores and a reference, its runs recorded."""
    sweep = fake_sweep(world, tmp_path, validation=ASKED, scoring={"threshold": 0.2})
    numbers = iter(range(100))

    def measure(knobs: Knobs, run_id: str, course: Any) -> Measured:
        run = detected(sweep.recorder, recall(knobs), next(numbers))
        return Measured(value=Estimate(recall(knobs)), runs={"detect.seed1": run})

    run_id = sweep(measure).run_id
    sweep.recorder.set_tags(run_id, {REFERENCE_TAG: detected(sweep.recorder, 0.9, 200)})
    monkeypatch.setattr(validate, "Arms", FakeArms)
    monkeypatch.setattr(FakeArms, "log", [])
    monkeypatch.setattr(FakeArms, "failing", {})
    monkeypatch.setattr(FakeArms, "data", [])
    monkeypatch.setattr("rhstudy.stats.reliability.NUM_SPLITS", 3)
    monkeypatch.setattr(validate, "write_figures", lambda *given: None)
    return sweep


def findings(result: Any) -> dict[str, Any]:
    return dict(json.loads((Path(result.facts["folder"]) / "validation.json").read_text(encoding="utf-8")))


def test_every_chosen_recipe_is_evaluated_with_old_and_new_seeds_and_costs_are_those_recorded(swept: FakeSweep) -> None:
    result = validate.run(swept.config, swept.recorder)
    found = findings(result)
    assert found["num_evaluated"] == found["num_candidates"] == 6
    assert {tuple(row["f1_by_seed"]) for row in found["recipes"]} == {("1", "2")}
    assert found["seconds"]["training"]["estimate"] == 4.0
    assert found["seconds"]["score_row"]["estimate"] == pytest.approx(0.2)
    assert found["seconds"]["eval_row"]["estimate"] == pytest.approx(0.5)
    assert list(found["beside"]) == ["reference", "untuned"]
    assert [item["num_distinct"] for item in found["references"]] == [0, 10]
    assert swept.recorder.get_run(result.run_id).metrics["best_f1"] == found["recipes"][0]["f1"]["estimate"]


def test_models_are_trained_on_as_many_distinct_rows_as_those_of_the_trials(swept: FakeSweep) -> None:
    validate.run(swept.config, swept.recorder)
    resolved = dataclasses.replace(swept.config, data=resolved_data(swept.config.data, swept.config.model))
    (data,) = FakeArms.data
    assert 0 < data.num_distinct < data.num_examples
    assert data == with_equal_rows(resolved).data


def test_a_check_that_was_stopped_goes_on_and_does_nothing_twice(swept: FakeSweep) -> None:
    asked = dataclasses.replace(
        swept.config, validation=dataclasses.replace(swept.config.validation, reference_sizes=())
    )
    FakeArms.failing = {"/seed2": InterruptedRunError("stopped")}
    with pytest.raises(InterruptedRunError, match="stopped"):
        validate.run(asked, swept.recorder)
    first = [item for item in FakeArms.log if item.startswith("evaluate")]
    assert len(first) == 1
    FakeArms.failing = {}
    FakeArms.log.clear()
    done = validate.run(asked, swept.recorder)
    assert not set(first) & set(FakeArms.log)
    assert len([item for item in FakeArms.log if item.startswith("evaluate")]) == 6 * 2 + 2 - 1
    FakeArms.log.clear()
    again = validate.run(asked, swept.recorder)
    assert FakeArms.log == []
    assert findings(again) == findings(done)


def test_a_model_that_fails_is_left_out_and_named(swept: FakeSweep) -> None:
    recipe = findings(validate.run(swept.config, swept.recorder))["recipes"][2]["recipe"]
    other = dataclasses.replace(swept.config, validation=dataclasses.replace(swept.config.validation, seed=1))
    FakeArms.failing = {f"{recipe}/seed2": RuntimeError("out of memory"), "real": ValueError("no rows")}
    found = findings(validate.run(other, swept.recorder))
    row = next(row for row in found["recipes"] if row["recipe"] == recipe)
    assert list(row["f1_by_seed"]) == ["1"]
    assert list(found["beside"]) == ["untuned"]
    assert found["left_out"] == [f"{recipe}/seed2: RuntimeError: out of memory", "reference: ValueError: no rows"]


def test_nothing_that_can_be_evaluated_is_an_error(swept: FakeSweep) -> None:
    FakeArms.failing = {"seed": RuntimeError("out of memory")}
    with pytest.raises(
        InputError, match=r"validation must give at least one model that can be evaluated, got .*memory"
    ):
        validate.run(swept.config, swept.recorder)
    (own,) = swept.recorder.find_runs({"rhstudy.stage": "sweep-validate"})
    assert own.status == "FAILED"


def test_a_sweep_without_head_scores_cannot_be_checked(world: Path, tmp_path: Path) -> None:
    sweep = fake_sweep(world, tmp_path, num_trials=1)

    def measure(knobs: Knobs, run_id: str, course: Any) -> Measured:
        return Measured(value=Estimate(0.5), runs={"detect.seed1": "0" * 32})

    run_id = sweep(measure).run_id
    sweep.recorder.set_tags(run_id, {REFERENCE_TAG: detected(sweep.recorder, 0.9, 200)})
    with pytest.raises(
        InputError, match=r"sweep must have a complete trial with head scores, got .*trial 0: InputError"
    ):
        validate.run(sweep.config, sweep.recorder)
