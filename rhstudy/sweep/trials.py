"""The complete trials of a sweep as candidates: recipe, corner and the runs that scored its heads."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.trial import FrozenTrial, TrialState

from rhstudy.errors import require
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.front import recipe_of
from rhstudy.sweep.record import TRIAL_RUN
from rhstudy.sweep.selection import Candidate
from rhstudy.sweep.storage import OpenSweep
from rhstudy.tracking.recorder import Recorder


def complete_trials(sweep: OpenSweep, config: SweepConfig, recorder: Recorder) -> Iterator[Candidate]:
    """Every complete trial that has a run, in their order; signals are not filled in.

    Raises:
        InputError: a trial's run is in another tracking store.
    """
    for trial in sweep.study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE and TRIAL_RUN in trial.user_attrs:
            yield _candidate(trial, config, recorder)


def _candidate(trial: FrozenTrial, config: SweepConfig, recorder: Recorder) -> Candidate:
    tags = recorder.get_run(str(trial.user_attrs[TRIAL_RUN])).tags
    names = {seed: f"rhstudy.run.detect.seed{seed}" for seed in config.seeds}
    missing = [name for name in names.values() if name not in tags]
    remedy = "Give the tracking store in which the sweep was recorded"
    require(not missing, f"trial {trial.number}", "name its detect runs", f"<no tag {', '.join(missing)}>", remedy)
    knobs, budget = recipe_of(config, trial.params)
    return Candidate(
        number=trial.number,
        knobs=knobs,
        budget=budget,
        corner=str(trial.user_attrs.get("corner", "")),
        detect_runs={seed: tags[name] for seed, name in names.items()},
    )
