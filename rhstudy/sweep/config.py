"""What a sweep is asked for: which knobs are turned and how far, what is maximized, who searches and for how long."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, require_at_least
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Dimension, Knobs, preset, search_space
from rhstudy.errors import require
from rhstudy.plan import BuildsAhead
from rhstudy.stages.detect import ScoringSettings
from rhstudy.sweep.objectives import Constraint, Objective, require_objectives
from rhstudy.sweep.pruning import PrunerName, require_pruner
from rhstudy.sweep.validation_config import ValidationSettings
from rhstudy.training.config import TrainingConfig

BUDGET_KNOBS = {"num_examples": 1, "num_tokens": 64}
"""Fields of the data config that a sweep may turn for training data -> least value; score rows stay as they are."""
SamplerName = Literal["tpe", "random", "qmc", "gp", "nsga2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """One knob that the sweep turns; what is left out is as `rhstudy.data.knobs` declares it.

    Attributes:
        knob: its name, a field of `Knobs` that has a range or choices; or ``num_examples`` or ``num_tokens`` of the
            training data, which have no range of their own.
        low: lowest value, within the knob's range.
        high: highest value, within the knob's range.
        choices: some of the values of a categorical knob.
    """

    knob: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """A whole sweep.

    Attributes:
        name: name of the search in its storage, and of its run.
        space: the knobs that are turned; each only where it matters beside the others (`Dimension.matters`).
        base: the recipe at which all other knobs stand.
        objective: a mean over `seeds`. Maximized: ``weighted_head_recall``, or ``head_recall``, which moves in steps of
            one head. Minimized: ``real_nll`` (gold-answer loss on the score rows), ``gpu_seconds`` (of training and
            scoring on all its devices) or ``train_tokens``.
        objectives: several of them, instead of `objective`: the recipes are sought that no other beats in all.
        constraints: limits on any of these quantities; recipes beyond them are infeasible. TPE, GP and NSGA-II avoid
            them.
        reference: detect run of the real-data model, scored on this sweep's score rows; empty: the sweep makes it from
            `reference_recipe`.
        reference_recipe: preset recipe of the reference, when the sweep makes it.
        reference_seed: its root seed; none of `seeds`, so that a real recipe is not compared with itself.
        seeds: root seeds of each trial.
        corners: try the base and the paper's corners first, those that lie in the space.
        sampler: ``tpe``, ``random``, ``qmc`` (Sobol points), ``gp`` (Gaussian process) or ``nsga2``.
        pruner: gives up trials that promise little: ``none``; ``median`` (worse than the median of earlier trials at
            the same step), ``successive_halving`` and ``hyperband``, by what is reported at `report_at` and after each
            seed; or ``wilcoxon`` (worse than the best trial seed by seed, from 5 seeds on).
        report_at: shares of a training's steps after which the heads of the model in training are scored, for instance
            0.25, 0.5, 0.75.
        num_trials: so many trials by all workers together, failed ones included, killed ones not; 0 = no limit.
        max_seconds: start no trial once all workers together spent so long on trials; 0 = no limit.
        max_retries: how often a trial whose worker died is tried again.
        max_failures: a worker stops after so many failed trials in a row.
        heartbeat_s: how often a worker says that it lives; after five times as long without a word its trial is
            another's.
        patience_s: how long a worker waits for a storage that is away (a server that is started again, a full disk)
            before it stops.
        storage: path of a journal file on a file system that all workers see, or an SQLAlchemy URL
            (``sqlite:///...``, ``postgresql+psycopg2://...``, ``mysql+pymysql://...``), or Optuna's proxy of one
            (``grpc://HOST:PORT``); empty: ``NAME.journal`` in this folder.
        worker: only do trials: no table, figures and best recipe at the end.
        build_ahead: build the next seed's data set in another process while this one trains; ``auto`` where a GPU
            trains.
        data: budgets and sources; recipe, parts and seed are set per trial.
        model: the base model.
        context: context extension of every trained model.
        training: optimisation.
        scoring: how heads are scored, on the ``score`` part.
        seed: of the samplers.
        validation: what `rhstudy sweep-validate` evaluates; the sweep itself reads none of it.
        tracking: where runs are recorded.
    """

    name: str = "sweep"
    space: tuple[Searched, ...] = ()
    base: Knobs = field(default_factory=lambda: Knobs(name="base"))
    objective: Objective = "weighted_head_recall"
    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    reference: str = field(default="", metadata=INPUT)
    reference_recipe: str = "real"
    reference_seed: int = 0
    seeds: tuple[int, ...] = (1,)
    corners: bool = True
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    report_at: tuple[float, ...] = ()
    num_trials: int = field(default=30, metadata=NO_DIGEST)
    max_seconds: float = field(default=0.0, metadata=NO_DIGEST)
    max_retries: int = field(default=3, metadata=NO_DIGEST)
    max_failures: int = field(default=5, metadata=NO_DIGEST)
    heartbeat_s: int = field(default=60, metadata=NO_DIGEST)
    patience_s: float = field(default=600.0, metadata=NO_DIGEST)
    storage: str = field(default="", metadata=NO_DIGEST)
    worker: bool = field(default=False, metadata=NO_DIGEST)
    build_ahead: BuildsAhead = field(default="auto", metadata=NO_DIGEST)
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    seed: int = 0
    validation: ValidationSettings = field(default_factory=ValidationSettings, metadata=NO_DIGEST)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require(bool(self.name), "name", "be a label", self.name, "Name the sweep")
        require(bool(self.seeds), "seeds", "hold at least one seed", self.seeds, "Use seeds = [1]")
        require(min(self.seeds) >= 0, "seeds", "all be at least 0", self.seeds, "Give seeds of 0 or more")
        once = len(set(self.seeds)) == len(self.seeds)
        require(once, "seeds", "be different", self.seeds, "Give each seed once")
        require_at_least(
            self, "sweep", num_trials=0, max_seconds=0, max_retries=0, max_failures=1, heartbeat_s=1,
            patience_s=0, seed=0, reference_seed=0,
        )  # fmt: skip
        limited = self.num_trials > 0 or self.max_seconds > 0
        require(limited, "num_trials", "be at least 1 without max_seconds", self.num_trials, "Limit the sweep")
        preset(self.reference_recipe, self.data.task)
        apart = bool(self.reference) or self.reference_seed not in self.seeds
        remedy = "Choose another: a real recipe of the same seed would be compared with itself"
        require(apart, "reference_seed", f"be none of seeds {list(self.seeds)}", self.reference_seed, remedy)
        require_objectives(self.objectives, self.constraints)
        require_pruner(self.pruner, self.report_at, self.seeds, self.goals, self.training.num_processes)
        _ = dimensions(self), budget_dimensions(self)

    @property
    def goals(self) -> tuple[Objective, ...]:
        """What is sought: `objectives`, or the one `objective`."""
        return self.objectives or (self.objective,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What a worker leaves.

    Attributes:
        run_id: of the sweep.
        facts: JSON-ready headline.
        text: the table of the best trials; for ``worker``, what it did.
    """

    run_id: str
    facts: dict[str, Any]
    text: str


def dimensions(config: SweepConfig) -> tuple[Dimension, ...]:
    """The knobs that the sweep turns, with its ranges, in the order of `Knobs`: conditions look back only.

    What `budget_dimensions` gives is left out.

    Raises:
        InputError: an unknown knob, one named twice, values outside the knob's own, nothing to choose from, or a knob
            that can never matter.
    """
    require(bool(config.space), "space", "name at least one knob", [], "Add [[space]] with a knob")
    known = {dimension.name: dimension for dimension in search_space()}
    asked: dict[str, Dimension] = {}
    items = [(index, item) for index, item in enumerate(config.space) if item.knob not in BUDGET_KNOBS]
    for index, item in items:
        where = f"space[{index}]"
        near = difflib.get_close_matches(item.knob, [*known, *BUDGET_KNOBS], n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]}" if near else f"Known: {', '.join((*known, *BUDGET_KNOBS))}"
        require(item.knob in known, f"{where}.knob", "be a knob with a range or choices", item.knob, remedy)
        require(item.knob not in asked, f"{where}.knob", "be named once", item.knob, "Drop one of them")
        asked[item.knob] = _limited(known[item.knob], item, where)
    for index, item in items:
        _require_reachable(config, asked, asked[item.knob], f"space[{index}].knob")
    return tuple(asked[name] for name in known if name in asked)


def budget_dimensions(config: SweepConfig) -> tuple[Dimension, ...]:
    """What the sweep turns of the size of the training data; steps are multiplicative.

    Raises:
        InputError: one named twice, without a range, or beyond the prompts that models are scored on.
    """
    found: dict[str, Dimension] = {}
    for index, item in enumerate(config.space):
        if item.knob not in BUDGET_KNOBS:
            continue
        where = f"space[{index}]"
        require(item.knob not in found, f"{where}.knob", "be named once", item.knob, "Drop one of them")
        both = item.low is not None and item.high is not None
        require(both, where, f"hold low and high for {item.knob}", [item.low, item.high], "Give the range")
        least, most = BUDGET_KNOBS[item.knob], config.data.num_tokens if item.knob == "num_tokens" else None
        known = Dimension(
            name=item.knob, kind="int", default=getattr(config.data, item.knob), low=least, high=most or 1e9, log=True
        )
        found[item.knob] = _limited(known, item, where)
    return tuple(found[name] for name in BUDGET_KNOBS if name in found)


def _limited(known: Dimension, item: Searched, where: str) -> Dimension:
    if known.kind == "categorical":
        numbers = item.low is None and item.high is None
        require(numbers, f"{where}.low", f"be left out for {known.name}", item.low, "It has choices")
        choices = item.choices or known.choices
        must = f"be some of {', '.join(known.choices)}"
        require(set(choices) <= set(known.choices), f"{where}.choices", must, choices, "Drop the others")
        many = len(set(choices)) == len(choices) >= 2
        require(many, f"{where}.choices", "hold two different values or more", choices, "Set the knob in base instead")
        return dataclasses.replace(known, choices=choices)
    require(not item.choices, f"{where}.choices", f"be left out for {known.name}", item.choices, "Give low and high")
    least, most = known.low or 0.0, known.high or 0.0
    low, high = least if item.low is None else item.low, most if item.high is None else item.high
    must = f"hold low < high within [{least:g}, {most:g}]"
    valid = least <= low < high <= most
    require(valid, where, must, [low, high], f"Choose a range for {known.name}, or set it in base")
    whole = known.kind == "float" or (float(low).is_integer() and float(high).is_integer())
    require(whole, where, "hold whole numbers", [low, high], f"{known.name} is a count")
    return dataclasses.replace(known, low=low, high=high)


def _require_reachable(config: SweepConfig, asked: Mapping[str, Dimension], one: Dimension, name: str) -> None:
    """Some point of the space gives the knob a meaning."""
    for key, allowed in one.when.items():
        possible: Any = (config.data.task,) if key == "task" else (getattr(config.base, key),)
        possible = asked[key].choices if key in asked else possible
        must = f"matter somewhere in the space: it does where {key} is one of {', '.join(allowed)}"
        remedy = f"Drop it, or let {key} be such: now it is {', '.join(map(str, possible))}"
        require(bool(set(possible) & set(allowed)), name, must, one.name, remedy)
