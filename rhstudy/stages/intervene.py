"""Stage `intervene`: knock retrieval heads out while the model answers -> what each dose costs, against random heads.

Each prompt is run once up to its last token without any knockout; every condition, the baseline included, goes on from
that shared prefix with its heads knocked out (`decode` scope).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, plain
from rhstudy.data.examples_file import JSON_LINES, PARQUET, read_examples
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings, limited
from rhstudy.evaluation.answers import mark_example
from rhstudy.heads.files import load_scores
from rhstudy.interventions.answering import answer_under
from rhstudy.interventions.conditions import MEAN_MODE, Condition, KnockoutPlan, KnockoutSettings, plan_knockout
from rhstudy.interventions.means import head_means
from rhstudy.models.load import LoadedModel
from rhstudy.shapes import Float
from rhstudy.stages.answered import Outcomes, measure, measurements
from rhstudy.stages.detect import STAGE as DETECT
from rhstudy.stages.inputs import examples_path
from rhstudy.stages.knockout_figures import log_figures
from rhstudy.stages.make_data import STAGE as MAKE_DATA
from rhstudy.stages.measurement import rows_of, run_measurement
from rhstudy.stages.outcomes import (
    CONDITIONS,
    KNOCKOUT_VERSION,
    OUTCOMES,
    condition_means,
    headline,
    write_json,
    write_necessity,
    write_outcomes,
)
from rhstudy.stages.subject import Subject, read_subject, require_stage
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun
from rhstudy.types import Example, HeadScores

STAGE = "intervene"
SCORE = "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data`.
        heads: run id or artifact folder of `detect`: whose heads are knocked out. It may be of another model of this
            shape, for instance the real-data model's heads in a model trained on synthetic data.
        score_data: run id or artifact folder of `make-data` with the part ``score``, over whose prompts mode
            mean_output takes its means; empty: that part of `data`. Other modes do without.
        part: ``eval`` in a study; never the rows the heads were scored on.
        checkpoint: run id or artifact folder of `finetune`; empty intervenes on the untuned model.
        model: the base model.
        context: context extension, as in training.
        knockout: which heads, how many, and the controls.
        answering: how answers are generated.
        seed: of the random heads.
        tracking: where the run is recorded.
    """

    data: str = field(metadata=INPUT)
    heads: str = field(metadata=INPUT)
    score_data: str = field(default="", metadata=INPUT)
    part: str = "eval"
    checkpoint: str = field(default="", metadata=INPUT)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    knockout: KnockoutSettings = field(default_factory=KnockoutSettings)
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(config: InterveneConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Knock out, answer, mark and record.

    Writes ``outcomes.jsonl`` (a row per example and condition; columns: `rhstudy.stages.outcomes`), ``outcomes.csv``
    (a row per condition), ``conditions.json`` (every condition's heads), ``necessity.json`` (the statistics),
    ``subject.json``.

    Raises:
        InputError: bad references or settings, heads of a model of another shape, or rows the heads were scored on.
    """
    heads = resolve(recorder, config.heads)
    require_stage(heads, DETECT, "heads")
    inputs = {"heads": heads}
    if MEAN_MODE in config.knockout.modes:
        inputs["score_data"] = _score_data(config, recorder)
    return run_measurement(
        STAGE,
        config,
        recorder,
        lambda loaded, subject, examples, _data, stage_run: _intervene(
            config, inputs, loaded, subject, examples, stage_run
        ),
        role="eval_data",
        num_examples=config.answering.num_examples,
        seed=config.seed,
        parent_run_id=parent_run_id,
        run_name=run_name,
        further_inputs=inputs,
    )


def _score_data(config: InterveneConfig, recorder: Recorder) -> ArtifactFolder:
    """The data set whose score prompts means are taken over."""
    reference = config.score_data or config.data
    data = resolve(recorder, reference)
    require_stage(data, MAKE_DATA, "score_data" if config.score_data else "data")
    held = any((data.path / f"{SCORE}{suffix}").is_file() for suffix in (JSON_LINES, PARQUET))
    must, remedy = f"hold the part score for mode {MEAN_MODE}", "Give score_data: the data set the heads were scored on"
    require(held, "score_data", must, reference, remedy)
    return data


def _intervene(
    config: InterveneConfig,
    inputs: Mapping[str, ArtifactFolder],
    loaded: LoadedModel,
    subject: Subject,
    examples: Sequence[Example],
    run: StageRun,
) -> Mapping[str, Any]:
    scores, source = load_scores(inputs["heads"].path), read_subject(inputs["heads"])
    _check_heads(scores, loaded, examples)
    run.set_tags({"rhstudy.heads_of": source.label})
    plan = plan_knockout(scores, config.knockout, config.seed)
    facts = _facts(config, subject, source, plan, len(examples))
    conditions = [condition.facts() for condition in plan.conditions]
    write_json(run.output_dir / CONDITIONS, {**facts, "conditions": conditions})
    found_means = _means(inputs, config, loaded)
    outcomes, seconds = _measure(config, loaded, examples, plan.conditions, found_means, run)
    means = condition_means(outcomes)
    write_outcomes(run.output_dir, outcomes, means)
    found = write_necessity(run, facts, outcomes)
    title = f"{subject.label}, heads of {'its own' if facts['same_model'] else source.label}"
    log_figures(run, found, means, plan, (loaded.layout.num_layers, loaded.layout.num_heads), title)
    return {
        **headline(means, found),
        "num_retrieval_heads": len(plan.retrieval_heads),
        **{f"num_draws_top{dose.dose}": len(dose.controls.draws) for dose in plan.doses},
        "num_conditions": len(plan.conditions),
        "num_examples": len(examples),
        "num_unscored": len(examples) - means[0]["num_scored"],
        "intervention_s": seconds,
        "answers_per_s": len(outcomes) / seconds,
    }


def _means(
    inputs: Mapping[str, ArtifactFolder], config: InterveneConfig, loaded: LoadedModel
) -> Float[Tensor, "layers heads dim"] | None:
    """Mean output of every head of this model over the score prompts; None where no mode needs it."""
    if "score_data" not in inputs:
        return None
    examples = read_examples(examples_path(inputs["score_data"], SCORE), loaded.tokenizer)
    prompts = (example.prompt_ids for example in examples)
    return head_means(loaded.model, prompts, chunk_tokens=config.answering.chunk_tokens)


def _facts(
    config: InterveneConfig, subject: Subject, source: Subject, plan: KnockoutPlan, num_examples: int
) -> dict[str, Any]:
    """What was done to which model; every dose once for each mode and scope."""
    doses = [dose.facts() for dose in plan.doses]
    return {
        "schema_version": KNOCKOUT_VERSION,
        **plain(config.knockout),
        "seed": config.seed,
        "subject": plain(subject),
        "heads_subject": plain(source),
        "same_model": subject.model_digest == source.model_digest,
        "retrieval_heads": [list(head) for head in plan.retrieval_heads.ordered()],
        "num_examples": num_examples,
        "doses": [{"mode": way.mode, "scope": way.scope, **dose} for way in plan.variants for dose in doses],
    }


def _check_heads(scores: HeadScores, loaded: LoadedModel, examples: Sequence[Example]) -> None:
    """The heads exist in the model, and were not chosen by the rows on which they are tested."""
    layout = loaded.layout
    require(
        (scores.num_layers, scores.num_heads) == (layout.num_layers, layout.num_heads),
        "heads",
        f"be of a model with {layout.num_layers} layers x {layout.num_heads} heads",
        f"<{scores.num_layers} layers x {scores.num_heads} heads>",
        "Give a detect run on a model of the same architecture",
        scores.model,
    )
    shared = rows_of(scores.example_ids) & rows_of(example.example_id for example in examples)
    remedy = "Detect on part score and intervene on part eval: heads are not tested on the rows that chose them"
    require(not shared, "heads", "be scored on other rows than they are tested on", f"<{len(shared)} shared>", remedy)


def _measure(
    config: InterveneConfig,
    loaded: LoadedModel,
    examples: Sequence[Example],
    conditions: Sequence[Condition],
    means: Float[Tensor, "layers heads dim"] | None,
    run: StageRun,
) -> tuple[list[dict[str, Any]], float]:
    """Outcomes of every example and condition, in order, and the seconds they took."""
    answering = config.answering
    known = means if means is None else means.to(loaded.model.device)

    def answer(some: Sequence[Condition], group: Sequence[Example], done: Collection[str]) -> Outcomes:
        return outcomes_under(some, answering, loaded, group, means=known, done=done)

    wanted = measurements(conditions, config.knockout, answering, loaded, examples, answer, known)
    return measure(wanted, answering.groups(loaded.model, examples), loaded, run.work_dir / OUTCOMES)


def outcomes_under(
    conditions: Sequence[Condition],
    answering: AnsweringSettings,
    loaded: LoadedModel,
    group: Sequence[Example],
    *,
    means: Float[Tensor, "layers heads dim"] | None = None,
    done: Collection[str] = (),
) -> Iterator[tuple[Condition, list[dict[str, Any]]]]:
    """Answer a batch of examples under every condition, and mark the answers.

    Args:
        conditions: heads to knock out; an empty set is the baseline.
        answering: how to answer.
        loaded: the model.
        group: the batch.
        means: of every head, where a mode needs them.
        done: ids of conditions that need not be answered again.

    Yields:
        Each condition with an outcome per example, JSON-ready; see `answer_under`.
    """
    for answered in answer_under(
        loaded,
        group,
        conditions,
        max_new_tokens=max(map(answering.num_new_tokens, group)),
        chunk_tokens=answering.chunk_tokens,
        means=means,
        done=done,
    ):
        answers = limited(answered.generated, group, answering)
        texts = [str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in answers]
        yield answered.condition, [_outcome(*one) for one in zip(group, texts, answered.gold_nll, strict=True)]


def _outcome(example: Example, text: str, loss: float) -> dict[str, Any]:
    marked = mark_example(example, text)
    values = {"f1": marked.f1, "exact_match": marked.exact_match, "gold_nll": loss}
    return {
        "text": marked.text,
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "unscored": marked.unscored,
    }
