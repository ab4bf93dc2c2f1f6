"""The plan of a study: what it is asked for, the arms that follow, and which of them a machine does.

Arms share nothing but the held-out rows, so machines share a study by counting: of N, machine K does the arms K, K + N,
K + 2N, ... of the plan. They need not know of each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from rhstudy.configs import NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs, preset
from rhstudy.data.relevance import recipe_digest
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.interventions.conditions import KnockoutSettings
from rhstudy.interventions.patch_plan import PatchSettings, Role
from rhstudy.models.load import resolve_device
from rhstudy.stages.detect import ScoringSettings
from rhstudy.stages.finetune import FinetuneConfig
from rhstudy.stages.make_data import MakeDataConfig
from rhstudy.stages.patch import PatchConfig
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.tracking.stage_run import stages_are_launched
from rhstudy.training.config import TrainingConfig

Baseline = Literal["untuned", "untuned_native"]
KnockoutArms = Literal["none", "reference", "all"]
PatchArms = Literal["none", "synthetic", "both_directions"]
BuildsAhead = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """A whole study.

    Attributes:
        name: run name of the study.
        recipes: preset recipes, each an arm per seed.
        custom_recipes: recipes of one's own, each an arm per seed.
        seeds: root seeds of the arms: data draw and order of examples.
        ceiling_seeds: further seeds of the reference recipe alone, for the noise ceiling.
        reference_recipe: the recipe of the real-data model.
        baselines: ``untuned`` (RoPE raised as in training) and ``untuned_native`` (RoPE as shipped).
        data: budgets and sources; recipe, parts and seed are set per arm.
        model: the base model.
        context: context extension of every trained arm.
        training: optimisation.
        scoring: how heads are scored, on the ``score`` part.
        answering: how answers are generated, on the ``eval`` part.
        knockout_arms: in which arms heads are knocked out, on the ``eval`` part: ``none``; in the ``reference``, its
            own; in ``all``, first their own and then the reference's.
        knockout: doses, modes, scopes and controls.
        patch_arms: between which arms heads are patched, on the ``eval`` part: ``none``; ``synthetic``, from the
            reference into every trained arm of another recipe, and as null patch into its own other seeds;
            ``both_directions``, also back into the reference.
        patching: sets, rows and controls; which model is the real one is set per pair.
        statistics: levels, draws and the verdict rule.
        build_ahead: build the next arm's data set in another process while this arm trains; ``auto`` where a GPU
            trains.
        seed: of the analysis and of the random heads.
        part: (K, N) does part K of N of the arms and no analysis, for several machines with one tracking server; (1, 1)
            is the whole study.
        tracking: where runs are recorded.
    """

    name: str = "study"
    recipes: tuple[str, ...] = ("real", "real_limited", "templated_in_passages", "templated_in_filler", "symbolic")
    custom_recipes: tuple[Knobs, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ceiling_seeds: tuple[int, ...] = (1,)
    reference_recipe: str = "real"
    baselines: tuple[Baseline, ...] = ("untuned",)
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    knockout_arms: KnockoutArms = "none"
    knockout: KnockoutSettings = field(default_factory=KnockoutSettings)
    patch_arms: PatchArms = "none"
    patching: PatchSettings = field(default_factory=PatchSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    build_ahead: BuildsAhead = field(default="auto", metadata=NO_DIGEST)
    seed: int = 0
    part: tuple[int, ...] = field(default=(1, 1), metadata=NO_DIGEST)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        names = [knobs.name for knobs in self.all_recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "recipes", "have different names", twice, "Rename one of them")
        digests = [recipe_digest(knobs, self.data.task) for knobs in self.all_recipes]
        same = [name for name, found in zip(names, digests, strict=True) if digests.count(found) > 1]
        remedy = f"Drop one of them (knobs that change no data of {self.data.task} do not count)"
        require(not same, "recipes", "differ in more than their names", same, remedy)
        remedy = "Add it to recipes: it is what the others are compared with"
        require(self.reference_recipe in names, "reference_recipe", f"be one of {names}", self.reference_recipe, remedy)
        require(bool(self.seeds), "seeds", "hold at least one seed", self.seeds, "Use seeds = [0]")
        for name in ("seeds", "ceiling_seeds"):
            given = getattr(self, name)
            require(all(seed >= 0 for seed in given), name, "all be at least 0", given, "Give seeds of 0 or more")
        remedy = "Say 1 2 on one machine and 2 2 on the other"
        valid = len(self.part) == 2 and 1 <= self.part[0] <= self.part[1]
        require(valid, "part", "be K N with K from 1 to N", self.part, remedy)
        num_arms = len(list(plan_arms(self)))
        must = f"have N at most the number of arms ({num_arms})"
        require(self.part[1] <= num_arms, "part", must, self.part, "Use fewer machines: an arm is the smallest share")

    @property
    def all_recipes(self) -> tuple[Knobs, ...]:
        """Preset and custom recipes as knobs."""
        return (*(preset(name, self.data.task) for name in self.recipes), *self.custom_recipes)

    @property
    def reference_arm(self) -> str:
        """Name of the arm that is the real-data model."""
        return f"{self.reference_recipe}/seed{min(self.seeds)}"

    @property
    def is_part(self) -> bool:
        """Whether other machines do the rest of it."""
        return self.part[1] > 1

    @property
    def run_name(self) -> str:
        """`name`, and which part of it."""
        return f"{self.name}, part {self.part[0]} of {self.part[1]}" if self.is_part else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """What tells one arm from another; the params of an arm's run.

    Attributes:
        recipe: name of the recipe, or of the baseline.
        seed: root seed of data draw and order.
        knobs: the recipe; None for a baseline.
        rope_theta: RoPE base frequency; 0 = as shipped, or as scaling makes it.
        context: for people, for instance ``theta 300000`` or ``yarn x4``.
    """

    recipe: str
    seed: int
    knobs: Knobs | None
    rope_theta: float
    context: str

    @property
    def name(self) -> str:
        """``recipe/seedN``."""
        return f"{self.recipe}/seed{self.seed}"


def plan_arms(config: StudyConfig) -> Iterator[ArmConfig]:
    """Every arm, the reference first: an interrupted study has what the others are compared with."""
    context, native = config.context, ContextConfig()
    ordered = sorted(config.all_recipes, key=lambda knobs: knobs.name != config.reference_recipe)
    for knobs in ordered:
        extra = config.ceiling_seeds if knobs.name == config.reference_recipe else ()
        for seed in dict.fromkeys((*config.seeds, *extra)):
            yield ArmConfig(
                recipe=knobs.name, seed=seed, knobs=knobs, rope_theta=context.rope_theta, context=context.label
            )
    for baseline in dict.fromkeys(("untuned_native",) if config.baselines and context.is_native else config.baselines):
        own = native if baseline == "untuned_native" else context
        yield ArmConfig(recipe=baseline, seed=0, knobs=None, rope_theta=own.rope_theta, context=own.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPair:
    """Two arms between which heads are patched.

    Attributes:
        donor: name of an arm.
        recipient: name of an arm.
        real_model: which of them is the reference.
        is_null: both are seeds of the reference's recipe.
    """

    donor: str
    recipient: str
    real_model: Role
    is_null: bool = False

    @property
    def name(self) -> str:
        """``real/seed0 to symbolic/seed0``."""
        return f"{self.donor} to {self.recipient}"


def patch_pairs(config: StudyConfig) -> Iterator[PatchPair]:
    """The pairs that `config.patch_arms` asks for, null patches first: the others are shown beside them."""
    reference = config.reference_arm
    for arm in plan_arms(config) if config.patch_arms != "none" else ():
        if arm.knobs is None or arm.name == reference:
            continue
        is_null = arm.recipe == config.reference_recipe
        yield PatchPair(donor=reference, recipient=arm.name, real_model="donor", is_null=is_null)
        if config.patch_arms == "both_directions" and not is_null:
            yield PatchPair(donor=arm.name, recipient=reference, real_model="recipient")


def patch_config(
    config: StudyConfig, pair: PatchPair, *, data: str, donor: tuple[str, str], recipient: tuple[str, str], null: str
) -> PatchConfig:
    """The stage config of one pair.

    Args:
        config: the study's.
        pair: which arms.
        data: run id of the eval rows.
        donor: run ids of its checkpoint and of `detect` on it.
        recipient: the same.
        null: run id of a null patch; empty without one.
    """
    return PatchConfig(
        data=data,
        donor_checkpoint=donor[0],
        donor_heads=donor[1],
        checkpoint=recipient[0],
        heads=recipient[1],
        null=null,
        model=config.model,
        context=config.context,
        patching=dataclasses.replace(config.patching, real_model=pair.real_model),
        answering=config.answering,
        seed=config.seed,
        tracking=config.tracking,
    )


def arms_of_part(config: StudyConfig) -> list[ArmConfig]:
    """Every N-th arm of the plan from the K-th on, with (K, N) = `config.part`."""
    number, count = config.part
    return list(plan_arms(config))[number - 1 :: count]


@runtime_checkable
class ArmSettings(Protocol):
    """What a study and a sweep say alike about each of their arms; see `StudyConfig`."""

    @property
    def data(self) -> DataConfig:
        """Budgets and sources."""

    @property
    def model(self) -> ModelConfig:
        """The base model."""

    @property
    def context(self) -> ContextConfig:
        """Context extension of every trained arm."""

    @property
    def training(self) -> TrainingConfig:
        """Optimisation."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where runs are recorded."""


