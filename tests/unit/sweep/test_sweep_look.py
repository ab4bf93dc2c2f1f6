"""A check opens the sweep that is there, as it was begun, and is none of its workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fakes import FakeSweep, fake_sweep

from rhstudy.errors import InputError
from rhstudy.sweep.run import sweep_inputs
from rhstudy.sweep.storage import WORKERS, look
from rhstudy.sweep.trials import complete_trials


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_looking_at_a_sweep_changes_nothing(world: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"fake.{kind}"
    sweep = fake_sweep(world, tmp_path, num_trials=2, storage=f"sqlite:///{path}" if kind == "sqlite" else str(path))
    inputs = sweep_inputs(sweep.config, sweep.recorder)
    with pytest.raises(InputError, match=r"storage must hold the sweep fake, got .*Run `rhstudy sweep` first"):
        look(sweep.config, inputs)
    assert kind == "sqlite" or not path.exists()
    sweep()
    before = dict(look(sweep.config, inputs).study.user_attrs)
    found = look(sweep.config, inputs)
    assert found.study.user_attrs == before
    assert before[WORKERS] == 1
    assert len(found.study.get_trials()) == 2
    with pytest.raises(InputError, match=r"search file must be the one that the sweep began with.*\+seeds = \[2\]"):
        look(dataclasses.replace(sweep.config, seeds=(2,)), inputs)


def test_what_is_checked_is_no_part_of_the_sweep(sweep: FakeSweep) -> None:
    sweep(num_trials=1)
    asked = dataclasses.replace(sweep.config.validation, top_k=7)
    inputs = sweep_inputs(sweep.config, sweep.recorder)
    assert look(dataclasses.replace(sweep.config, validation=asked), inputs).study.user_attrs


def test_trials_without_head_scores_are_named(sweep: FakeSweep) -> None:
    sweep(num_trials=1)
    found = look(sweep.config, sweep_inputs(sweep.config, sweep.recorder))
    with pytest.raises(InputError, match=r"trial 0 must name its detect runs, got .* rhstudy\.run\.detect\.seed1"):
        list(complete_trials(found, sweep.config, sweep.recorder))
