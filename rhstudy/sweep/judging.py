"""From what was measured to what is said of each signal: F1 of its choice, regret, rank correlation, rows and seconds.

Everything here is a function of `Evidence`; nothing is read or run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rhstudy.configs import plain
from rhstudy.shapes import Float
from rhstudy.stats.correlation import correlate, detectable
from rhstudy.stats.intervals import mean_interval
from rhstudy.stats.regret import cross_fitted_regret, regret
from rhstudy.stats.reliability import RankReliability, rank_reliability
from rhstudy.stats.signal_costs import combination, cost_at, known_rows, saved_seconds
from rhstudy.stats.statistic import Statistic, null
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.selection import RECALLS, SIGNALS, Candidate, Choice
from rhstudy.sweep.signals import RowSignals, SeedScores, recalls
from rhstudy.types import Estimate, HeadScores

SCHEMA_VERSION = 2

SeedF1 = Mapping[int, Mapping[str, float]]
"""F1 of one recipe: training seed -> independent eval row -> F1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Recorded seconds, a value a model; NaN where one is not known.

    Attributes:
        training: of make-data and finetune.
        score_row: of `detect`, per score row; of the same models in the same order.
        eval_row: of `evaluate`, per eval row.
        num_score_rows: rows that a trial scored.
        num_eval_rows: rows that an evaluation answered.
    """

    training: Sequence[float]
    score_row: Sequence[float]
    eval_row: Sequence[float]
    num_score_rows: int
    num_eval_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was measured.

    Attributes:
        candidates: complete trials, one a recipe.
        scores: trial -> head scores by seed.
        reference: scores of the real-data model.
        small_references: distinct real rows (0 = untuned) -> its scores, or why there are none.
        choices: what each way of choosing named.
        f1: evaluated trials.
        beside: further models that were evaluated, never points: the reference, the untuned model.
        seconds: recorded times.
        left_out: trials and recipes that could not be used, each with the reason.
    """

    candidates: Sequence[Candidate]
    scores: Mapping[int, SeedScores]
    reference: HeadScores
    small_references: Mapping[int, HeadScores | str]
    choices: Sequence[Choice]
    f1: Mapping[int, SeedF1]
    beside: Mapping[str, SeedF1]
    seconds: Seconds
    left_out: Sequence[str] = ()


@dataclass(slots=True)
class _Judge:
    """The evaluated trials in order, and their F1 as arrays over the rows that all models have."""

    evidence: Evidence
    config: SweepConfig
    trials: list[int] = field(init=False)
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.trials = sorted(self.evidence.f1)
        models = [rows for seeds in self.evidence.f1.values() for rows in seeds.values()]
        self.names = sorted(set.intersection(*(set(rows) for rows in models))) if models else []

    def rows(self, seeds: SeedF1, only: Sequence[int] = ()) -> Float[np.ndarray, "seeds rows"]:
        """F1 of one recipe by seed (of `only`, if given) and row."""
        return np.array(
            [[rows[name] for name in self.names] for seed, rows in seeds.items() if not only or seed in only]
        )

    def all_rows(self, only: Sequence[int] = ()) -> list[Float[np.ndarray, "seeds rows"]]:
        """`rows` of every evaluated trial."""
        return [self.rows(self.evidence.f1[trial], only) for trial in self.trials]

    @property
    def means(self) -> dict[int, float]:
        """Trial -> F1, the mean over rows and seeds."""
        return {trial: float(rows.mean()) for trial, rows in zip(self.trials, self.all_rows(), strict=True)}


def judge(evidence: Evidence, config: SweepConfig) -> dict[str, Any]:
    """JSON-ready findings; null with its reason where undefined."""
    known = _Judge(evidence, config)
    signals, own = _signals(known)
    return {
        "schema_version": SCHEMA_VERSION,
        "sweep": config.name,
        "task": config.data.task,
        "model": config.model.name,
        "num_candidates": len(evidence.candidates),
        "num_evaluated": len(known.trials),
        "num_eval_rows": len(known.names),
        "num_score_rows": evidence.seconds.num_score_rows,
        "level": config.validation.statistics.level,
        "reliability": config.validation.reliability,
        "recipes": _recipes(known),
        "beside": {name: _f1_facts(known, seeds) for name, seeds in evidence.beside.items()},
        "ways": [_way(known, choice) for choice in evidence.choices],
        "signals": signals,
        "f1": own,
        "references": [_reference(known, size, item) for size, item in evidence.small_references.items()],
        "seconds": {name: value.json() for name, value in _times(known).items()},
        "left_out": list(evidence.left_out),
    }


