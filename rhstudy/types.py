"""The values that pass between stages: examples, head scores, head sets, predictions. No torch here.

Notation (used everywhere): layer l, query head h (`head` is always a query head), answer tokens w_1..w_T,
prompt tokens x_j, needle span k. Positions are token indices into the prompt, spans are half-open [start, end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from rhstudy.errors import require
from rhstudy.shapes import Float

Head = tuple[int, int]
"""(layer, query head), both counted from 0."""


class Span(NamedTuple):
    """A half-open interval [start, end) of characters or tokens."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """One fact to retrieve, placed when the prompt was built (never searched for afterwards).

    Attributes:
        char_span: characters of the needle text in `Example.prompt`.
        token_span: tokens of `Example.prompt_ids` that overlap `char_span`.
        answer_char_span: characters of the answer inside the needle, in prompt coordinates.
        answer_token_span: tokens that overlap `answer_char_span` or the one space before it, so that the tokens of
            `Example.answer` stand there one by one (many tokenizers make " 1066" a space and four digits).
        body_token_span: where the needle is a document that is cited by its number: its text without the number.
    """

    char_span: Span
    token_span: Span
    answer_char_span: Span
    answer_token_span: Span
    body_token_span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt, its gold answer as the needle spells it, and where the needles are.

    Attributes:
        example_id: unique in its data set; equal ids in two runs are the same example.
        task: its name in `rhstudy.data.tasks.registry`, or ``own``.
        recipe: name of the recipe that made it.
        question: the question as asked.
        answers: every accepted gold answer, for scoring F1 and exact match.
        prompt: the rendered text, chat template included, ending in ``Answer:``.
        answer: ``' '`` + the answer as spelled inside the needle; what the model is taught and scored on.
        needles: where the facts stand; at least one.
        prompt_ids: token ids of `prompt`.
        answer_ids: token ids of `answer`, without end tokens.
        metadata: plain values worth a look, for instance ``gold_position`` and ``num_documents``.
    """

    example_id: str
    task: str
    recipe: str
    question: str
    answers: tuple[str, ...]
    prompt: str
    answer: str
    needles: tuple[Needle, ...]
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_ids)


