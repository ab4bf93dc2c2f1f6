"""The quickstart: a small study that runs on two CPU cores in minutes, without network or server.

By default the shipped model `tiny` (native context 256 tokens) is extended to 1,024 tokens on eleven recipes, two seeds
each, for literal cue retrieval over Python's own documentation: copying, not question answering. `--model` and `--mdqa`
run the real thing, with budgets for a model a hundred times larger.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rhstudy import study
from rhstudy.configs import NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig
from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs
from rhstudy.data.python_docs import NAME as PYTHON_DOCS
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.interventions.conditions import KnockoutSettings
from rhstudy.models.load import SHIPPED_MODELS
from rhstudy.plan import StudyConfig
from rhstudy.stages.analyze import ANALYSIS
from rhstudy.stages.outcomes import read_necessity
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.study import StudyResult
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult
from rhstudy.training.loop import TrainingConfig

NAME = "quickstart"
_log = logging.getLogger(__name__)
NUM_DRAWS = 5
DOSES = (1, 2, 5)
RECIPES = ("real", "templated_in_passages", "templated_in_filler", "symbolic")
FURTHER_RECIPES = (
    Knobs(name="real_in_filler", context_diversity="repeated_filler"),
    Knobs(name="real_in_templated", context_diversity="templated"),
    Knobs(name="templated_in_templated", concept_expression="templated", context_diversity="templated"),
    Knobs(name="templated_half_real", concept_expression="templated", context_diversity="templated", real_fraction=0.5),
    Knobs(name="symbolic_in_passages", concept_expression="symbolic"),
    Knobs(name="symbolic_in_filler", concept_expression="symbolic", context_diversity="repeated_filler"),
    Knobs(name="symbolic_half_real", concept_expression="symbolic", context_diversity="templated", real_fraction=0.5),
)
"""With the presets ten recipes besides the reference: the fewest that give a bootstrap interval."""

Size = Literal["full", "short"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """Config of the quickstart.

    Attributes:
        model: ``tiny``, or any model of `model.name`, for instance ``smollm2-135m``.
        mdqa: MDQA questions instead of literal cues: a file of rows, or ``mdqa`` for the public set.
        passages: JSONL file of ``title`` and ``text`` for literal cues instead of Python's own documentation, whose
            text differs between Python versions.
        size: ``full``, or ``short``: three recipes, one seed and few rows, to see the path work.
        seed: lowest root seed.
        device: ``auto`` is the first GPU when there is one, else the CPU.
        tracking: where runs are recorded.
    """

    model: str = "tiny"
    mdqa: str = ""
    passages: str = ""
    size: Size = "full"
    seed: int = 0
    device: str = field(default="auto", metadata=NO_DIGEST)
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(system_metrics=False), metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        both = bool(self.mdqa and self.passages)
        require(not both, "passages", "be left out with mdqa", self.passages, "Choose one source of text")
        require(self.seed >= 0, "seed", "be at least 0", self.seed, "Give a seed of 0 or more")


def study_config(config: QuickstartConfig) -> StudyConfig:
    """The study that the quickstart is.

    Raises:
        InputError: an invalid value.
    """
    ours = config.model in SHIPPED_MODELS
    short, seed = config.size == "short", config.seed
    many = ours and not short
    return StudyConfig(
        name=NAME,
        recipes=RECIPES if not short else ("real", "symbolic"),
        custom_recipes=FURTHER_RECIPES if many else FURTHER_RECIPES[:1],
        seeds=(seed, seed + 1) if many else (seed,),
        ceiling_seeds=() if many or short else (seed + 1,),
        baselines=("untuned", "untuned_native"),
        data=_data(config, ours, short),
        model=ModelConfig(name=config.model, device=config.device),
        context=ContextConfig(rope_theta=1.5e5 if ours else 0.0),
        training=TrainingConfig(learning_rate=1e-3 if ours else 3e-4, batch_size=1 if ours else 4),
        answering=AnsweringSettings(max_new_tokens=8 if ours and not config.mdqa else 20),
        knockout_arms="reference",
        knockout=KnockoutSettings(doses=DOSES, include_all_retrieval_heads=False, num_draws=NUM_DRAWS),
        statistics=StatisticsSettings(num_resamples=2000, num_permutations=2000, num_power_draws=200),
        seed=seed,
        tracking=config.tracking,
    )


def _data(config: QuickstartConfig, ours: bool, short: bool) -> DataConfig:
    """Budgets: a short prompt for a real model, since a core trains it a hundred times more slowly than `tiny`."""
    num_examples, num_score, num_eval = (8, 6, 8) if short else (36 if ours else 64, 20 if ours else 24, 40)
    return DataConfig(
        task="mdqa" if config.mdqa else "cue_retrieval",
        train_file=config.mdqa or config.passages or PYTHON_DOCS,
        num_tokens=1024 if ours else 512,
        on_bad_row="skip",
        num_examples=num_examples,
        num_score=num_score,
        num_eval=num_eval,
    )


def run(config: QuickstartConfig, recorder: Recorder) -> StudyResult:
    """Run the quickstart; errors as `rhstudy.study.run_whole`."""
    if config.mdqa and config.model in SHIPPED_MODELS:
        _log.warning("%s copies words and cannot answer questions: expect F1 near 0 with --mdqa", config.model)
    return study.run_whole(study_config(config), recorder)


def summary_text(result: StudyResult) -> str:
    """What the quickstart ends with: the table of arms, the correlations, the knockout; numbers as in the store."""
    analysis = json.loads(result.analysis.artifacts.file(ANALYSIS).read_text(encoding="utf-8"))
    group = analysis["groups"][0]
    what = {
        "cue_retrieval": "literal cue retrieval (copying, not question answering)",
        "mdqa": "questions over documents",
    }[group["task"]]
    num_rows = group["arms"][0]["exact_match"]["n"]
    parts = [f"{what}, model {group['model']}, {num_rows} eval rows an arm", _arm_table(group["arms"])]
    parts += [_correlation_line(group, name) for name in ("head_recall", "weighted_head_recall")]
    parts += [line for knockout in result.knockouts for line in _knockout_lines(knockout)]
    parts += [verdict["sentence"] for verdict in analysis["verdicts"]]
    return "\n\n".join(parts)


def _arm_table(arms: Sequence[Mapping[str, Any]]) -> str:
    header = ["recipe", "seed", "exact match [95 %]", "F1", "head recall", "weighted head recall", "retrieval heads"]
    rows = [header, *(_arm_cells(arm) for arm in arms)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _arm_cells(arm: Mapping[str, Any]) -> list[str]:
    exact, role = arm["exact_match"], " (reference)" if arm["is_reference_arm"] else ""
    interval = "" if exact["low"] is None else f" [{exact['low']:.2f}, {exact['high']:.2f}]"
    numbers = [
        (exact["estimate"], ".3f", interval),
        (arm["f1"]["estimate"], ".3f", ""),
        (arm["head_recall"], ".2f", ""),
        (arm["weighted_head_recall"], ".3f", ""),
        (arm["num_retrieval_heads"], ".0f", ""),
    ]
    shown = ["n/a" if value is None else f"{value:{spec}}{tail}" for value, spec, tail in numbers]
    return [f"{arm['recipe']}{role}", str(arm["seed"]), *shown]


def _correlation_line(group: Mapping[str, Any], predictor: str) -> str:
    record = group["correlations"][predictor]["all"]
    name = predictor.replace("_", " ")
    if record["estimate"] is None:
        return f"Spearman of F1 with {name}: n/a, n = {record['n']} recipes: {record['reason']}"
    interval = f"no interval: {record['reason'].removeprefix('no interval: ')}"
    if record["low"] is not None:
        interval = f"95 % interval {record['low']:.2f} to {record['high']:.2f}"
    p = "n/a" if record["p"] is None else f"{record['p']:.3g}"
    return f"Spearman of F1 with {name}: {record['estimate']:.2f}, {interval}, p {p}, n = {record['n']} recipes"


def _knockout_lines(knockout: StageResult) -> Iterator[str]:
    """The largest dose, told as an illustration: with few draws no p can be small."""
    dose = read_necessity(knockout.artifacts)["doses"][-1]
    effect = dose["exact_match"]
    if effect["drop"]["estimate"] is None or effect["random"]["estimate"] is None:
        yield f"Knockout of the top {dose['dose']} heads: n/a, {dose['reason'] or dose['control_reason']}"
        return
    random, excess = effect["random"], effect["excess"]
    borrowed = sum(item["count"] for item in dose["borrowed"])
    layers = "all in the same layers" if not borrowed else f"{borrowed} of them borrowed from other layers"
    yield (
        f"Knockout (an illustration: {effect['num_draws']} draws) of the reference's top {dose['dose']} heads: exact "
        f"match {effect['baseline']['estimate']:.3f} -> {effect['top']['estimate']:.3f}; of as many random heads, "
        f"{layers}: {random['estimate']:.3f} ({random['low']:.3f} to {random['high']:.3f}); "
        f"p {excess['p']:.2g}, which cannot be below {effect['smallest_p']:.2g}"
    )