def _recipes(known: _Judge) -> list[dict[str, Any]]:
    by_number = {item.number: item for item in known.evidence.candidates}
    found = []
    for trial in known.trials:
        candidate = by_number[trial]
        chosen = [choice.way for choice in known.evidence.choices if trial in choice.numbers]
        found.append({
            "trial": trial,
            "recipe": candidate.name,
            "corner": candidate.corner,
            "knobs": plain(candidate.knobs),
            "chosen_by": chosen,
            **_f1_facts(known, known.evidence.f1[trial]),
            "signals": {name: null(value.value) for name, value in candidate.signals.items()},
            "reasons": {name: value.reason for name, value in candidate.signals.items() if value.reason},
        })  # fmt: skip
    return sorted(found, key=lambda row: (-(row["f1"]["estimate"] or 0.0), row["trial"]))


def _f1_facts(known: _Judge, seeds: SeedF1) -> dict[str, Any]:
    names = [name for name in known.names if all(name in rows for rows in seeds.values())]
    values = np.array([[rows[name] for name in names] for rows in seeds.values()])
    whole = mean_interval(list(values.mean(axis=0)) if values.size else [], known.config.validation.statistics.level)
    by_seed = {str(seed): null(_mean(list(row))) for seed, row in zip(seeds, values, strict=True)}
    return {"f1": whole.json(), "f1_by_seed": by_seed}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _way(known: _Judge, choice: Choice) -> dict[str, Any]:
    settings, root = known.config.validation.statistics, known.config.validation.seed
    place = {trial: index for index, trial in enumerate(known.trials)}
    chosen = [place[number] for number in choice.chosen if number in place]
    every = [place[number] for number in choice.numbers if number in place]
    rows, means = known.all_rows(), known.means
    fitted = cross_fitted_regret(rows, chosen, seed=root)
    return {
        "way": choice.way,
        "trials": list(choice.numbers),
        "chosen": [known.trials[index] for index in chosen],
        "note": choice.note,
        "f1": null(_mean([means[known.trials[index]] for index in chosen])),
        "regret": regret(rows, chosen, seed=root, settings=settings).json(),
        "regret_best_of": regret(rows, every, best_of=True, seed=root, settings=settings).json(),
        "cross_fitted_regret": null(fitted.value),
        "cross_fitted_reason": fitted.reason,
    }


