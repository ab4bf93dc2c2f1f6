"""Answers of a batch of examples under every condition of an experiment, each prompt run as seldom as can be.

    decode              one prefix for all conditions, which are forks of it, as many at once as fit
    prefill_and_decode  a prefix for each condition, run with its heads knocked out, then one fork
    published_decode    one prefix for all; one condition at a time

A model that drops keys (a sliding window) answers under one condition at a time, with the same results.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rhstudy.interventions.conditions import Condition
from rhstudy.interventions.knockout import Spans, knock_out, knock_out_forks, require_mode
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import PaddedBatch, pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.forks import Forks, forkable, forks_that_fit, gold_forks, greedy_forks
from rhstudy.models.generate import Prefix, from_last_token, gold_nll, prefix, stop_token_ids
from rhstudy.models.load import LoadedModel
from rhstudy.shapes import Float
from rhstudy.types import Example, Span

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a batch of examples came to under one condition.

    Attributes:
        condition: which.
        generated: ids of each example's greedy answer, without end tokens.
        gold_nll: mean negative log likelihood of each gold answer, nats per token.
    """

    condition: Condition
    generated: list[list[int]]
    gold_nll: list[float]


def needle_spans(examples: Sequence[Example], pads: Sequence[int]) -> list[list[Span]]:
    """The needles of each example as positions in a batch whose prompts are padded on the left."""
    return [
        [Span(pad + needle.token_span.start, pad + needle.token_span.end) for needle in example.needles]
        for example, pad in zip(examples, pads, strict=True)
    ]


def answer_under(
    loaded: LoadedModel,
    group: Sequence[Example],
    conditions: Sequence[Condition],
    *,
    max_new_tokens: int,
    chunk_tokens: int = 0,
    means: Float[Tensor, "layers heads dim"] | None = None,
    done: Collection[str] = (),
) -> Iterator[Answered]:
    """Answer a batch of examples under every condition.

    Args:
        loaded: the model.
        group: the batch.
        conditions: heads to knock out, how and where; an empty set is the baseline.
        max_new_tokens: longest answer.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
        means: where a condition's mode is ``mean_output``; see `rhstudy.interventions.means`.
        done: ids of conditions that are known already. Conditions are run together as without it, so that the others'
            outcomes are the same bit for bit; only where all that are run together are done are they left out.

    Yields:
        The outcome of each condition that was run, in their order.

    Raises:
        InputError: an unknown mode or scope, or what `knock_out` refuses.
    """
    for condition in conditions:
        require_mode(condition.mode, condition.scope)
    make_observable(loaded.model)
    run = _Group(loaded, group, max_new_tokens, chunk_tokens, means)
    for part in run.parts(conditions):
        if any(condition.condition_id not in done for condition in part):
            with torch.inference_mode():
                answered = run.answer(part)
            yield from answered


class _Group:
    """One batch of examples, and the prefix its conditions share."""

    def __init__(
        self, loaded: LoadedModel, group: Sequence[Example], max_new: int, chunk_tokens: int, means: Tensor | None
    ) -> None:
        self._model: PreTrainedModel = loaded.model
        self._batch: PaddedBatch = pad_batch(
            [example.prompt_ids for example in group], [[]] * len(group), loaded.pad_id, loaded.model.device
        )
        self._gold = [example.answer_ids for example in group]
        self._max_new, self._chunk_tokens, self._means = max_new, chunk_tokens, means
        self._needles: Spans = needle_spans(group, self._batch.pads)
        self._stops = stop_token_ids(loaded.model, loaded.tokenizer.eos_token_id)
        self._forkable = forkable(loaded.model)
        self._num_rows = max(max_new, *map(len, self._gold))
        self._shared: Prefix | None = None
        self._most_forks = 1

    def parts(self, conditions: Sequence[Condition]) -> list[Sequence[Condition]]:
        """The conditions that are run at once, in their order; each part has one scope."""
        found: list[Sequence[Condition]] = []
        for scope, several in itertools.groupby(conditions, lambda condition: condition.scope):
            found += in_parts(list(several), self._fit(1) if scope == "decode" and self._forkable else 1)
        self._most_forks = max(map(len, found), default=1)
        return found

    def answer(self, conditions: Sequence[Condition]) -> list[Answered]:
        """The outcomes of one part."""
        scope = conditions[0].scope
        if scope == "prefill_and_decode":
            with self._knocked_out(conditions):
                start = self._prefix(1)
        else:
            self._shared = start = self._shared or self._prefix(self._most_forks)
        if self._forkable and scope != "published_decode":
            return self._forked(start, conditions)
        return [self._alone(start, condition) for condition in conditions]

    def _fit(self, at_once: int) -> int:
        num_examples, num_tokens = len(self._batch.pads), self._batch.num_prompt
        return forks_that_fit(self._model, num_examples, num_tokens, self._num_rows, at_once)

    def _prefix(self, num_forks: int) -> Prefix:
        room = num_forks * self._num_rows + 1
        return prefix(self._model, self._batch, chunk_tokens=self._chunk_tokens, room=room)

    def _knocked_out(self, conditions: Sequence[Condition]) -> AbstractContextManager[None]:
        knockouts = [(condition.heads, condition.mode) for condition in conditions]
        return knock_out_forks(self._model, knockouts, means=self._means, needles=self._needles)

    def _forked(self, start: Prefix, conditions: Sequence[Condition]) -> list[Answered]:
        losses: list[list[float]] = []
        for part in in_parts(conditions, self._fit(max(map(len, self._gold)))):
            with self._knocked_out(part):
                losses += gold_forks(Forks(self._model, start, len(part), self._num_rows), self._gold).tolist()
        with self._knocked_out(conditions):
            forks = Forks(self._model, start, len(conditions), self._num_rows)
            said = greedy_forks(forks, max_new_tokens=self._max_new, stop_ids=self._stops)
        found = zip(conditions, said, losses, strict=True)
        return [Answered(condition=one, generated=ids, gold_nll=loss) for one, ids, loss in found]

    def _alone(self, start: Prefix, condition: Condition) -> Answered:
        def knocked_out() -> AbstractContextManager[None]:
            return knock_out(self._model, condition.heads, condition.mode, means=self._means, needles=self._needles)

        late = condition.scope == "published_decode"
        early, after = (nullcontext(), knocked_out()) if late else (knocked_out(), nullcontext())
        with early, from_last_token(self._model, start) as prompt, after:
            losses = gold_nll(self._model, prompt, self._gold).tolist()
            said = greedy(self._model, prompt, max_new_tokens=self._max_new, stop_ids=self._stops)
        return Answered(condition=condition, generated=said, gold_nll=losses)


def in_parts(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """As few parts of at most `most` items as may be, alike in size, the largest first."""
    number = -(-len(items) // most)
    size, larger = divmod(len(items), number)
    ends = [0, *itertools.accumulate(size + (part < larger) for part in range(number))]
    return [items[start:end] for start, end in itertools.pairwise(ends)]
