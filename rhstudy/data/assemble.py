"""From a fact and its haystack to an `Example` of the wanted length, needle and answer placed in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhstudy.data.align import placed_needle, token_span
from rhstudy.data.encode import Encoder, Tokens, check_answer
from rhstudy.data.facts import Fact, LeftOutRowError, Passage, UnbuildableRowError
from rhstudy.data.fill import Distractors, Filling, fill
from rhstudy.data.layout import Layout, Rendered, render
from rhstudy.data.positions import PositionLaw, place
from rhstudy.errors import InputError, message
from rhstudy.types import Example, Needle, Span

TOLERANCE = 16
"""Every prompt has between `num_tokens - TOLERANCE` and `num_tokens` tokens."""
MAX_GOLD_SHARE = 1 / 4
"""Rows that cite: gold documents are at most this share of a prompt's, or citing all would score well."""
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

    Every needle stands at a position of its own, the distractors in random order around them.

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
    golds = [gold.passage for gold in reversed(fact.golds)]
    positions = [place(law, at) for at in (position, *rng.random(len(golds) - 1).tolist())]
    distractors = Distractors(haystack, encoder, layout)
    bare_prompt = render(encoder.frame, layout, golds, range(len(golds)), fact.question)
    bare = len(encoder.joined(bare_prompt.pieces).ids)
    aim = num_tokens - _AIM_BELOW
    _require_room(bare, aim, fact, num_tokens)
    bias, filling = 0, Filling((), 0, 0, False)
    for attempt in range(_MAX_TRIES):
        budget, at_words = max(0, aim - bare - bias), attempt < _MAX_TRIES // 2
        filling = fill(distractors, budget, at_words, len(golds))
        shuffled = np.random.Generator(np.random.PCG64(order_seed)).permutation(len(filling.passages))
        passages, places = _insert([filling.passages[index] for index in shuffled], golds, positions)
        rendered = render(encoder.frame, layout, passages, places, fact.question)
        tokens = encoder.joined(rendered.pieces)
        if num_tokens - TOLERANCE <= len(tokens.ids) <= num_tokens:
            _require_few_golds(fact, len(passages))
            placed = {"num_documents": len(passages), "num_cut": filling.num_cut, **_told(fact, passages, layout)}
            return _example(fact, rendered, tokens, encoder, label, placed)
        if filling.exhausted:
            break
        bias = len(tokens.ids) - bare - filling.num_tokens
    raise _unfilled(fact, num_tokens, filling)


def _insert(
    passages: list[Passage], golds: Sequence[Passage], positions: Sequence[float]
) -> tuple[list[Passage], list[int]]:
    """`passages` with each of `golds` put in at its position, 0-1, one after another; and where each now stands."""
    numbered = [(0, passage) for passage in passages]
    for number, (gold, position) in enumerate(zip(golds, positions, strict=True), start=1):
        numbered.insert(int(position * (len(numbered) + 1)), (number, gold))
    where = {number: index for index, (number, _) in enumerate(numbered) if number}
    return [passage for _, passage in numbered], [where[number] for number in range(1, len(golds) + 1)]


def _require_room(bare: int, aim: int, fact: Fact, num_tokens: int) -> None:
    """Raise where the needles alone fill the prompt.

    Raises:
        LeftOutRowError: documents of a real row that cites, which are cut to fit a prompt of many, do not fit: it
            takes more of them than `MAX_GOLD_SHARE` allows.
        UnbuildableRowError: the needles of another row do not.
    """
    if bare > aim:
        got = f"<{num_tokens} tokens, {bare + _AIM_BELOW} needed for needle, question and frame>"
        remedy = "Raise data.num_tokens, or leave such rows out with data.on_bad_row = skip"
        must = "be longer than the needle"
        kind = LeftOutRowError if fact.cites and fact.origin == "real" else UnbuildableRowError
        raise kind(message("data.num_tokens", must, got, remedy, fact.place))


def _require_few_golds(fact: Fact, num_documents: int) -> None:
    """Raise where citing every document would score well.

    Raises:
        LeftOutRowError: more than `MAX_GOLD_SHARE` of the documents of a real row hold what is asked for.
    """
    if fact.cites and fact.origin == "real" and len(fact.golds) > MAX_GOLD_SHARE * num_documents:
        must, got = "be a quarter of the documents at most", f"<{len(fact.golds)} of {num_documents}>"
        raise LeftOutRowError(message("gold documents", must, got, "Such rows are left out and counted", fact.place))


def _unfilled(fact: Fact, num_tokens: int, filling: Filling) -> UnbuildableRowError:
    if filling.exhausted:
        got = f"<{len(filling.passages)} passages, {filling.num_tokens} tokens>"
        remedy = f"Give more passages, lower data.num_tokens ({num_tokens}), or set data.on_bad_row = skip"
        name, must = "data.passages_file", "hold enough answer-free passages"
    else:
        got = f"<{num_tokens} tokens>"
        remedy = "Raise data.num_tokens: beside the needle there must be room for a distractor"
        name, must = "data.num_tokens", f"be met within {TOLERANCE} tokens"
    return UnbuildableRowError(message(name, must, got, remedy, fact.place))


