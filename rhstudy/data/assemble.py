"""From a fact and its haystack to an `Example` of the wanted length, needle and answer placed in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhstudy.data.align import placed_needle
from rhstudy.data.encode import Encoder, check_answer
from rhstudy.data.facts import Fact, Passage, UnbuildableRowError
from rhstudy.data.fill import Distractors, Filling, fill
from rhstudy.data.layout import Layout, Rendered, render
from rhstudy.data.positions import PositionLaw, place
from rhstudy.errors import message
from rhstudy.types import Example, Span

TOLERANCE = 16
"""Every prompt has between `num_tokens - TOLERANCE` and `num_tokens` tokens."""
_AIM_BELOW = 3
_MAX_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What an example is called.

    Attributes:
        example_id: unique in the data set.
        task: for instance ``mdqa``.
        recipe: name of the recipe.
        metadata: plain values to keep with it.
    """

    example_id: str
    task: str
    recipe: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def assemble(
    fact: Fact,
    haystack: Iterator[Passage],
    layout: Layout,
    encoder: Encoder,
    num_tokens: int,
    rng: np.random.Generator,
    label: Label,
    law: PositionLaw = "uniform",
) -> Example:
    """Build one example.

    The needle stands at a position uniform over the passages, the distractors in random order around it.

    Args:
        fact: the needle and its question.
        haystack: distractors, best first.
        layout: documents or lines.
        encoder: the model's tokenizer.
        num_tokens: length of the prompt; see `TOLERANCE`.
        rng: the example's own stream.
        label: its name.
        law: where among the passages needles stand.

    Raises:
        UnbuildableRowError: the prompt is shorter than the needle, or the haystack too small.
        InputError: the needle or the answer cannot be placed in tokens.
    """
    position = place(law, float(rng.random()))
    order_seed = int(rng.integers(2**63))
    distractors = Distractors(haystack, encoder, layout)
    bare = len(encoder.prompt(render(encoder.frame, layout, [fact.passage], 0, fact.question).prompt)[0])
    aim = num_tokens - _AIM_BELOW
    _require_room(bare, aim, fact, num_tokens)
    bias, filling = 0, Filling((), 0, 0, False)
    for attempt in range(_MAX_TRIES):
        filling = fill(distractors, max(0, aim - bare - bias), at_words=attempt < _MAX_TRIES // 2)
        gold = int(position * (len(filling.passages) + 1))
        shuffled = np.random.Generator(np.random.PCG64(order_seed)).permutation(len(filling.passages))
        passages = [filling.passages[index] for index in shuffled]
        rendered = render(
            encoder.frame, layout, [*passages[:gold], fact.passage, *passages[gold:]], gold, fact.question
        )
        ids, offsets = encoder.prompt(rendered.prompt)
        if num_tokens - TOLERANCE <= len(ids) <= num_tokens:
            placed = {"gold_position": gold, "num_documents": len(passages) + 1, "num_cut": filling.num_cut}
            return _example(fact, rendered, ids, offsets, encoder, label, placed)
        if filling.exhausted:
            break
        bias = len(ids) - bare - filling.num_tokens
    raise _unfilled(fact, num_tokens, filling)


def _require_room(bare: int, aim: int, fact: Fact, num_tokens: int) -> None:
    if bare > aim:
        got = f"<{num_tokens} tokens, {bare + _AIM_BELOW} needed for needle, question and frame>"
        remedy = "Raise data.num_tokens, or leave such rows out with data.on_bad_row = skip"
        must = "be longer than the needle"
        raise UnbuildableRowError(message("data.num_tokens", must, got, remedy, f"row {fact.fact_id}"))


def _unfilled(fact: Fact, num_tokens: int, filling: Filling) -> UnbuildableRowError:
    if filling.exhausted:
        got = f"<{len(filling.passages)} passages, {filling.num_tokens} tokens>"
        remedy = f"Give more passages, lower data.num_tokens ({num_tokens}), or set data.on_bad_row = skip"
        name, must = "data.passages_file", "hold enough answer-free passages"
    else:
        got = f"<{num_tokens} tokens>"
        remedy = "Raise data.num_tokens: beside the needle there must be room for a distractor"
        name, must = "data.num_tokens", f"be met within {TOLERANCE} tokens"
    return UnbuildableRowError(message(name, must, got, remedy, f"row {fact.fact_id}"))


def _example(
    fact: Fact,
    rendered: Rendered,
    ids: list[int],
    offsets: np.ndarray,
    encoder: Encoder,
    label: Label,
    placed: Mapping[str, Any],
) -> Example:
    where = f"row {fact.fact_id}"
    answer = f" {fact.answer}"
    check_answer(answer)
    start = rendered.text_start
    answer_chars = Span(start + fact.answer_span.start, start + fact.answer_span.end)
    needle = placed_needle(rendered.prompt, offsets, Span(*rendered.needle), answer_chars, where)
    facts = {"fact_id": fact.fact_id, "origin": fact.origin, "haystack_char_span": list(rendered.haystack)}
    return Example(
        example_id=label.example_id,
        task=label.task,
        recipe=label.recipe,
        question=fact.question,
        answers=fact.answers,
        prompt=rendered.prompt,
        answer=answer,
        needles=(needle,),
        prompt_ids=tuple(ids),
        answer_ids=tuple(encoder.answer_ids(rendered.prompt, answer)),
        metadata={**label.metadata, **facts, **placed},
    )
