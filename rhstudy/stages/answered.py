"""Every example measured under every condition of a knockout, each result on disk before the next is begun.

Three things are measured: answers on the examples themselves, and where asked for the control behaviours, answers with
the gold passages alone and the loss on plain text (`rhstudy.data.control_prompts`). A stage killed at any moment goes
on at the condition it was at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from rhstudy.data.control_prompts import gold_alone, plain_text
from rhstudy.data.encode import Encoder
from rhstudy.evaluation.answering import AnsweringSettings
from rhstudy.interventions.behaviours import text_losses
from rhstudy.interventions.conditions import NEEDLE_MODE, Condition, KnockoutSettings
from rhstudy.models.attention import make_observable
from rhstudy.models.load import LoadedModel
from rhstudy.shapes import Float
from rhstudy.stages.partial import PartialRows
from rhstudy.types import Example

Outcomes = Iterator[tuple[Condition, Sequence[Mapping[str, Any]]]]
Answers = Callable[[Sequence[Condition], Sequence[Example], Collection[str]], Outcomes]
"""Called with conditions, a batch of examples and the ids of conditions that are done for all of these; gives the other
conditions, perhaps some of the done ones again, each with an outcome per example."""
_KEYS = ("example_id", "condition", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing that is measured under some conditions.

    Attributes:
        name: ``answer``, ``short_qa`` or ``text``.
        conditions: under which.
        answer: measures it.
    """

    name: str
    conditions: tuple[Condition, ...]
    answer: Answers


def measurements(
    conditions: Sequence[Condition],
    settings: KnockoutSettings,
    answering: AnsweringSettings,
    loaded: LoadedModel,
    examples: Sequence[Example],
    answer: Answers,
    means: Float[Tensor, "layers heads dim"] | None = None,
) -> list[Measurement]:
    """What is measured, in order.

    Args:
        conditions: of the plan.
        settings: which control behaviours.
        answering: batches of plain text follow those of the answers.
        loaded: the model.
        examples: all of them; short prompts and texts are cut out of them.
        answer: answers a batch under conditions.
        means: of every head, where a mode needs them.

    Raises:
        InputError: control behaviours of examples that do not say where their passages stand.
    """
    found = [Measurement(name="answer", conditions=tuple(conditions), answer=answer)]
    shown = tuple(item for item in conditions if settings.shows_behaviour(item))
    if "short_qa" in settings.behaviours and any(item.kind != "baseline" for item in shown):
        short = _short_answers(answer, examples, Encoder(loaded.tokenizer))
        found.append(Measurement(name="short_qa", conditions=shown, answer=short))
    # A text has no needle to hide.
    shown = tuple(item for item in shown if item.kind == "baseline" or item.mode != NEEDLE_MODE)
    if "text" in settings.behaviours and any(item.kind != "baseline" for item in shown):
        texts = {
            example.example_id: plain_text(example, loaded.tokenizer, settings.num_text_tokens) for example in examples
        }
        losses = _text_losses(loaded, texts, answering.batch_size or len(examples), means)
        found.append(Measurement(name="text", conditions=shown, answer=losses))
    return found


def _short_answers(answer: Answers, examples: Sequence[Example], encoder: Encoder) -> Answers:
    short = {example.example_id: gold_alone(example, encoder) for example in examples}

    def answers(conditions: Sequence[Condition], group: Sequence[Example], done: Collection[str]) -> Outcomes:
        for condition, outcomes in answer(conditions, [short[example.example_id] for example in group], done):
            yield condition, [{"short_f1": item["f1"], "short_nll": item["gold_nll"]} for item in outcomes]

    return answers


def _text_losses(
    loaded: LoadedModel, texts: Mapping[str, Sequence[int]], batch_size: int, means: Tensor | None
) -> Answers:
    def losses(conditions: Sequence[Condition], group: Sequence[Example], done: Collection[str]) -> Outcomes:
        known: dict[Any, list[dict[str, Any]]] = {}
        for condition in conditions:
            key = condition.mode, condition.heads  # the scope makes no difference to a text
            if key not in known and condition.condition_id not in done:
                read = [texts[example.example_id] for example in group]
                found = text_losses(condition, loaded, read, batch_size, means)
                known[key] = [{"text_nll": loss} for loss in found]
            if condition.condition_id not in done:
                yield condition, known[key]

    return losses


def measure(
    measured: Sequence[Measurement], batches: Sequence[Sequence[Example]], loaded: LoadedModel, path: Path
) -> tuple[list[dict[str, Any]], float]:
    """A row per example and condition, in the order of the examples, and the seconds they took.

    Args:
        measured: from `measurements`, the answers first.
        batches: the examples as they are answered together.
        loaded: the model.
        path: unfinished work; rows that are there are not measured again.
    """
    make_observable(loaded.model)
    examples = [example for group in batches for example in group]
    total = len(examples) * sum(len(item.conditions) for item in measured)
    with (
        PartialRows(path, _KEYS) as done,
        tqdm(total=total, initial=len(done.rows), desc="intervene", unit="answer", disable=None) as bar,
    ):
        for group in batches:
            for item in measured:
                _finish(item, group, done, bar)
        return list(_rows(measured, examples, done)), done.seconds()


def _finish(item: Measurement, group: Sequence[Example], done: PartialRows, bar: tqdm[Any]) -> None:
    """Measure what is missing of one batch, a condition at a time."""

    def missing(condition: Condition) -> list[int]:
        keys = [(example.example_id, condition.condition_id, item.name) for example in group]
        return [index for index, key in enumerate(keys) if key not in done]

    finished = {condition.condition_id for condition in item.conditions if not missing(condition)}
    if len(finished) == len(item.conditions):
        return
    for condition, outcomes in item.answer(item.conditions, group, finished):
        rows = [
            dict(zip(_KEYS, (group[index].example_id, condition.condition_id, item.name), strict=True))
            | {"outcome": outcomes[index]}
            for index in missing(condition)
        ]
        if rows:
            done.add(rows)
            bar.update(len(rows))


def _rows(measured: Sequence[Measurement], examples: Sequence[Example], done: PartialRows) -> Iterator[dict[str, Any]]:
    answers, *behaviours = measured
    for example in examples:
        cluster = str(example.metadata.get("cluster") or example.example_id)
        for condition in answers.conditions:
            at = example.example_id, condition.condition_id
            row = {"short_f1": None, "short_nll": None, "text_nll": None}
            for item in behaviours:
                if (*at, item.name) in done:
                    row |= done.row((*at, item.name))["outcome"]
            outcome = done.row((*at, answers.name))["outcome"]
            yield {"example_id": at[0], "cluster": cluster, **condition.names(), **outcome, **row}
