"""Stage `intervene`: knock retrieval heads out while the model answers -> what each dose costs, against random heads.

Each prompt is run once up to its last token without any knockout; every condition, the baseline included, goes on from
that shared prefix with its heads knocked out (`decode` scope).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, plain
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings, limited
from rhstudy.evaluation.answers import mark_example
from rhstudy.figures import dose_curve, dose_points
from rhstudy.heads.files import load_scores
from rhstudy.interventions.answering import answer_under
from rhstudy.interventions.conditions import Condition, KnockoutSettings, plan_knockout
from rhstudy.models.attention import make_observable
from rhstudy.models.load import LoadedModel
from rhstudy.stages.detect import STAGE as DETECT
from rhstudy.stages.measurement import rows_of, run_measurement
from rhstudy.stages.outcomes import (
    CONDITIONS,
    METRICS,
    OUTCOMES,
    condition_means,
    headline,
    write_json,
    write_necessity,
    write_outcomes,
)
from rhstudy.stages.partial import PartialRows
from rhstudy.stages.subject import Subject, read_subject, require_stage
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun
from rhstudy.types import Example, HeadScores

STAGE = "intervene"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data`.
        heads: run id or artifact folder of `detect`: whose heads are knocked out. It may be of another model of this
            shape, for instance the real-data model's heads in a model trained on synthetic data.
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

    Writes ``outcomes.jsonl`` (a row per example and condition), ``outcomes.csv`` (a row per condition),
    ``conditions.json`` (every condition's heads), ``necessity.json`` (the statistics), ``subject.json``.

    Raises:
        InputError: bad references or settings, heads of a model of another shape, or rows the heads were scored on.
    """
    heads = resolve(recorder, config.heads)
    require_stage(heads, DETECT, "heads")
    return run_measurement(
        STAGE,
        config,
        recorder,
        lambda loaded, subject, examples, _data, stage_run: _intervene(
            config, heads, loaded, subject, examples, stage_run
        ),
        role="eval_data",
        num_examples=config.answering.num_examples,
        seed=config.seed,
        parent_run_id=parent_run_id,
        run_name=run_name,
        further_inputs={"heads": heads},
    )


def _intervene(
    config: InterveneConfig,
    heads: ArtifactFolder,
    loaded: LoadedModel,
    subject: Subject,
    examples: Sequence[Example],
    run: StageRun,
) -> Mapping[str, Any]:
    scores, source = load_scores(heads.path), read_subject(heads)
    _check_heads(scores, loaded, examples)
    run.set_tags({"rhstudy.heads_of": source.label})
    plan = plan_knockout(scores, config.knockout, config.seed)
    facts = {
        "schema_version": 1,
        **plain(config.knockout),
        "seed": config.seed,
        "subject": plain(subject),
        "heads_subject": plain(source),
        "same_model": subject.model_digest == source.model_digest,
        "retrieval_heads": [list(head) for head in plan.retrieval_heads.ordered()],
        "num_examples": len(examples),
    }
    doses = [dose.facts() for dose in plan.doses]
    conditions = [condition.facts() for condition in plan.conditions]
    write_json(run.output_dir / CONDITIONS, {**facts, "doses": doses, "conditions": conditions})
    outcomes, seconds = _measure(config, loaded, examples, plan.conditions, run)
    means = condition_means(outcomes)
    write_outcomes(run.output_dir, outcomes, means)
    found = write_necessity(run, facts, doses, outcomes)
    title = f"{subject.label}, heads of {'its own' if facts['same_model'] else source.label}"
    for metric in METRICS if found else ():
        run.log_figure(f"dose_curve_{metric}", _curve(found, metric, title))
    return {
        **headline(means, found),
        "num_retrieval_heads": len(plan.retrieval_heads),
        **{f"num_draws_top{dose['dose']}": dose["num_draws"] for dose in doses},
        "num_conditions": len(plan.conditions),
        "num_examples": len(examples),
        "num_unscored": len(examples) - means[0]["num_scored"],
        "intervention_s": seconds,
        "answers_per_s": len(outcomes) / seconds,
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
    run: StageRun,
) -> tuple[list[dict[str, Any]], float]:
    """Outcomes of every example and condition, in order, and the seconds they took."""
    make_observable(loaded.model)
    each = len(conditions)
    with PartialRows(run.work_dir / OUTCOMES) as done:
        known = len(done.rows) * each
        with tqdm(total=len(examples) * each, initial=known, desc=STAGE, unit="answer", disable=None) as bar:
            for group in config.answering.groups(loaded.model, examples):
                if not all(example.example_id in done for example in group):
                    answered = []
                    for outcomes in outcomes_under(conditions, config, loaded, group):
                        answered.append(outcomes)
                        bar.update(len(group))
                    done.add(_rows(group, answered))
        rows = [
            {"example_id": example.example_id, **outcome}
            for example in examples
            for outcome in done.row(example.example_id)["outcomes"]
        ]
        return rows, done.seconds()


def _rows(group: Sequence[Example], answered: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"example_id": example.example_id, "outcomes": [outcomes[index] for outcomes in answered]}
        for index, example in enumerate(group)
    ]


def outcomes_under(
    conditions: Sequence[Condition], config: InterveneConfig, loaded: LoadedModel, group: Sequence[Example]
) -> Iterator[list[dict[str, Any]]]:
    """Answer a batch of examples under every condition, and mark the answers.

    Args:
        conditions: heads to knock out; an empty set is the baseline.
        config: how to answer.
        loaded: the model.
        group: the batch.

    Yields:
        For each condition an outcome per example, JSON-ready.
    """
    answering, tokenizer = config.answering, loaded.tokenizer
    longest = max(map(answering.num_new_tokens, group))
    found = answer_under(loaded, group, conditions, max_new_tokens=longest, chunk_tokens=answering.chunk_tokens)
    for answered in found:
        answers = limited(answered.generated, group, answering)
        texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in answers]
        marked = zip(group, texts, answered.gold_nll, strict=True)
        yield [_outcome(answered.condition, *one) for one in marked]


def _outcome(condition: Condition, example: Example, text: str, loss: float) -> dict[str, Any]:
    marked = mark_example(example, text)
    values = {"f1": marked.f1, "exact_match": marked.exact_match, "gold_nll": loss}
    return {
        "condition": condition.condition_id,
        "kind": condition.kind,
        "dose": condition.dose,
        "draw": condition.draw,
        "text": marked.text,
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "unscored": marked.unscored,
    }


def _curve(doses: Sequence[Mapping[str, Any]], metric: str, title: str) -> Callable[[], Any]:
    baseline = doses[0][metric]["baseline"]
    return lambda: dose_curve(dose_points(doses, metric), baseline=baseline, metric=metric, title=title)
