"""Planted truth through the whole stage: the copying head is necessary in every mode, no matched draw is; and a stage
that is killed at any result goes on there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from planted import FIRST_TOKEN, copying_model

from rhstudy.configs import ModelConfig, TrackingConfig
from rhstudy.data.align import placed_needle
from rhstudy.data.encode import Encoder
from rhstudy.data.examples_file import write_examples
from rhstudy.errors import InputError
from rhstudy.interventions.conditions import KnockoutSettings
from rhstudy.interventions.knockout import KnockoutMode
from rhstudy.stages import detect, intervene
from rhstudy.stages.partial import PartialRows
from rhstudy.tracking.artifacts import seal_artifacts
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.types import Example, Span

MODES = get_args(KnockoutMode)
SETTINGS = KnockoutSettings(
    doses=(1, 2), num_draws=5, primary_dose=1, num_primary_draws=6, single_heads=8, num_behaviour_draws=2, modes=MODES
)


def planted_prompt(index: int, tokenizer: Any) -> Example:
    """As `planted.planted_example`, in text: filler lines, the needle a line among them, 9, answer 10 11 12."""
    filler = [" ".join(f"w{20 + (place * 7 + index + row) % 13}" for place in range(5)) for row in range(6)]
    place = index % 6
    before = f"w{FIRST_TOKEN}\n\n" + "".join(f"{line}\n" for line in filler[:place])
    needle = "w8 w9 w10 w11 w12"
    middle = before + needle + "".join(f"\n{line}" for line in filler[place:])
    prompt = f"{middle}\n\nw9"
    encoder = Encoder(tokenizer)
    ids, offsets = encoder.prompt(prompt)
    at = len(before)
    answer = Span(at + len("w8 w9 "), at + len(needle))
    return Example(
        example_id=f"eval-planted-{index}" if index < 4 else f"score-planted-{index}",
        task="mdqa",
        recipe="real",
        question="?",
        answers=("w10 w11 w12",),
        prompt=prompt,
        answer=" w10 w11 w12",
        needles=(placed_needle(prompt, offsets, Span(at, at + len(needle)), answer),),
        prompt_ids=tuple(ids),
        answer_ids=tuple(encoder.answer_ids(prompt, " w10 w11 w12")),
        metadata={"haystack_char_span": [len(f"w{FIRST_TOKEN}\n\n"), len(middle)], "cluster": f"row-{index // 2}"},
    )


@dataclasses.dataclass(frozen=True)
class Planted:
    """A store with the planted model's head scores, and the config of a knockout."""

    recorder: FolderRecorder
    config: intervene.InterveneConfig

    def run(self, recorder: FolderRecorder | None = None, **changes: Any) -> list[dict[str, Any]]:
        done = intervene.run(dataclasses.replace(self.config, **changes), recorder or self.recorder)
        return [json.loads(line) for line in done.artifacts.file("outcomes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    loaded = copying_model()
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for part, indices in (("eval", range(4)), ("score", range(4, 8))):
        write_examples(
            folder / "data" / f"{part}.jsonl", [planted_prompt(index, loaded.tokenizer) for index in indices]
        )
    data = str(seal_artifacts(folder / "data", "make-data").path)
    recorder = FolderRecorder(folder / "runs")
    tracking = TrackingConfig(recorder="folder", work_dir=str(folder / "work"))
    shared: dict[str, Any] = {
        "data": data,
        "model": ModelConfig(name=str(folder / "model"), device="cpu", cache_dir=str(folder / "cache")),
        "tracking": tracking,
    }
    heads = detect.run(detect.DetectConfig(**shared), recorder).run_id
    return Planted(recorder, intervene.InterveneConfig(heads=heads, knockout=SETTINGS, **shared))


@pytest.fixture(scope="module")
def outcomes(planted: Planted) -> list[dict[str, Any]]:
    return planted.run()


def marks(rows: list[dict[str, Any]], name: str, **wanted: Any) -> list[Any]:
    return [row[name] for row in rows if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.parametrize("mode", MODES)
def test_the_copying_head_is_necessary_in_every_mode_and_no_draw_is(outcomes: list[dict[str, Any]], mode: str) -> None:
    assert marks(outcomes, "f1", kind="baseline") == [1] * 4
    for dose, num_draws in ((1, 6), (2, 5)):
        assert max(marks(outcomes, "f1", kind="top", mode=mode, dose=dose)) == 0
        drawn = marks(outcomes, "f1", kind="random", mode=mode, dose=dose)
        assert drawn == [1] * 4 * num_draws
        assert marks(outcomes, "f1", kind="lowest", mode=mode, dose=dose) == [1] * 4
    before = np.mean(marks(outcomes, "gold_nll", kind="baseline"))
    assert np.mean(marks(outcomes, "gold_nll", kind="top", mode=mode)) > before + 1
    if mode == "block_needle":
        assert max(marks(outcomes, "f1", kind="all_heads")) == 0


def test_one_head_alone_is_the_copying_one(outcomes: list[dict[str, Any]]) -> None:
    lost = {row["condition"] for row in outcomes if row["kind"] == "single" and row["f1"] < 1}
    assert lost == {"single_0_0"}
    assert len({row["condition"] for row in outcomes if row["kind"] == "single"}) == 8


def test_control_behaviours_are_measured_where_they_were_asked_for(outcomes: list[dict[str, Any]]) -> None:
    for row in outcomes:
        few = row["kind"] == "random" and row["draw"] < 2
        shown = row["kind"] == "baseline" or (row["dose"] == 1 and (row["kind"] == "top" or few))
        assert (row["short_f1"] is not None) == (row["short_nll"] is not None) == shown
        assert (row["text_nll"] is not None) == (shown and row["mode"] != "block_needle")
    assert marks(outcomes, "short_f1", kind="baseline") == [1] * 4
    assert set(marks(outcomes, "short_f1", kind="top", mode="zero_output", dose=1)) == {0}
    # Without the copying head every logit is 0; the random heads' outputs go nowhere.
    assert marks(outcomes, "text_nll", condition="top1") == pytest.approx([np.log(50)] * 4)
    assert marks(outcomes, "text_nll", condition="random1_0") == pytest.approx(
        marks(outcomes, "text_nll", kind="baseline")
    )


def test_rows_carry_what_the_statistics_group_by(outcomes: list[dict[str, Any]]) -> None:
    assert marks(outcomes, "cluster", kind="baseline") == ["row-0", "row-0", "row-1", "row-1"]
    ways = {(row["mode"], row["scope"]) for row in outcomes if row["kind"] != "baseline"}
    assert ways == {(mode, "decode") for mode in MODES}
    assert {(row["mode"], row["scope"], row["dose"]) for row in outcomes if row["kind"] == "baseline"} == {
        (None, None, 0)
    }


class StopError(Exception):
    """Where a kill would have ended the stage."""


@pytest.mark.parametrize("stop_after", [3, 60])
def test_a_stage_stopped_at_any_result_goes_on_there(
    planted: Planted, stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, kept = PartialRows.add, list[str]()

    def counted(self: PartialRows, rows: Any) -> None:
        if len(kept) == stop_after:
            raise StopError
        add(self, rows)
        kept.append("a condition of a batch")

    seed = 100 + stop_after  # a stage of its own: reused it would measure nothing
    with monkeypatch.context() as patch:
        patch.setattr(PartialRows, "add", counted)
        with pytest.raises(StopError):
            planted.run(seed=seed)
    measured = list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(PartialRows, "add", lambda self, rows: (measured.append("again"), add(self, rows)))
        resumed = planted.run(seed=seed)
    whole = list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(PartialRows, "add", lambda self, rows: (whole.append("all"), add(self, rows)))
        heads = str(planted.recorder.artifact_path(planted.config.heads))
        unbroken = planted.run(FolderRecorder(tmp_path), seed=seed, heads=heads)
    assert len(measured) == len(whole) - stop_after
    assert resumed == unbroken


def test_a_mode_that_needs_means_says_what_to_give(planted: Planted, tmp_path: Path) -> None:
    for part in ("eval",):
        tmp_path.joinpath(f"{part}.jsonl").write_bytes(Path(planted.config.data, f"{part}.jsonl").read_bytes())
    seal_artifacts(tmp_path, "make-data")
    wanted = r"score_data must hold the part score for mode mean_output, got .*\. Give score_data"
    with pytest.raises(InputError, match=wanted):
        planted.run(data=str(tmp_path))


def test_score_rows_that_are_tested_on_are_no_means(planted: Planted) -> None:
    def rows(settings: KnockoutSettings) -> Iterator[Any]:
        yield from planted.run(knockout=settings, data=planted.config.data, score_data=planted.config.data)

    few = dataclasses.replace(SETTINGS, modes=("mean_output",), single_heads=0, behaviours=())
    found = list(rows(few))
    assert {row["mode"] for row in found} == {None, "mean_output"}
    assert all(row["short_f1"] is None for row in found)
