"""Stage `finetune` in each of its forms: what it records, and that `detect` and `evaluate` take its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_hub import tiny_llama_config, write_model

from rhstudy.configs import ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError
from rhstudy.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rhstudy.models.load import CHECKPOINT_CARD, CHECKPOINT_WEIGHTS
from rhstudy.stages import detect, finetune, make_data
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.training.config import TrainingConfig

FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "attention": ("none", {"optimizer": "adamw_8bit"}, {"scaling": "ntk", "factor": 2.0}),
    "lora": ("none", {"method": "lora", "lora_rank": 4}, {"scaling": "yarn", "factor": 2.0}),
    "qlora": ("nf4", {"method": "lora", "lora_rank": 4}, {"scaling": "linear", "factor": 2.0}),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A model wide enough for 4-bit blocks, rows for it, and where runs go."""

    model: ModelConfig
    data: str
    tracking: TrackingConfig
    recorder: FolderRecorder


@pytest.fixture(scope="module")
def place(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("finetune-stage")
    name = str(write_model(folder / "wide", tiny_llama_config(hidden_size=64, intermediate_size=128)))
    model = ModelConfig(name=name, cache_dir=str(folder / "cache"), device="cpu")
    tracking = TrackingConfig(recorder="folder", work_dir=str(folder / "work"))
    recorder = FolderRecorder(folder / "runs")
    data = DataConfig(
        knobs=Knobs(name="real_in_filler", context_diversity="repeated_filler"),
        train_file=str(world / "data" / "train.jsonl"),
        parts=("train", "score"),
        num_tokens=256,
        num_examples=6,
        num_score=4,
    )
    made = make_data.run(make_data.MakeDataConfig(data=data, model=model, tracking=tracking), recorder)
    return Place(model, made.run_id, tracking, recorder)


def config_of(place: Place, form: str) -> finetune.FinetuneConfig:
    quantization, training, context = FORMS[form]
    return finetune.FinetuneConfig(
        data=place.data,
        model=dataclasses.replace(place.model, quantization=quantization),
        context=ContextConfig(**context),
        training=TrainingConfig(batch_size=2, learning_rate=1e-2, **training),
        tracking=place.tracking,
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_recorded_and_its_checkpoint_is_taken_up(place: Place, form: str) -> None:
    config = config_of(place, form)
    done = finetune.run(config, place.recorder)
    adapter = config.training.method == "lora"
    files = {path.name for path in done.artifacts.path.iterdir()}
    assert ({ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= files) == adapter
    assert (CHECKPOINT_WEIGHTS in files) == (not adapter)
    card = json.loads(done.artifacts.file(CHECKPOINT_CARD).read_text())
    assert (card["scaling"], card["factor"]) == (config.context.scaling, 2.0)
    assert card["quantization"] == config.model.quantization
    assert card["trained"] == ("adapters (LoRA)" if adapter else "attention modules")
    assert str(place.model.name) not in done.artifacts.file(CHECKPOINT_CARD).read_text()

    history = place.recorder.metric_history(done.run_id)
    for name in ("loss", "tokens_per_s"):
        assert [point.step for point in history if point.key == name] == [0, 1, 2]
    summary = done.artifacts.summary()
    assert summary["train_tokens_per_s"] > 0
    assert math.isnan(summary["train_mfu"])
    assert summary["train_mfu_undefined"] == "no peak is known for a cpu"

    watched = detect.DetectConfig(
        data=place.data,
        model=config.model,
        context=config.context,
        checkpoint=done.run_id,
        tracking=place.tracking,
    )
    found = detect.run(watched, place.recorder)
    subject = json.loads(found.artifacts.file("subject.json").read_text())
    assert subject["context"] == config.context.label
    assert subject["train_loss"] == summary["train_loss"]
    untuned = detect.run(dataclasses.replace(watched, checkpoint=""), place.recorder)
    assert found.artifacts.summary()["real_nll"] < untuned.artifacts.summary()["real_nll"]
    with pytest.raises(
        InputError, match=rf"context must be scaling {config.context.scaling}, factor 2\.0 as in training"
    ):
        detect.run(dataclasses.replace(watched, context=ContextConfig()), place.recorder)


def test_a_change_of_method_is_another_run_and_a_change_of_passes_is_not(place: Place) -> None:
    config = config_of(place, "lora")
    first = finetune.run(config, place.recorder)
    packed = dataclasses.replace(config.training, packing=True, micro_batch_size=2)
    again = finetune.run(dataclasses.replace(config, training=packed), place.recorder)
    assert again.reused
    assert again.run_id == first.run_id
    wider = dataclasses.replace(config.training, lora_targets="all")
    assert not finetune.run(dataclasses.replace(config, training=wider), place.recorder).reused


def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_given: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(finetune, "lent_model", loaded)
    model = dataclasses.replace(place.model, quantization="nf4")
    config = finetune.FinetuneConfig(data=place.data, model=model, tracking=place.tracking)
    with pytest.raises(InputError, match=r"model\.quantization must leave attention alone when it is trained whole"):
        finetune.run(config, place.recorder)
