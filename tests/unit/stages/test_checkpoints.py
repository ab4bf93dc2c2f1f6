"""Training that is measured in its midst: told once, kept, told again after a kill, given up where that is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rhstudy.configs import ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError, InterruptedRunError, PrunedTrialError
from rhstudy.keeping import keeping
from rhstudy.models import warm
from rhstudy.models.load import LoadedModel, load_base
from rhstudy.stages import finetune, make_data
from rhstudy.stages.checkpoints import CHECKPOINTS, Checkpoints
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.stage_run import Launched, StageSpec, stages_launched_by
from rhstudy.training.config import TrainingConfig

SHARES = (0.25, 0.5, 0.75)


@dataclass
class Asker:
    """Asks for the norm of a weight; ends the training with `error` once so many values were told."""

    stop_after: int = 99
    error: Exception = field(default_factory=lambda: PrunedTrialError("too little"))
    content: str = "norm"
    told: list[tuple[float, float]] = field(default_factory=list)
    num_measured: int = 0

    def measure(self, loaded: LoadedModel) -> dict[str, float]:
        self.num_measured += 1
        return {"norm": float(loaded.model.model.layers[0].self_attn.q_proj.weight.detach().norm())}

    def tell(self, share: float, values: Mapping[str, float]) -> None:
        self.told.append((share, values["norm"]))
        if len(self.told) == self.stop_after:
            raise self.error

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(fractions=SHARES, content=self.content, measure=self.measure, tell=self.tell)


@dataclass
class Place:
    config: finetune.FinetuneConfig
    recorder: FolderRecorder

    def __call__(self, asker: Asker | None, seed: int) -> finetune.StageResult:
        asked = asker.checkpoints if asker else None
        return finetune.run(replace(self.config, seed=seed), self.recorder, checkpoints=asked)

    def status(self) -> list[str]:
        runs = self.recorder.find_runs({"rhstudy.stage": "finetune"})
        return [run.status for run in sorted(runs, key=lambda run: run.start_time_s)]


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    model = ModelConfig(name=str(world / "model"), cache_dir=str(folder / "cache"), device="cpu")
    asked = DataConfig(
        knobs=Knobs(name="real_in_filler", context_diversity="repeated_filler"),
        train_file=str(world / "data" / "train.jsonl"),
        num_tokens=256,
        num_examples=8,
    )
    tracking = TrackingConfig(recorder="folder", work_dir=str(folder / "work"))
    made = make_data.run(
        make_data.MakeDataConfig(data=asked, model=model, tracking=tracking), FolderRecorder(folder / "runs")
    )
    return folder, model, str(made.artifacts.path)


@pytest.fixture
def place(data: tuple[Path, ModelConfig, str], tmp_path: Path) -> Place:
    _, model, examples = data
    config = finetune.FinetuneConfig(
        data=examples,
        model=model,
        training=TrainingConfig(batch_size=1, learning_rate=1e-2, save_every_steps=1),
        tracking=TrackingConfig(recorder="folder", work_dir=str(tmp_path / "work")),
    )
    return Place(config, FolderRecorder(tmp_path / "runs"))


def test_values_are_told_logged_and_kept_and_the_weights_are_those_without(place: Place) -> None:
    asker = Asker()
    done = place(asker, seed=0)
    assert [share for share, _ in asker.told] == list(SHARES)
    assert len({norm for _, norm in asker.told}) == 3
    points = [point for point in place.recorder.metric_history(done.run_id) if point.key == "checkpoint_norm"]
    assert [(point.step, point.value) for point in points] == [
        (step, norm) for step, (_, norm) in zip((2, 4, 6), asker.told, strict=True)
    ]
    assert done.artifacts.file(CHECKPOINTS).is_file()

    again = Asker()
    assert place(again, seed=0).reused
    assert (again.told, again.num_measured) == (asker.told, 0)
    other = Asker(content="another reference")
    place(other, seed=0)
    assert other.told == []  # what was kept is not what this one asks for

    fresh = Place(
        replace(place.config, tracking=replace(place.config.tracking, work_dir=str(done.artifacts.path / "w"))),
        FolderRecorder(Path(place.config.tracking.work_dir).parent / "other runs"),
    )
    assert fresh(None, seed=0).artifacts.content_digest == done.artifacts.content_digest


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_killed_at_a_checkpoint_tells_each_step_once_to_the_next(place: Place, stop_after: int) -> None:
    whole = Asker()
    expected = place(whole, seed=1).artifacts.content_digest
    place.recorder = FolderRecorder(Path(place.config.tracking.work_dir).parent / f"runs {stop_after}")
    killed = Asker(stop_after=stop_after, error=InterruptedRunError("stop"))
    with pytest.raises(InterruptedRunError):
        place(killed, seed=1)
    resumed = Asker()
    done = place(resumed, seed=1)
    assert resumed.told == whole.told
    assert resumed.num_measured == 3 - stop_after
    assert done.artifacts.content_digest == expected
    assert place.status() == ["KILLED", "FINISHED"]
    points = [point.step for point in place.recorder.metric_history(done.run_id) if point.key == "checkpoint_norm"]
    assert points == [2, 4, 6]


def test_training_that_is_given_up_is_killed_and_leaves_no_state(place: Place) -> None:
    asker = Asker(stop_after=2)
    with pytest.raises(PrunedTrialError, match="too little"):
        place(asker, seed=2)
    assert place.status() == ["KILLED"]
    left = [path.name for path in Path(place.config.tracking.work_dir).rglob("*") if path.is_file()]
    assert CHECKPOINTS in left
    assert "training-state.pt" not in left
    again = Asker(stop_after=2)
    with pytest.raises(PrunedTrialError):
        place(again, seed=2)
    assert (again.told, again.num_measured) == (asker.told, 0)  # known before it is trained anew


def test_a_warm_model_survives_training_that_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0

    def counted(*given: object) -> LoadedModel:
        nonlocal num_read
        num_read += 1
        return load_base(*given)

    monkeypatch.setattr(warm, "load_base", counted)
    alone = place(None, seed=4).artifacts.content_digest
    place.recorder = FolderRecorder(Path(place.config.tracking.work_dir).parent / "others")
    with keeping():
        with contextlib.suppress(PrunedTrialError):
            place(Asker(stop_after=1), seed=3)
        assert place(None, seed=4).artifacts.content_digest == alone
        assert warm.loading_s() > 0
    assert num_read == 2


def test_checkpoints_need_training_in_this_process(place: Place) -> None:
    class Launch:
        same_digests = True

        def __call__(self, spec: StageSpec) -> Launched:
            raise NotImplementedError

    with stages_launched_by(Launch()), pytest.raises(InputError, match="report_at must be empty where stages run in"):
        place(Asker(), seed=5)
