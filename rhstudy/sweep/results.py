"""What a sweep found: the table of its trials, the best recipe as a study, how much each knob mattered."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from rhstudy.sweep.claims import ERROR, SECONDS, num_counted
from rhstudy.sweep.config import SweepConfig, SweepResult, budget_dimensions, dimensions
from rhstudy.sweep.course import INFEASIBLE
from rhstudy.sweep.figures import FIGURES, draw_figures, figure_lines
from rhstudy.sweep.front import BEST, WITHIN, best_trials, cheapest_within, front_studies
from rhstudy.sweep.importance import Importance, importance_csv, importance_line, importances
from rhstudy.sweep.objectives import DIRECTIONS, SCORED
from rhstudy.sweep.record import TRIAL_RUN
from rhstudy.sweep.storage import OpenSweep
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import numbers_of

ARTIFACTS, TABLE, IMPORTANCE = "sweep", "trials.csv", "importance.csv"
NUM_SHOWN = 10
COST = "gpu_seconds"
PARTS = ("make_data_s", "finetune_s", "checkpoints_s", "detect_s", "load_s")
"""What the parts of a trial cost, as its user attributes; scoring at checkpoints and loading are within the others."""


def conclude(config: SweepConfig, recorder: Recorder, sweep: OpenSweep, run_id: str) -> SweepResult:
    """Write table, importance, figures and best recipe into the sweep's run, and say what was found."""
    trials = sweep.study.get_trials(deepcopy=False)
    found, front = importances(sweep.study, config.goals), best_trials(sweep.study)
    space = (*dimensions(config), *budget_dimensions(config))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / TABLE).write_text(table_csv(trials, config), encoding="utf-8")
        for file, text in front_studies(config, front).items():
            (folder / file).write_text(text, encoding="utf-8")
        if any(one.shares for one in found):
            (folder / IMPORTANCE).write_text(importance_csv(found), encoding="utf-8")
        figures = draw_figures(folder / FIGURES, sweep.study, space, config.goals, found)
        recorder.log_artifacts(run_id, folder, ARTIFACTS)
    facts = _facts(config, sweep, trials, front, run_id)
    recorder.log_metrics(run_id, numbers_of(facts))
    if "best_trial" in facts:
        facts["best_recipe"] = str(recorder.artifact_path(run_id, f"{ARTIFACTS}/{BEST}"))
    first = found[0]
    facts["importance"] = {"evaluator": first.evaluator, "n": first.n, **first.shares} if first.shares else None
    facts["figures"] = [name for name, reason in figures.items() if not reason]
    lines = [*_lines(config, trials, found, facts), *figure_lines(f"{ARTIFACTS}/{FIGURES}", figures)]
    return SweepResult(run_id=run_id, facts=facts, text="\n".join(lines))


def _facts(
    config: SweepConfig, sweep: OpenSweep, trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial], run_id: str
) -> dict[str, Any]:
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
        "num_infeasible": sum(INFEASIBLE in trial.user_attrs for trial in trials),
        "objective": ", ".join(config.goals),
    }
    if front:
        best = front[0]
        facts |= {"best_value": best.values[0], "best_trial": best.number}
        facts["best_run_id"] = best.user_attrs.get(TRIAL_RUN)
    cheap = cheapest_within(sweep.study, COST) if config.goals[0] in SCORED else None
    if cheap:
        facts["cheap_trial"], facts["cheap_value"] = cheap.number, cheap.values[0]
        facts["cheap_gpu_seconds"] = cheap.user_attrs[COST]
    if front and config.objectives:
        facts["front"] = [{"trial": one.number, **dict(zip(config.goals, one.values, strict=True))} for one in front]
    return facts


def table_csv(trials: Sequence[FrozenTrial], config: SweepConfig) -> str:
    """A row a trial: number, state, values, knobs, what else was measured, run, error."""
    knobs = [dimension.name for dimension in (*dimensions(config), *budget_dimensions(config))]
    measured = (*DIRECTIONS, "num_retrieval_heads", *PARTS, INFEASIBLE, TRIAL_RUN, ERROR)
    noted = ("recipe", "corner", SECONDS, *measured)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", "objective", *knobs, *noted])
    for trial in trials:
        value = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
        found = [trial.user_attrs.get(name, "") for name in noted]
        writer.writerow(
            [trial.number, trial.state.name, value, *(trial.params.get(knob, "") for knob in knobs), *found]
        )
    return stream.getvalue()


