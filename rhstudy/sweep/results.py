"""What a sweep found: the table of its trials, the best recipe as a study, how much each knob mattered."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rhstudy.configs import from_mapping, plain
from rhstudy.data.knobs import Knobs, preset
from rhstudy.data.relevance import recipe_digest
from rhstudy.plan import StudyConfig
from rhstudy.sweep.claims import ERROR, SECONDS, num_counted
from rhstudy.sweep.config import SweepConfig, SweepResult, dimensions
from rhstudy.sweep.figures import FIGURES, draw_figures, figure_lines
from rhstudy.sweep.importance import Importance, importance_csv, importance_line, importances
from rhstudy.sweep.record import TRIAL_RUN
from rhstudy.sweep.space import Suggests, suggest
from rhstudy.sweep.storage import OpenSweep
from rhstudy.tracking.config_files import toml_text
from rhstudy.tracking.recorder import Recorder

ARTIFACTS, BEST, TABLE, IMPORTANCE = "sweep", "best.toml", "trials.csv", "importance.csv"
NUM_SHOWN = 10


def conclude(config: SweepConfig, recorder: Recorder, sweep: OpenSweep, run_id: str) -> SweepResult:
    """Write table, importance, figures and best recipe into the sweep's run, and say what was found."""
    trials = sweep.study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    objectives = (config.objective,)
    found = importances(sweep.study, objectives)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / TABLE).write_text(table_csv(trials, config), encoding="utf-8")
        if complete:
            (folder / BEST).write_text(best_study(config, best_knobs(config, sweep)), encoding="utf-8")
        if any(one.shares for one in found):
            (folder / IMPORTANCE).write_text(importance_csv(found), encoding="utf-8")
        figures = draw_figures(folder / FIGURES, sweep.study, dimensions(config), objectives, found)
        recorder.log_artifacts(run_id, folder, ARTIFACTS)
    facts = _facts(config, sweep, trials, run_id)
    recorder.log_metrics(run_id, {key: float(value) for key, value in facts.items() if _is_number(value)})
    if complete:
        facts["best_recipe"] = str(recorder.artifact_path(run_id, f"{ARTIFACTS}/{BEST}"))
    first = found[0]
    facts["importance"] = {"evaluator": first.evaluator, "n": first.n, **first.shares} if first.shares else None
    facts["figures"] = [name for name, reason in figures.items() if not reason]
    lines = [*_lines(config, trials, found, facts), *figure_lines(f"{ARTIFACTS}/{FIGURES}", figures)]
    return SweepResult(run_id=run_id, facts=facts, text="\n".join(lines))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _facts(config: SweepConfig, sweep: OpenSweep, trials: Sequence[FrozenTrial], run_id: str) -> dict[str, Any]:
    states = Counter(trial.state.name for trial in trials)
    failed = sum(ERROR in trial.user_attrs for trial in trials if trial.state == TrialState.FAIL)
    facts: dict[str, Any] = {
        "run_id": run_id,
        "num_trials": num_counted(list(trials)),
        "num_complete": states["COMPLETE"],
        "num_pruned": states["PRUNED"],
        "num_failed": failed,
        "num_lost_workers": states["FAIL"] - failed,
        "num_running": states["RUNNING"],
        "trial_seconds": sum(float(trial.user_attrs.get(SECONDS, 0.0)) for trial in trials),
        "objective": config.objective,
    }
    if states["COMPLETE"]:
        best = sweep.study.best_trial
        facts |= {"best_value": best.value, "best_trial": best.number, "best_run_id": best.user_attrs.get(TRIAL_RUN)}
    return facts


def best_knobs(config: SweepConfig, sweep: OpenSweep) -> Knobs:
    """The recipe of the best trial."""
    best: Suggests = optuna.trial.FixedTrial(sweep.study.best_trial.params)
    return suggest(best, dimensions(config), config.base, config.data.task)


def best_study(config: SweepConfig, knobs: Knobs) -> str:
    """The study of the reference's recipe and `knobs`, as TOML that `rhstudy study` takes as it is.

    Data, model, training and scoring are the sweep's, with eval rows as `data.num_eval` says; the seeds are the
    sweep's.
    """
    task = config.data.task
    reference = preset(config.reference_recipe, task)
    values: dict[str, Any] = {
        "name": f"{config.name}-best",
        "recipes": [config.reference_recipe],
        "custom_recipes": [] if recipe_digest(knobs, task) == recipe_digest(reference, task) else [plain(knobs)],
        "reference_recipe": config.reference_recipe,
        "seeds": sorted({config.reference_seed, *config.seeds}),
        "ceiling_seeds": [],
        **{key: plain(getattr(config, key)) for key in ("data", "model", "context", "training", "scoring")},
    }
    text = toml_text(values)
    from_mapping(StudyConfig, values, where=BEST)
    return text


def table_csv(trials: Sequence[FrozenTrial], config: SweepConfig) -> str:
    """A row a trial: number, state, value, knobs, what else was measured, run, error."""
    knobs = [dimension.name for dimension in dimensions(config)]
    own = ("recipe", "corner", SECONDS, "head_recall", "weighted_head_recall", "real_nll", "num_retrieval_heads")
    names = ("make_data_s", "finetune_s", "detect_s", TRIAL_RUN, ERROR)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["trial", "state", config.objective if config.objective not in own else "objective", *knobs, *own, *names]
    )
    for trial in trials:
        value = trial.value if trial.state == TrialState.COMPLETE else None
        measured = [trial.user_attrs.get(name, "") for name in (*own, *names)]
        writer.writerow(
            [trial.number, trial.state.name, value, *(trial.params.get(knob, "") for knob in knobs), *measured]
        )
    return stream.getvalue()


def _lines(
    config: SweepConfig, trials: Sequence[FrozenTrial], importances: Sequence[Importance], facts: Mapping[str, Any]
) -> list[str]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ranked = sorted(complete, key=lambda trial: -(trial.value or 0.0))[:NUM_SHOWN]
    rows: list[tuple[str, ...]] = [("trial", config.objective, "corner", "s", "recipe")]
    rows += [_row(trial) for trial in ranked]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = (
        f"{facts['num_trials']} trials: {facts['num_complete']} complete, {facts['num_pruned']} pruned, "
        f"{facts['num_failed']} failed, {facts['num_running']} running elsewhere; {facts['num_lost_workers']} tries "
        f"lost with their workers; {facts['trial_seconds']:.0f} s on trials"
    )
    return [*lines, "", *map(importance_line, importances), counts]


def _row(trial: FrozenTrial) -> tuple[str, ...]:
    values = (
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )
    seconds = float(trial.user_attrs.get(SECONDS, 0.0))
    corner = str(trial.user_attrs.get("corner", ""))
    return str(trial.number), f"{trial.value:.4f}", corner, f"{seconds:.1f}", " ".join(values)
