"""From generated text to marks: parse the answer, mark it or say why it cannot be marked, sum up a data set.

An example without a gold answer is unscored: counted and named, never averaged in as 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhstudy.evaluation.metrics import exact_match, token_f1
from rhstudy.types import Estimate, Prediction, json_facts

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
    """

    f1: Estimate
    exact_match: Estimate
    gold_nll: Estimate
    num_examples: int
    num_scored: int
    unscored: Mapping[str, int]

    @property
    def num_unscored(self) -> int:
        """Predictions without marks."""
        return self.num_examples - self.num_scored

    def facts(self) -> dict[str, Any]:
        """JSON-ready: numbers, null where undefined with the cause under ``reasons``, ``unscored`` counts by reason."""
        return {
            "num_examples": self.num_examples,
            "num_scored": self.num_scored,
            "num_unscored": self.num_unscored,
            "unscored": dict(self.unscored),
            **json_facts({"f1": self.f1, "exact_match": self.exact_match, "gold_nll": self.gold_nll}),
        }


def summarize_predictions(predictions: Sequence[Prediction]) -> AnswerSummary:
    """Mean marks over scored predictions; NaN with a reason where nothing was scored."""
    scored = [item for item in predictions if not item.unscored]
    none = "no prediction was scored"
    return AnswerSummary(
        f1=_mean([item.f1 for item in scored], none),
        exact_match=_mean([item.exact_match for item in scored], none),
        gold_nll=_mean([item.gold_nll for item in predictions if math.isfinite(item.gold_nll)], "no loss was measured"),
        num_examples=len(predictions),
        num_scored=len(scored),
        unscored=Counter(item.unscored for item in predictions if item.unscored),
    )


def _mean(values: Sequence[float], reason: str) -> Estimate:
    return Estimate(float(np.mean(values))) if values else Estimate.undefined(reason)
