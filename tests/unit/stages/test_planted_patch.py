"""Planted truth through the stage: one head closes the whole gap, its controls nothing; broken off and gone on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from planted import copying_model, planted_example

from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.interventions.patch_plan import PatchSettings, plan_patches
from rhstudy.stages import patch
from rhstudy.stages.partial import PartialRows
from rhstudy.stages.patch import PatchConfig, PatchedPair
from rhstudy.stats.gap_share import Bootstrap, patching_effects
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.stage_run import StageRun
from rhstudy.types import HeadSet

CONFIG = PatchConfig(
    data="data", heads="heads", donor_heads="heads", answering=AnsweringSettings(max_new_tokens=5, batch_size=2)
)
EXAMPLES = [planted_example(index) for index in range(5)]


def head_set(*heads: int) -> HeadSet:
    chosen = frozenset((0, head) for head in heads)
    return HeadSet(heads=chosen, heads_per_layer=(8,), rule="planted", model="m", data_digest="d", seed=0)


@pytest.fixture(scope="module")
def pair() -> PatchedPair:
    """Head 0 copies in the donor and finds nothing in the recipient; head 1 looks at one place in both."""
    donor, recipient = copying_model(), copying_model()
    with torch.no_grad():
        recipient.model.model.layers[0].self_attn.q_proj.weight[:96] = 0
    plan = plan_patches(head_set(0, 1), head_set(1), PatchSettings(num_draws=3), seed=0)
    return PatchedPair(donor=donor, recipient=dataclasses.replace(recipient, digest="other"), plan=plan)


def measured(pair: PatchedPair, folder: Path) -> list[dict[str, object]]:
    (folder / "work").mkdir(exist_ok=True)
    run = StageRun(run_id="r", output_dir=folder, work_dir=folder / "work", recorder=FolderRecorder(folder / "runs"))
    rows, seconds = patch._measure(CONFIG, pair, EXAMPLES, run)
    assert seconds > 0
    return rows


def test_the_planted_head_closes_the_gap_and_no_control_does(pair: PatchedPair, tmp_path: Path) -> None:
    rows = measured(pair, tmp_path)
    assert len(rows) == len(EXAMPLES) * len(pair.plan.conditions)
    sets = [item.facts() for item in pair.plan.sets]
    how = Bootstrap(level=0.95, num_resamples=200, seed=0)
    found = patching_effects(rows, sets, CONFIG.patching.positions, how)
    assert found["models"]["exact_match"]["donor"]["estimate"] == 1
    assert found["models"]["exact_match"]["recipient"]["estimate"] == 0
    for effect in found["patches"]:
        name, metric = effect["of_set"], effect["gold_logp"]
        expected = 0 if name == "intersection" else 1  # only head 1 is in both
        assert effect["exact_match"]["patched"]["estimate"] == expected, name
        gap = found["models"]["gold_logp"]["gap"]["estimate"]
        assert gap > 1
        assert metric["change"]["estimate"] == pytest.approx(expected * gap, abs=1e-3), name
        assert metric["share"]["reason"].startswith("the gap between donor and recipient has no interval: every"), name
        if name != "all_heads":
            assert metric["random_change"]["estimate"] == pytest.approx(0, abs=1e-5)


def test_what_was_broken_off_goes_on_to_the_same_rows(
    pair: PatchedPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole").mkdir()
    whole, add, calls = measured(pair, tmp_path / "whole"), PartialRows.add, []

    def breaking(self: PartialRows, rows: list[dict[str, object]]) -> None:
        if len(calls) == 30:
            raise KeyboardInterrupt
        calls.append(len(rows))
        add(self, rows)

    monkeypatch.setattr(PartialRows, "add", breaking)
    with pytest.raises(KeyboardInterrupt):
        measured(pair, tmp_path / "broken")
    monkeypatch.setattr(PartialRows, "add", add)
    kept = (tmp_path / "broken" / "work" / "patches.jsonl").read_bytes()
    assert kept.count(b"\n") == sum(calls) < len(whole)
    assert measured(pair, tmp_path / "broken") == whole
    assert (tmp_path / "broken" / "work" / "patches.jsonl").read_bytes().startswith(kept)