def _example(
    fact: Fact,
    rendered: Rendered,
    tokens: Tokens,
    encoder: Encoder,
    label: Label,
    placed: Mapping[str, Any],
) -> Example:
    numbers = [item.number for item in rendered.places]
    cited = ", ".join(f"[{number}]" for number in sorted(numbers))
    answer = f" {cited if fact.cites else fact.answer}"
    check_answer(answer)
    needles = _spelled_needles(fact, rendered, tokens, encoder)
    facts: dict[str, Any] = {
        "fact_id": fact.fact_id,
        "origin": fact.origin,
        "haystack_char_span": list(rendered.haystack),
        "gold_position": numbers[0] - 1,
        **_many(fact, rendered),
    }
    return Example(
        example_id=label.example_id,
        task=label.task,
        recipe=label.recipe,
        question=fact.question,
        answers=(cited,) if fact.cites else fact.answers,
        prompt=rendered.prompt,
        answer=answer,
        needles=needles,
        prompt_ids=tuple(tokens.ids.tolist()),
        answer_ids=tuple(encoder.answer_ids(rendered.prompt, answer)),
        metadata={**label.metadata, **facts, **placed},
    )


def _needles(fact: Fact, rendered: Rendered, tokens: Tokens) -> tuple[Needle, ...]:
    """One needle a gold passage, in the order of the facts' hops; a cited document's holds its number too."""
    needles = []
    for gold, at in zip(fact.golds, reversed(rendered.places), strict=True):
        if fact.cites:
            # From the number on: what a head must look at to cite is there.
            needle = placed_needle(
                rendered.prompt, tokens.offsets, Span(at.numeral.start, at.end), at.numeral, fact.place
            )
            body = token_span(tokens.offsets, Span(at.body, at.end), fact.place)
            needles.append(dataclasses.replace(needle, body_token_span=body))
            continue
        span = gold.answer_span
        answer = Span(at.text + span.start, at.text + span.end) if span else None
        needles.append(placed_needle(rendered.prompt, tokens.offsets, Span(at.body, at.end), answer, fact.place))
    return tuple(needles)


def _spelled_needles(fact: Fact, rendered: Rendered, tokens: Tokens, encoder: Encoder) -> tuple[Needle, ...]:
    """`_needles`, whose tokens are their texts.

    Raises:
        UnbuildableRowError: the tokenizer has no tokens for some of their characters.
    """
    try:
        needles = _needles(fact, rendered, tokens)
    except InputError as error:  # nothing was cut off here: at its end, or whole, a needle has no tokens
        shown = "".join(rendered.prompt[at.body : at.end] for at in rendered.places)
        raise _lost(shown, fact.place) from error
    for needle in needles:
        text = rendered.prompt[slice(*needle.char_span)]
        if not encoder.spells(tokens.ids[slice(*needle.token_span)].tolist(), text):
            raise _lost(text, fact.place)
    return needles


def _lost(text: str, place: str) -> UnbuildableRowError:
    odd = sorted({character for character in text if not character.isascii() or not character.isprintable()})
    must, remedy = "be spelled by its tokens", "Leave such rows out with data.on_bad_row = skip, or mend the row"
    got = f"<a text with {ascii(''.join(odd))[:80]}, of which the tokenizer loses some>"
    return UnbuildableRowError(message("needle", must, got, remedy, place))


def _many(fact: Fact, rendered: Rendered) -> dict[str, Any]:
    """What only facts with several gold passages have to tell."""
    if len(fact.golds) == 1:
        return {}
    return {"gold_positions": [item.number - 1 for item in reversed(rendered.places)]}


def _words(text: str) -> str:
    """`text` with one space between words, as documents that were cut to sentences have it."""
    return " ".join(text.split())


def _told(fact: Fact, passages: Sequence[Passage], layout: Layout) -> dict[str, Any]:
    """What the leak check and the card need to know, where there is something to know."""
    whole: dict[str, list[str]] = {}
    for passage in fact.given:
        whole.setdefault(passage.title, []).append(_words(passage.text))
    own = [
        number
        for number, passage in enumerate(passages, start=1)
        if any(_words(passage.text) in text for text in whole.get(passage.title, ()))
    ]
    told: dict[str, Any] = {
        "cites": fact.cites,
        "cluster": fact.cluster,
        "hop_answers": list(fact.hop_answers),
        "own_documents": own,
        "num_own_left_out": fact.num_left_out,
        "num_gold_excerpts": fact.num_excerpts,
        "gold_titles": [gold.passage.title for gold in fact.golds] if layout.titled else [],
    }
    return {key: value for key, value in told.items() if value}