def builds_ahead(choice: BuildsAhead, model: ModelConfig) -> bool:
    """Whether data are built ahead: on a CPU another process would take cores from training that `model`.

    Stages in containers build for themselves.
    """
    on_gpu = choice == "auto" and resolve_device(model.device).type == "cuda"
    return (choice == "on" or on_gpu) and not stages_are_launched()


def train_data(settings: ArmSettings, knobs: Knobs | None, seed: int) -> MakeDataConfig:
    """The training set of an arm."""
    data = dataclasses.replace(settings.data, parts=("train",), recipe="", knobs=knobs, seed=seed)
    return MakeDataConfig(data=data, model=settings.model, tracking=settings.tracking)


def held_out_data(settings: ArmSettings, part: Literal["score", "eval"]) -> MakeDataConfig:
    """The real rows of one part, the same for every arm."""
    asked = settings.data
    data = dataclasses.replace(
        asked,
        parts=(part,),
        recipe="",
        knobs=None,
        seed=0,
        num_examples=1,
        num_distinct=0,
        num_dev=0,
        num_score=asked.num_score if part == "score" else 0,
        num_eval=asked.num_eval if part == "eval" else 0,
    )
    return MakeDataConfig(data=data, model=settings.model, tracking=settings.tracking)


def arm_training(settings: ArmSettings, data: str, seed: int) -> FinetuneConfig:
    """The training of an arm on the data set of run `data`."""
    return FinetuneConfig(
        data=data,
        model=settings.model,
        context=settings.context,
        training=settings.training,
        seed=seed,
        tracking=settings.tracking,
    )
