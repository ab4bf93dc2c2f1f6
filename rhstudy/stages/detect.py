"""Stage `detect`: every head's retrieval score on real-task prompts -> `HeadScores`, head map, retrieval heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ContextConfig, ModelConfig, TrackingConfig, require_at_least
from rhstudy.errors import require
from rhstudy.figures import head_map
from rhstudy.heads.attention_mass import MassSettings
from rhstudy.heads.detect import detect
from rhstudy.heads.files import HEAD_TABLE, save_scores, write_head_table
from rhstudy.heads.published import write_published
from rhstudy.heads.published_code import PublishedQuirks
from rhstudy.heads.score import ExampleScore, Mode
from rhstudy.heads.sets import RETRIEVAL_THRESHOLD, retrieval_heads, split_half_reliability
from rhstudy.models.load import LoadedModel
from rhstudy.stages.measurement import run_measurement
from rhstudy.stages.partial import PartialRows
from rhstudy.stages.subject import Subject
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult, StageRun
from rhstudy.types import Example, HeadScores, HeadSet

STAGE = "detect"
PUBLISHED_SCORES = "head_score.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """How heads are scored.

    Attributes:
        mode: ``teacher_forced`` (gold answer, one pass), ``decode`` (the model's own greedy answer),
            ``published_code`` (as the program of Wu et al. counts) or ``attention_mass`` (attention on the needle
            because of the question; needs `top_k`).
        num_examples: how many rows to score, from the first; 0 = all.
        threshold: mean score from which a head is a retrieval head.
        top_k: 0, or take this many heads of highest mean score instead of those past the threshold.
        max_new_tokens: longest decoded answer; 0 = as many as the published program (50) in its mode, 32 in others.
        published: quirks of mode ``published_code``.
        mass: settings of mode ``attention_mass``.
        batch_size: examples per pass.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
    """

    mode: Mode = "teacher_forced"
    num_examples: int = 0
    threshold: float = RETRIEVAL_THRESHOLD
    top_k: int = 0
    max_new_tokens: int = 0
    published: PublishedQuirks = field(default_factory=PublishedQuirks)
    mass: MassSettings = field(default_factory=MassSettings)
    batch_size: int = field(default=1, metadata=NO_DIGEST)
    chunk_tokens: int = field(default=0, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "scoring.threshold", "lie in (0, 1]", self.threshold, "The field uses 0.1")
        require_at_least(self, "scoring", num_examples=0, top_k=0, max_new_tokens=0, batch_size=1, chunk_tokens=0)
        ranked = self.mode != "attention_mass" or self.top_k > 0
        remedy = "Attention mass has no threshold; QRHead takes about the top 1.5 % of heads"
        require(ranked, "scoring.top_k", "be at least 1 in mode attention_mass", self.top_k, remedy)

    def heads(self, scores: HeadScores) -> HeadSet:
        """The retrieval heads by the rule of these settings; errors as `retrieval_heads`."""
        return retrieval_heads(scores, self.threshold, self.top_k)

    def score(self, loaded: LoadedModel, examples: Sequence[Example], **given: Any) -> HeadScores:
        """Scores by these settings of all `examples`; what else is `given`, and errors, as `rhstudy.heads.detect`."""
        return detect(
            loaded.model,
            loaded.tokenizer,
            examples,
            mode=self.mode,
            batch_size=self.batch_size,
            chunk_tokens=self.chunk_tokens,
            max_new_tokens=self.max_new_tokens,
            published=self.published,
            mass=self.mass,
            model_digest=loaded.digest,
            **given,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectConfig:
    """Config of the stage.

    Attributes:
        data: run id or artifact folder of `make-data`.
        part: which part to score on; ``score`` in a study, so that F1 and head scores never share rows.
        checkpoint: run id or artifact folder of `finetune`; empty scores the untuned model.
        model: the base model.
        context: context extension, as in training.
        scoring: how heads are scored.
        seed: of the split halves of the reliability.
        tracking: where the run is recorded.
    """

    data: str = field(metadata=INPUT)
    part: str = "score"
    checkpoint: str = field(default="", metadata=INPUT)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(config: DetectConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Score and record.

    Writes ``scores.safetensors`` + ``scores.json``, ``heads.csv`` (a row a head: mean, standard error, aligned),
    ``head_score.json`` (the published layout; not for attention mass, which may be negative), ``subject.json``.

    Raises:
        InputError: bad references, or a model whose heads cannot be observed exactly.
    """
    return run_measurement(
        STAGE,
        config,
        recorder,
        lambda *measured: _detect(config, *measured),
        role="score_data",
        num_examples=config.scoring.num_examples,
        seed=config.seed,
        parent_run_id=parent_run_id,
        run_name=run_name,
    )


def _detect(
    config: DetectConfig,
    loaded: LoadedModel,
    subject: Subject,
    examples: Sequence[Example],
    data: ArtifactFolder,
    run: StageRun,
) -> Mapping[str, Any]:
    scores, seconds = _score(config, loaded, subject, examples, data.content_digest, run)
    save_scores(scores, run.output_dir)
    heads = config.scoring.heads(scores)
    write_head_table(scores, heads, run.output_dir / HEAD_TABLE)
    if config.scoring.mode != "attention_mass":
        write_published(scores, run.output_dir / PUBLISHED_SCORES)
    run.log_figure("head_map", lambda: head_map(scores.mean(), heads, scores.mode))
    num_tokens = sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    return _headline(scores, len(heads), config.seed) | {
        "scoring_s": seconds,
        "score_tokens_per_s": num_tokens / seconds,
    }


def _score(
    config: DetectConfig,
    loaded: LoadedModel,
    subject: Subject,
    examples: Sequence[Example],
    data_digest: str,
    run: StageRun,
) -> tuple[HeadScores, float]:
    with PartialRows(run.work_dir / "scores.jsonl") as rows:
        finished = {name: _mark(rows.row(name)) for name in rows.rows}
        bar = tqdm(total=len(examples), initial=len(finished), desc=STAGE, unit="example", disable=None)

        def on_scored(group: Sequence[ExampleScore]) -> None:
            rows.add([_row(mark) for mark in group])
            bar.update(len(group))

        with bar:
            scores = config.scoring.score(
                loaded,
                examples,
                label=subject.label,
                data_digest=data_digest,
                seed=subject.seed,
                done=finished,
                on_scored=on_scored,
            )
        return scores, rows.seconds()


def _row(mark: ExampleScore) -> dict[str, Any]:
    return {
        "example_id": mark.example_id,
        "score": mark.score.tolist(),
        "aligned": mark.aligned.tolist(),
        "real_nll": mark.real_nll,
        "unscored": mark.unscored,
        "further": {name: values.tolist() for name, values in mark.further.items()},
    }


def _mark(row: Mapping[str, Any]) -> ExampleScore:
    return ExampleScore(
        example_id=row["example_id"],
        score=np.asarray(row["score"]),
        aligned=np.asarray(row["aligned"]),
        real_nll=row["real_nll"],
        unscored=row["unscored"],
        further={name: np.asarray(values) for name, values in row.get("further", {}).items()},
    )


def _headline(scores: HeadScores, num_retrieval_heads: int, seed: int) -> dict[str, Any]:
    mean = scores.mean()
    return {
        "num_heads": int(mean.size),
        "num_retrieval_heads": num_retrieval_heads,
        "fraction_retrieval": num_retrieval_heads / mean.size,
        "max_mean_score": float(mean.max()),
        "largest_standard_error": float(np.max(scores.standard_error())),
        "num_examples": len(scores.example_ids),
        "num_unscored": len(scores.unscored),
        "real_nll": float(np.mean(scores.real_nll)),
        "split_half_reliability": split_half_reliability(scores, seed).value,
        **{f"max_mean_{name}": float(np.max(scores.mean_further(name))) for name in scores.further},
    }
