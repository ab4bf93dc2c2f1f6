"""From generated text to marks: parse the answer, mark it or say why it cannot be marked, sum up a data set.

An example without a gold answer is unscored: counted and named, never averaged in as 0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rhstudy.evaluation.citations import citation_marks, parse_citations
from rhstudy.evaluation.metrics import exact_match, token_f1
from rhstudy.types import Estimate, Example, Prediction, json_facts

_LINE_BREAK = re.compile(r"[\r\n]")


def parse_answer(text: str) -> str:
    """The answer in generated `text`: what stands before its first line break, without surrounding white space.

    Empty when the model's first act is a line break: it did not answer on the line it was asked to.
    """
    return _LINE_BREAK.split(text, maxsplit=1)[0].strip()


def unscored_reason(answers: Sequence[str]) -> str:
    """Why a prediction cannot be marked against `answers`, empty when it can."""
    if not answers:
        return "no gold answer"
    return "" if any(answer.strip() for answer in answers) else "every gold answer is blank"


def mark_answer(
    example_id: str,
    text: str,
    answers: Sequence[str],
    *,
    gold_nll: float = math.nan,
    num_prompt_tokens: int,
    num_new_tokens: int,
) -> Prediction:
    """Parse `text` and mark it against the gold answers; blank gold answers are left out.

    Args:
        example_id: which example.
        text: what the model generated, uncut.
        answers: accepted gold answers.
        gold_nll: mean negative log likelihood of the gold answer, nats per token; NaN where not measured.
        num_prompt_tokens: length of the prompt.
        num_new_tokens: tokens generated.

    Returns:
        The prediction, with F1 and exact match NaN and `unscored` set when there is no gold answer to mark against.
    """
    answer, reason = parse_answer(text), unscored_reason(answers)
    gold = [candidate for candidate in answers if candidate.strip()]
    return Prediction(
        example_id=example_id,
        text=answer,
        answers=tuple(answers),
        f1=math.nan if reason else token_f1(answer, gold),
        exact_match=math.nan if reason else exact_match(answer, gold),
        gold_nll=gold_nll,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        unscored=reason,
    )


def mark_example(example: Example, text: str, *, gold_nll: float = math.nan, num_new_tokens: int = 0) -> Prediction:
    """Parse `text` and mark it as the task of `example` is marked: SQuAD F1, or the chance-corrected F1 of documents.

    Args:
        example: gives the gold answers, its needles and its cluster.
        text: what the model generated, uncut.
        gold_nll: as `mark_answer`.
        num_new_tokens: tokens generated.
    """
    marked = mark_answer(
        example.example_id,
        text,
        example.answers,
        gold_nll=gold_nll,
        num_prompt_tokens=example.num_prompt_tokens,
        num_new_tokens=num_new_tokens,
    )
    told = example.metadata
    known: dict[str, Any] = {"num_needles": len(example.needles), "cluster": str(told.get("cluster", ""))}
    if not told.get("cites") or marked.unscored:
        return dataclasses.replace(marked, **known)
    marks = citation_marks(
        parse_citations(marked.text), parse_citations(example.answers[0]), int(told["num_documents"])
    )
    score, exact = marks.pop("corrected_f1"), marks.pop("exact_match")
    return dataclasses.replace(marked, f1=score, exact_match=exact, marks=marks, **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSummary:
    """Means over the scored predictions of a data set.

    Attributes:
        f1: mean SQuAD F1, 0-1.
        exact_match: share of exact matches, 0-1.
        gold_nll: mean over examples of the gold answer's loss, nats per token, where measured.
        num_examples: predictions given.
        num_scored: those with marks.
        unscored: reason -> number of predictions without marks.
        marks: name -> mean of a further mark over the predictions that have it.
        f1_by_needles: needles of an example -> mean F1 of those with so many; empty where all have one, or cite.
        num_clusters: independent rows among the scored ones.
    """

    f1: Estimate
    exact_match: Estimate
    gold_nll: Estimate
    num_examples: int
    num_scored: int
    unscored: Mapping[str, int]
    marks: Mapping[str, Estimate] = field(default_factory=dict)
    f1_by_needles: Mapping[int, Estimate] = field(default_factory=dict)
    num_clusters: int = 0

    @property
    def num_unscored(self) -> int:
        """Predictions without marks."""
        return self.num_examples - self.num_scored

    def further(self) -> dict[str, Estimate]:
        """Means that only some tasks have: further marks, and ``f1_2_needles``... of multi-hop questions."""
        return {**self.marks, **{f"f1_{count}_needles": value for count, value in self.f1_by_needles.items()}}

    def facts(self) -> dict[str, Any]:
        """JSON-ready: numbers, null where undefined with the cause under ``reasons``, ``unscored`` counts by reason."""
        return {
            "num_examples": self.num_examples,
            "num_scored": self.num_scored,
            "num_unscored": self.num_unscored,
            "unscored": dict(self.unscored),
            "num_clusters": self.num_clusters,
            **json_facts({"f1": self.f1, "exact_match": self.exact_match, "gold_nll": self.gold_nll, **self.further()}),
        }


def summarize_predictions(predictions: Sequence[Prediction]) -> AnswerSummary:
    """Mean marks over scored predictions; NaN with a reason where nothing was scored."""
    scored = [item for item in predictions if not item.unscored]
    none = "no prediction was scored"
    names = sorted({name for item in scored for name in item.marks})
    counts = sorted({item.num_needles for item in scored})
    return AnswerSummary(
        f1=_mean([item.f1 for item in scored], none),
        exact_match=_mean([item.exact_match for item in scored], none),
        gold_nll=_mean([item.gold_nll for item in predictions if math.isfinite(item.gold_nll)], "no loss was measured"),
        num_examples=len(predictions),
        num_scored=len(scored),
        unscored=Counter(item.unscored for item in predictions if item.unscored),
        marks={name: _mean([item.marks[name] for item in scored if name in item.marks], none) for name in names},
        f1_by_needles={} if names or counts in ([1], []) else {
            count: _mean([item.f1 for item in scored if item.num_needles == count], none) for count in counts
        },
        num_clusters=len({item.cluster or item.example_id for item in scored}),
    )  # fmt: skip


def _mean(values: Sequence[float], reason: str) -> Estimate:
    return Estimate(float(np.mean(values))) if values else Estimate.undefined(reason)