@runtime_checkable
class Tokenizer(Protocol):
    """What data building needs of a Hugging Face fast tokenizer; keeps torch and transformers out of `data`."""

    chat_template: Any

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Encode; with ``return_offsets_mapping=True`` character offsets come too."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render a conversation with the model's own template."""

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """Token ids to text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadScores:
    """Retrieval scores of every head on every example (SCIENCE definition in `rhstudy.heads.score`).

    Attributes:
        score: fraction of the answer's needle tokens each head copied, 0-1, or what `mode` measures instead (published
            counts may exceed 1, attention mass may be negative); a row of NaN is an unscored example.
        aligned: the same, counting only the annotated answer position of each token; NaN rows as in `score`, and
            wherever the mode has none.
        example_ids: one per row.
        unscored: example id -> reason, for every row of NaN.
        real_nll: mean negative log likelihood of the gold answer tokens in nats per token, from the same run of
            the prompt.
        model: what was scored, for people; `model_digest` is what identifies it.
        model_digest: sha256 of weights and context settings.
        data_digest: sha256 of the data set scored on.
        mode: of `rhstudy.heads.detect` (or ``published``, ``qrhead`` for imported files).
        seed: the root seed of the run, -1 when imported.
        further: what else was measured in the same passes, by name, shaped as `score` (``insight`` of answers that
            cite, ``hop_1``... of attention mass); NaN rows where an example has no such thing.
    """

    score: Float[np.ndarray, "examples layers heads"]
    aligned: Float[np.ndarray, "examples layers heads"]
    example_ids: tuple[str, ...]
    unscored: Mapping[str, str]
    real_nll: Float[np.ndarray, " examples"]
    model: str
    model_digest: str
    data_digest: str
    mode: str
    seed: int
    further: Mapping[str, Float[np.ndarray, "examples layers heads"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.score.shape
        for name, values in self.further.items():
            require(values.shape == shape, f"HeadScores.{name}", f"have shape {shape}", values.shape, "Match")
        require(len(shape) == 3, "HeadScores.score", "have shape (examples, layers, heads)", shape, "Stack per example")
        require(self.aligned.shape == shape, "HeadScores.aligned", f"have shape {shape}", self.aligned.shape, "Match")
        require(
            len(self.example_ids) == shape[0] == len(self.real_nll),
            "HeadScores.example_ids",
            f"name each of the {shape[0]} rows",
            len(self.example_ids),
            "Give one id and one real_nll per row",
        )

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self.score.shape[1])

    @property
    def num_heads(self) -> int:
        """Query heads per layer (the widest layer's, narrower ones padded with NaN)."""
        return int(self.score.shape[2])

    @property
    def num_scored(self) -> int:
        """Examples that could be scored."""
        return len(self.example_ids) - len(self.unscored)

    def mean(self) -> Float[np.ndarray, "layers heads"]:
        """Mean score per head over scored examples; NaN where no example could be scored."""
        scored = self.score[[name not in self.unscored for name in self.example_ids]]
        if not len(scored):
            return np.full(self.score.shape[1:], np.nan)
        return np.asarray(scored.mean(axis=0, dtype=np.float64))  # float32 sums drift past the 0.1 threshold

    def mean_further(self, name: str) -> Float[np.ndarray, "layers heads"]:
        """Mean per head of `further[name]` over the examples that have it; NaN where none has."""
        known = self.further[name][np.isfinite(self.further[name]).any(axis=(1, 2))]
        return np.asarray(known.mean(axis=0, dtype=np.float64)) if len(known) else np.full(self.score.shape[1:], np.nan)

    def standard_error(self) -> Float[np.ndarray, "layers heads"]:
        """Standard error of `mean` over scored examples (ddof 1); NaN with fewer than two."""
        scored = self.score[[name not in self.unscored for name in self.example_ids]]
        if len(scored) < 2:
            return np.full(self.score.shape[1:], np.nan)
        return np.asarray(scored.std(axis=0, ddof=1, dtype=np.float64) / np.sqrt(len(scored)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSet:
    """A set of heads that never loses the rule, model, data and seed that made it.

    Attributes:
        heads: the (layer, head) pairs.
        heads_per_layer: query heads of each layer of the model; two sets compare only when these are equal.
        rule: for instance ``mean score >= 0.1`` or ``top 10 by mean score``.
        model: what was scored.
        data_digest: sha256 of the data set.
        seed: root seed of the scoring run.
    """

    heads: frozenset[Head]
    heads_per_layer: tuple[int, ...]
    rule: str
    model: str
    data_digest: str
    seed: int

    @property
    def num_total(self) -> int:
        """N, all heads of the model."""
        return sum(self.heads_per_layer)

    def __len__(self) -> int:
        return len(self.heads)

    def ordered(self) -> Sequence[Head]:
        """Heads by layer, then head."""
        return sorted(self.heads)


class Estimate(NamedTuple):
    """A number, or NaN with the reason why it is undefined (never 0, never silent)."""

    value: float
    reason: str = ""

    @classmethod
    def undefined(cls, reason: str) -> Estimate:
        """NaN because of `reason`, a clause without a full stop."""
        return cls(float("nan"), reason)


def json_facts(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """`estimates` as JSON values: numbers, null where undefined, and ``reasons`` naming why for each null."""
    values: dict[str, Any] = {name: None if item.reason else item.value for name, item in estimates.items()}
    return {**values, "reasons": {name: item.reason for name, item in estimates.items() if item.reason}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One greedy answer and its marks.

    Attributes:
        example_id: which example.
        text: the generated answer, cut at the first end token or line break.
        answers: accepted gold answers.
        f1: SQuAD token F1 against the best gold answer, 0-1; where documents are cited, their F1 corrected for chance,
            at most 1 and negative below chance; NaN when unscored.
        exact_match: 1.0 when equal to a gold answer after SQuAD normalisation, else 0.0; NaN when unscored.
        gold_nll: mean negative log likelihood of the gold answer, nats per token.
        num_prompt_tokens: prompt length.
        num_new_tokens: tokens generated.
        unscored: the reason when no mark could be given, else empty.
        num_needles: facts that the answer takes.
        cluster: predictions of one cluster are no independent ones; empty = the prediction itself.
        marks: further marks by name, see `rhstudy.evaluation.citations`.
    """

    example_id: str
    text: str
    answers: tuple[str, ...]
    f1: float
    exact_match: float
    gold_nll: float
    num_prompt_tokens: int
    num_new_tokens: int
    unscored: str = ""
    num_needles: int = 1
    cluster: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)