def _signals(known: _Judge) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of each signal, and of F1 itself."""
    evidence = known.evidence
    judged = RowSignals([evidence.scores[trial] for trial in known.trials], evidence.reference, known.config.scoring)
    all_numbers = [item.number for item in evidence.candidates]
    whole = RowSignals([evidence.scores[number] for number in all_numbers], evidence.reference, known.config.scoring)
    f1_rows = np.array([rows.mean(axis=0) for rows in known.all_rows(known.config.seeds)])
    own = _reliability(known, lambda rows: f1_rows[:, rows].mean(axis=1), len(known.names))
    seconds, found = evidence.seconds, dict[str, Any]()
    used, used_f1 = known_rows(seconds.num_score_rows), known_rows(seconds.num_eval_rows)
    for name in SIGNALS:
        reliable = _reliability(known, _of(judged, name), judged.num_rows)
        same = len(all_numbers) == len(known.trials)
        over_all = reliable if same else _reliability(known, _of(whole, name), whole.num_rows)
        found[name] = {
            "correlation": _with_f1(known, {item.number: item.signals[name] for item in evidence.candidates}).json(),
            "reliability": reliable.json(),
            "reliability_all_trials": over_all.json(),
            "cost_s": _signal_cost(known, reliable.needed).json(),
            "saved_s": {
                "as_run": _saved(known, used, used_f1, name),
                "at_reliability": _saved(known, reliable.needed, own.needed, name),
            },
        }
    power = detectable(
        len(known.trials), seed=known.config.validation.seed, settings=known.config.validation.statistics
    )
    f1_cost = _f1_cost(known, own.needed)
    facts = {
        "reliability": own.json(), "cost_s": f1_cost.json(), "trial_s": _trial(known, _f1_model(known, f1_cost)).json(),
    }  # fmt: skip
    return found, {**facts, "detectable_rho": null(power.value), "detectable_reason": power.reason}


def _of(signals: RowSignals, name: str) -> Any:
    return lambda rows: signals.values(name, rows)


def _reliability(known: _Judge, signal: Any, num_rows: int) -> RankReliability:
    asked = known.config.validation
    return rank_reliability(signal, num_rows, target=asked.reliability, seed=asked.seed, settings=asked.statistics)


def _with_f1(known: _Judge, values: Mapping[int, Estimate]) -> Statistic:
    """Rank correlation over the evaluated trials that have a value; the others are counted in the warnings."""
    means = known.means
    whole = [trial for trial in known.trials if not values[trial].reason]
    lost = [values[trial].reason for trial in known.trials if values[trial].reason]
    found = correlate(
        np.array([values[trial].value for trial in whole]),
        np.array([means[trial] for trial in whole]),
        seed=known.config.validation.seed,
        settings=known.config.validation.statistics,
    )
    noted = (f"{len(lost)} recipes have no value: {lost[0]}",) if lost else ()
    return dataclasses.replace(found, warnings=(*found.warnings, *noted))


def _times(known: _Judge) -> dict[str, Statistic]:
    seconds, level = known.evidence.seconds, known.config.validation.statistics.level
    given = {"training": seconds.training, "score_row": seconds.score_row, "eval_row": seconds.eval_row}
    return {
        name: mean_interval([value for value in values if math.isfinite(value)], level)
        for name, values in given.items()
    }


def _signal_cost(known: _Judge, rows: Statistic, once: Sequence[float] = ()) -> Statistic:
    """Seconds of a signal on `rows` of one model, with `once` (its training) too."""
    level = known.config.validation.statistics.level
    return cost_at(rows, known.evidence.seconds.score_row, level, what="the signal", once=once)


def _f1_cost(known: _Judge, rows: Statistic) -> Statistic:
    return cost_at(rows, known.evidence.seconds.eval_row, known.config.validation.statistics.level, what="F1")


def _f1_model(known: _Judge, cost: Statistic) -> Statistic:
    """Seconds of training a model and of F1 at `cost`."""
    return combination([(1.0, _times(known)["training"]), (1.0, cost)], "training, then F1")


def _trial(known: _Judge, model: Statistic) -> Statistic:
    """Seconds of a trial whose models take those of `model` each."""
    return combination([(float(len(known.config.seeds)), model)], "all seeds of a trial")


def _saved(known: _Judge, rows: Statistic, f1_rows: Statistic, name: str) -> dict[str, Any]:
    """Seconds of a trial by one signal and by F1, and of the whole search against the same search on F1.

    The reference is trained and scored once; `real_nll` needs none.
    """
    seconds, trials, seeds = known.evidence.seconds, len(known.evidence.candidates), len(known.config.seeds)
    cost, f1_cost = _signal_cost(known, rows), _f1_cost(known, f1_rows)
    model = _signal_cost(known, rows, seconds.training)
    f1_model = _f1_model(known, f1_cost)
    saved = saved_seconds(cost, f1_cost, model if name in RECALLS else None, trials, seeds)
    whole = f1_model.estimate * trials * seeds
    return {
        "trial_s": _trial(known, model).json(),
        "f1_trial_s": _trial(known, f1_model).json(),
        "saved_s": saved.json(),
        "saved_share": null(saved.estimate / whole if whole else math.nan),
    }


def _reference(known: _Judge, size: int, reference: HeadScores | str) -> dict[str, Any]:
    """Does the ranking by recall survive a reference from `size` rows?"""
    if isinstance(reference, str):
        return {"num_distinct": size, "reason": reference}
    evidence, asked = known.evidence, known.config.validation
    own = {item.number: recalls(evidence.scores[item.number], reference, known.config.scoring)
           for item in evidence.candidates}  # fmt: skip
    found: dict[str, Any] = {"num_distinct": size, "reason": "", "num_retrieval_heads": _num_heads(known, reference)}
    for name in RECALLS:
        whole = [
            item for item in evidence.candidates if not (own[item.number][name].reason or item.signals[name].reason)
        ]
        agreement = correlate(
            np.array([own[item.number][name].value for item in whole]),
            np.array([item.signals[name].value for item in whole]),
            seed=asked.seed,
            settings=asked.statistics,
        )
        found[name] = {
            "with_whole_reference": agreement.json(),
            "with_f1": _with_f1(known, {number: values[name] for number, values in own.items()}).json(),
            "why_undefined": next((value[name].reason for value in own.values() if value[name].reason), ""),
        }
    return found


def _num_heads(known: _Judge, reference: HeadScores) -> int:
    return len(known.config.scoring.heads(reference))
