"""What tells a model that cannot retrieve from one that is broken: a question with its gold passages alone, plain text.

Both are cut out of an example's own prompt, so no source is read again. Passages keep their numbers, which answers may
cite.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from rhstudy.data.align import placed_needle, token_span
from rhstudy.data.encode import Encoder
from rhstudy.data.layout import DOCUMENT_MARK
from rhstudy.errors import require
from rhstudy.types import Example, Needle, Span, Tokenizer

_TITLE = re.compile(r"^Document \[\d+\](?:\(Title: .*?\)|:) ?", re.MULTILINE)


def gold_alone(example: Example, encoder: Encoder) -> Example:
    """`example` with the passages that hold its needles and no other: instruction, these, question.

    Args:
        example: of a data set this package built.
        encoder: of the tokenizer it was built with.

    Raises:
        InputError: its prompt does not say where the passages stand, as prompts of one's own do not.
    """
    passages = _gold_passages(example)
    haystack = _haystack(example)
    titled = bool(DOCUMENT_MARK.match(example.prompt[haystack.start : haystack.end]))
    parts, moves, at = [example.prompt[: haystack.start]], {}, haystack.start
    for number, passage in enumerate(passages):
        between = ("\n\n" if titled else "\n") if number else ""
        moves[passage] = at + len(between) - passage.start
        parts.append(between + example.prompt[passage.start : passage.end])
        at += len(parts[-1])
    prompt = "".join([*parts, example.prompt[haystack.end :]])
    ids, offsets = encoder.prompt(prompt)
    needles = []
    for needle in example.needles:
        move = next(shift for passage, shift in moves.items() if _holds(passage, needle))
        needles.append(_moved(needle, move, prompt, offsets, example.example_id))
    return dataclasses.replace(
        example,
        prompt=prompt,
        needles=tuple(needles),
        prompt_ids=tuple(ids),
        answer_ids=tuple(encoder.answer_ids(prompt, example.answer)),
        metadata={**example.metadata, "haystack_char_span": [haystack.start, at]},
    )


def plain_text(example: Example, tokenizer: Tokenizer, num_tokens: int) -> tuple[int, ...]:
    """Token ids of running text: the passages of `example` that hold no needle, without numbers and titles, as many as
    fit; empty where there are none.

    Args:
        example: as `gold_alone`.
        tokenizer: adds the special tokens with which it begins a text.
        num_tokens: the most tokens.

    Raises:
        InputError: as `gold_alone`.
    """
    haystack, kept, at = _haystack(example), [], 0
    for passage in [*_gold_passages(example), Span(haystack.end, haystack.end)]:
        kept.append(example.prompt[max(at, haystack.start) : passage.start])
        at = passage.end
    text = re.sub(r"\n{2,}", "\n\n", _TITLE.sub("", "\n".join(part.strip() for part in kept))).strip()
    # A token has a character at least, so this is enough text and never all of a long prompt's.
    return tuple(tokenizer(text[: 16 * num_tokens], verbose=False)["input_ids"][:num_tokens]) if text else ()


def _haystack(example: Example) -> Span:
    span = example.metadata.get("haystack_char_span")
    remedy = "Use data that make-data built, or switch the control behaviours off (knockout.behaviours)"
    must = "say where its passages stand"
    require(span is not None, "example", must, sorted(example.metadata), remedy, example.example_id)
    return Span(*(int(place) for place in span or ()))


def _gold_passages(example: Example) -> list[Span]:
    """The lines of needles from where they begin, in the order of the prompt; each once."""
    haystack, found = _haystack(example), set[Span]()
    for needle in example.needles:
        line = example.prompt.rfind("\n", haystack.start, needle.char_span.start) + 1
        found.add(Span(line or haystack.start, needle.char_span.end))
    return sorted(found)


def _holds(passage: Span, needle: Needle) -> bool:
    return passage.start <= needle.char_span.start and needle.char_span.end <= passage.end


def _moved(needle: Needle, move: int, prompt: str, offsets: np.ndarray, where: str) -> Needle:
    """`needle` where its passage now stands."""
    spans = [Span(span.start + move, span.end + move) for span in (needle.char_span, needle.answer_char_span)]
    answer = spans[1] if spans[1].end > spans[1].start else None
    placed = placed_needle(prompt, offsets, spans[0], answer, where)
    if needle.body_token_span is None:
        return placed
    body = Span(spans[0].start + prompt[spans[0].start : spans[0].end].index("]: ") + len("]: "), spans[0].end)
    return dataclasses.replace(placed, body_token_span=token_span(offsets, body, where))