def _lines(
    config: SweepConfig, trials: Sequence[FrozenTrial], importances: Sequence[Importance], facts: Mapping[str, Any]
) -> list[str]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    front = {item["trial"] for item in facts.get("front", ())}
    rows: list[tuple[str, ...]] = [("trial", *config.goals, "notes", "s", "recipe")]
    rows += [_row(trial, front) for trial in _ranked(config, complete, front)[:NUM_SHOWN]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = (
        f"{facts['num_trials']} trials: {facts['num_complete']} complete, {facts['num_pruned']} pruned, "
        f"{facts['num_failed']} failed, {facts['num_running']} running elsewhere; {facts['num_lost_workers']} tries "
        f"lost with their workers; {facts['trial_seconds']:.0f} s on trials"
    )
    if config.constraints:
        counts += f"; {facts['num_infeasible']} infeasible"
    if "cheap_trial" in facts:
        lines += ["", _cheap_line(config, facts)]
    if "best_trial" not in facts:
        lines += ["", _no_best_line(config, trials)]
    return [*lines, "", *map(importance_line, importances), *_cost_lines(trials), counts]


def _cheap_line(config: SweepConfig, facts: Mapping[str, Any]) -> str:
    return (
        f"cheapest trial within {WITHIN:.0%} of the best: {facts['cheap_trial']}, {config.goals[0]} "
        f"{facts['cheap_value']:.4f}, {COST} {facts['cheap_gpu_seconds']:.1f}"
    )


def _no_best_line(config: SweepConfig, trials: Sequence[FrozenTrial]) -> str:
    """Why there is no best recipe, and what the tried ones broke."""
    broken = [trial.user_attrs[INFEASIBLE] for trial in trials if INFEASIBLE in trial.user_attrs]
    if not broken:
        return "no best recipe: no trial is complete"
    limits = "; ".join(f"{item.quantity} least {item.least}, most {item.most}" for item in config.constraints)
    return f"no best recipe: no complete trial keeps to the constraints ({limits}); the first tried has {broken[0]}"


def _ranked(config: SweepConfig, complete: Sequence[FrozenTrial], front: Collection[int]) -> list[FrozenTrial]:
    """Best first: the front, others that keep to the constraints, infeasible ones; each by the first objective."""
    sign = -1.0 if DIRECTIONS[config.goals[0]] == "maximize" else 1.0

    def rank(trial: FrozenTrial) -> tuple[bool, bool, float, int]:
        return trial.number not in front, INFEASIBLE in trial.user_attrs, sign * trial.values[0], trial.number

    return sorted(complete, key=rank)


def _cost_lines(trials: Sequence[FrozenTrial]) -> list[str]:
    """What the parts of a trial cost on average over the trials that came to them."""
    found = {
        part: [float(trial.user_attrs[part]) for trial in trials if part in trial.user_attrs]
        for part in (*PARTS, SECONDS)
    }
    shown = [
        f"{part} {sum(seconds) / len(seconds):.2f} (n = {len(seconds)})" for part, seconds in found.items() if seconds
    ]
    return [f"mean seconds of a trial, reused stages included: {', '.join(shown)}"] if shown else []


def _row(trial: FrozenTrial, front: Collection[int]) -> tuple[str, ...]:
    values = (
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )
    seconds = float(trial.user_attrs.get(SECONDS, 0.0))
    notes = [str(trial.user_attrs.get("corner", ""))]
    if trial.number in front:
        notes.append("front")
    if INFEASIBLE in trial.user_attrs:
        notes.append(f"infeasible: {trial.user_attrs[INFEASIBLE]}")
    found = [f"{value:.6g}" if abs(value) >= 1000 else f"{value:.4f}" for value in trial.values]
    return str(trial.number), *found, " ".join(filter(None, notes)), f"{seconds:.1f}", " ".join(values)
