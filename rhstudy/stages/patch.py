"""Stage `patch`: heads of a donor put into a recipient while it answers -> the share of the gap that they close.

Donor and recipient are two models fine-tuned from one base, in one context extension: the real-data model and one
trained on synthetic data, in either direction, or two seeds of the real-data model (the null patch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, plain
from rhstudy.errors import require
from rhstudy.evaluation.answering import AnsweringSettings, limited
from rhstudy.evaluation.answers import mark_example
from rhstudy.figures import patch_bars, patch_points
from rhstudy.heads.files import load_scores
from rhstudy.heads.sets import retrieval_heads
from rhstudy.interventions.pairs import require_pair
from rhstudy.interventions.patch_plan import PatchCondition, PatchPlan, PatchSettings, plan_patches
from rhstudy.interventions.patch_runs import Answered, PatchRuns, batch_that_fits
from rhstudy.models.generate import stop_token_ids
from rhstudy.models.load import LoadedModel
from rhstudy.stages.detect import STAGE as DETECT
from rhstudy.stages.finetune import STAGE as FINETUNE
from rhstudy.stages.inputs import checkpoint_input
from rhstudy.stages.measurement import rows_of, run_measurement
from rhstudy.stages.outcomes import CONDITIONS, write_json
from rhstudy.stages.partial import PartialRows
from rhstudy.stages.patch_outcomes import METRICS, PATCHES, headline, read_patching, write_patches, write_patching
from rhstudy.stages.subject import Subject, lent_subject, read_subject, require_stage
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun
from rhstudy.types import Example, HeadScores

STAGE = "patch"
DONOR_SUBJECT = "donor_subject.json"
_KEYS = ("example_id", "condition")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data`.
        heads: run id or artifact folder of `detect` on the recipient.
        donor_heads: run id or artifact folder of `detect` on the donor.
        part: ``eval`` in a study; never the rows the heads were scored on.
        checkpoint: run id or artifact folder of `finetune`: the recipient; empty = the untuned model.
        donor_checkpoint: run id or artifact folder of `finetune`: the donor; empty = the untuned model.
        null: run id or artifact folder of `patch` between two seeds of the real-data model, shown beside this one.
        model: the base model of both.
        context: context extension of both, as in training.
        patching: which heads, at which rows, and the controls.
        answering: how answers are generated.
        seed: of the random heads and of the bootstrap.
        tracking: where the run is recorded.
    """

    data: str = field(metadata=INPUT)
    heads: str = field(metadata=INPUT)
    donor_heads: str = field(metadata=INPUT)
    part: str = "eval"
    checkpoint: str = field(default="", metadata=INPUT)
    donor_checkpoint: str = field(default="", metadata=INPUT)
    null: str = field(default="", metadata=INPUT)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    patching: PatchSettings = field(default_factory=PatchSettings)
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(config: PatchConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Patch, answer, mark and record.

    Writes ``patches.jsonl`` (a row per example and condition), ``patches.csv`` (a row per condition),
    ``conditions.json`` (every condition's heads), ``patching.json`` (means, shares of the gap, counter-examples),
    ``subject.json`` (the recipient) and ``donor_subject.json``.

    Raises:
        InputError: bad references or settings, heads of another model than the one they are given for, models that are
            no pair (`require_pair`), or rows the heads were scored on.
    """
    heads = {name: resolve(recorder, getattr(config, name)) for name in ("heads", "donor_heads")}
    for name, artifacts in heads.items():
        require_stage(artifacts, DETECT, name)
    further = {f"donor_{role}": item for role, item in checkpoint_input(recorder, config.donor_checkpoint).items()}
    for name, artifacts in further.items():
        require_stage(artifacts, FINETUNE, name)
    if config.null:
        further["null"] = resolve(recorder, config.null)
        require_stage(further["null"], STAGE, "null")
    return run_measurement(
        STAGE,
        config,
        recorder,
        lambda recipient, subject, examples, _data, stage_run: _patch(
            config, {**heads, **further}, recipient, subject, examples, stage_run
        ),
        role="eval_data",
        num_examples=config.answering.num_examples,
        seed=config.seed,
        parent_run_id=parent_run_id,
        run_name=run_name,
        further_inputs={**heads, **further},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedPair:
    """Both models and what is patched between them.

    Attributes:
        donor: whose z is taken.
        recipient: into which it is put; another model object.
        plan: the conditions.
    """

    donor: LoadedModel
    recipient: LoadedModel
    plan: PatchPlan


def _patch(
    config: PatchConfig,
    inputs: Mapping[str, ArtifactFolder],
    recipient: LoadedModel,
    subject: Subject,
    examples: Sequence[Example],
    run: StageRun,
) -> Mapping[str, Any]:
    with lent_subject(config.model, config.context, inputs.get("donor_checkpoint")) as (donor, donor_subject):
        require_pair(donor, recipient)
        plan = _plan(config, inputs, {"heads": subject, "donor_heads": donor_subject}, examples)
        outcomes, seconds = _measure(config, PatchedPair(donor=donor, recipient=recipient, plan=plan), examples, run)
    write_json(run.output_dir / DONOR_SUBJECT, plain(donor_subject))
    run.set_tags({"rhstudy.donor": donor_subject.label})
    facts = {
        "schema_version": 1,
        **plain(config.patching),
        "seed": config.seed,
        "subject": plain(subject),
        "donor_subject": plain(donor_subject),
        "same_recipe": subject.recipe == donor_subject.recipe,
        "num_examples": len(examples),
    }
    sets, conditions = [item.facts() for item in plan.sets], [condition.facts() for condition in plan.conditions]
    write_json(run.output_dir / CONDITIONS, {**facts, "planned_sets": sets, "conditions": conditions})
    means = write_patches(run.output_dir, outcomes)
    null = read_patching(inputs["null"]) if "null" in inputs else None
    found = write_patching(run, facts, sets, outcomes, null)
    for metric in METRICS if found else ():
        for positions in config.patching.positions:
            title = f"{donor_subject.label} -> {subject.label}"
            run.log_figure(f"patches_{positions}_{metric}", _bars(found, positions, metric, title))
    return {
        **headline(means, found),
        **{f"num_heads_{item['of_set']}": item["num_heads"] for item in sets},
        "num_conditions": len(conditions),
        "num_examples": len(examples),
        "patching_s": seconds,
        "answers_per_s": len(outcomes) / seconds,
    }


def _bars(found: Mapping[str, Any], positions: str, metric: str, title: str) -> Callable[[], Any]:
    gap = found["models"][metric]
    return lambda: patch_bars(patch_points(found["patches"], positions, metric), gap, metric, f"{title}\n{positions}")


def _plan(
    config: PatchConfig,
    inputs: Mapping[str, ArtifactFolder],
    subjects: Mapping[str, Subject],
    examples: Sequence[Example],
) -> PatchPlan:
    patching, found = config.patching, {}
    for name, subject in subjects.items():
        scores = load_scores(inputs[name].path)
        _check_heads(name, scores, read_subject(inputs[name]), subject, examples)
        found[name] = retrieval_heads(scores, patching.threshold, patching.top_k)
    real, other = ("donor_heads", "heads") if patching.real_model == "donor" else ("heads", "donor_heads")
    return plan_patches(found[real], found[other], patching, config.seed)


def _check_heads(name: str, scores: HeadScores, scored: Subject, subject: Subject, examples: Sequence[Example]) -> None:
    """The heads are of the very model they are given for, and were not chosen by the rows on which they are tested."""
    remedy = "Give the detect run of the same checkpoint, base, context and number format"
    same = scored.model_digest == subject.model_digest
    require(same, name, f"be scored on the model they are given for, {subject.label}", scored.label, remedy)
    shared = rows_of(scores.example_ids) & rows_of(example.example_id for example in examples)
    remedy = "Detect on part score and patch on part eval: heads are not tested on the rows that chose them"
    require(not shared, name, "be scored on other rows than they are tested on", f"<{len(shared)} shared>", remedy)


def _measure(
    config: PatchConfig, pair: PatchedPair, examples: Sequence[Example], run: StageRun
) -> tuple[list[dict[str, Any]], float]:
    """Outcomes of every example and condition, in order, and the seconds they took."""
    conditions = pair.plan.conditions
    with (
        PartialRows(run.work_dir / PATCHES, _KEYS) as done,
        tqdm(
            total=len(examples) * len(conditions), initial=len(done.rows), desc=STAGE, unit="answer", disable=None
        ) as bar,
    ):
        for group in _groups(config, pair, examples):
            finished = _finished(conditions, group, done)
            if len(finished) < len(conditions):
                for _, rows in patched_outcomes(config, pair, group, finished):
                    new = [row for row in rows if tuple(row[key] for key in _KEYS) not in done]
                    done.add(new)
                    bar.update(len(new))
        rows = [
            done.row((example.example_id, condition.condition_id)) for example in examples for condition in conditions
        ]
        return rows, done.seconds()


def _finished(conditions: Sequence[PatchCondition], group: Sequence[Example], done: PartialRows) -> set[str]:
    """Ids of the conditions that are known for all examples of a batch."""
    names = [example.example_id for example in group]
    found = {condition.condition_id for condition in conditions}
    return {identity for identity in found if all((name, identity) in done for name in names)}


def _groups(config: PatchConfig, pair: PatchedPair, examples: Sequence[Example]) -> list[Sequence[Example]]:
    if config.answering.batch_size:
        return config.answering.groups(pair.recipient.model, examples)
    longest = max(example.num_prompt_tokens + config.answering.num_new_tokens(example) for example in examples)
    whole = len(pair.plan.heads) if "all_positions" in config.patching.positions else 0
    size = batch_that_fits(pair.recipient.model, longest, whole)
    return [examples[start : start + size] for start in range(0, len(examples), size)]


@torch.inference_mode()
def patched_outcomes(
    config: PatchConfig, pair: PatchedPair, group: Sequence[Example], done: Collection[str]
) -> Iterator[tuple[PatchCondition, list[dict[str, Any]]]]:
    """Answer a batch of examples under every condition.

    Args:
        config: how to answer.
        pair: the models and the plan.
        group: the batch.
        done: ids of conditions that are known for all of these; see `PatchRuns.answers`.

    Yields:
        Conditions as they are answered, with a row per example, JSON-ready.
    """
    recipient, answering = pair.recipient, config.answering
    runs = PatchRuns(
        pair.donor.model,
        recipient.model,
        [example.prompt_ids for example in group],
        [example.answer_ids for example in group],
        pair.plan.heads,
        max_new_tokens=max(map(answering.num_new_tokens, group)),
        stop_ids=stop_token_ids(recipient.model, recipient.tokenizer.eos_token_id),
        pad_id=recipient.pad_id,
        chunk_tokens=answering.chunk_tokens,
        positions=config.patching.positions,
    )
    for condition, answered in runs.answers(pair.plan.conditions, done):
        yield condition, _rows(condition, answered, group, recipient, answering)


def _rows(
    condition: PatchCondition,
    answered: Answered,
    group: Sequence[Example],
    recipient: LoadedModel,
    answering: AnsweringSettings,
) -> list[dict[str, Any]]:
    answers, losses = limited(answered.tokens, group, answering), answered.gold_nll.tolist()
    rows = []
    for example, tokens, loss in zip(group, answers, losses, strict=True):
        marked = mark_example(example, str(recipient.tokenizer.decode(tokens, skip_special_tokens=True)))
        values = {"f1": marked.f1, "exact_match": marked.exact_match, "gold_nll": loss}
        rows.append(
            {
                "example_id": example.example_id,
                "cluster": str(example.metadata.get("cluster") or example.example_id),
                **condition.labels(),
                "text": marked.text,
                **{name: value if math.isfinite(value) else None for name, value in values.items()},
                "unscored": marked.unscored,
            }
        )
    return rows
