"""From characters to tokens: where a span of the prompt's text lies in its token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhstudy.errors import InputError, message
from rhstudy.types import Needle, Span


def token_span(offsets: Sequence[tuple[int, int]] | np.ndarray, chars: Span, where: str = "") -> Span:
    """The tokens that overlap the characters `chars`.

    Token t with character offsets [s_t, e_t) overlaps [a, b) when s_t < b and e_t > a; the span runs from the first
    such token to the last. Tokens without characters (special tokens that were added) overlap nothing.

    Args:
        offsets: character offsets of every token, shape (tokens, 2), as a fast tokenizer gives them.
        chars: half-open character interval, not empty, without white space at its ends.
        where: what is being placed, for messages.

    Returns:
        Half-open token interval.

    Raises:
        InputError: the tokens do not cover the characters, for instance because the text was cut before the span ends.
    """
    bounds = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = bounds[:, 0], bounds[:, 1]
    (overlapping,) = np.nonzero((starts < chars.end) & (ends > chars.start) & (ends > starts))
    covered = (
        0 <= chars.start < chars.end
        and len(overlapping) > 0
        and starts[overlapping].min() <= chars.start
        and ends[overlapping].max() >= chars.end
    )
    if not covered:
        reached = int(ends.max()) if len(ends) else 0
        got = f"<characters [{chars.start}, {chars.end}), tokens reach character {reached}>"
        raise InputError(message("needle", "lie inside the tokenised prompt", got, "Lengthen the prompt", where))
    return Span(int(overlapping[0]), int(overlapping[-1]) + 1)


def placed_needle(prompt: str, offsets: np.ndarray, needle: Span, answer: Span | None, where: str = "") -> Needle:
    """The needle at characters `needle` whose answer stands at characters `answer`, in tokens too.

    The one space before the answer belongs to its tokens when it lies inside the needle (see `Needle`) and some token
    holds it. A needle without an answer of its own gets empty answer spans at its end.

    Raises:
        InputError: as `token_span`.
    """
    tokens = token_span(offsets, needle, where)
    if answer is None:
        return Needle(
            char_span=needle,
            token_span=tokens,
            answer_char_span=Span(needle.end, needle.end),
            answer_token_span=Span(tokens.end, tokens.end),
        )
    before = answer.start - 1
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    # Tokenizers that split at white space, or leave it out of their offsets, have no token there.
    in_tokens = bool(((starts <= before) & (ends > before)).any())
    spaced = in_tokens and prompt[before] == " " and answer.start > needle.start
    return Needle(
        char_span=needle,
        token_span=tokens,
        answer_char_span=answer,
        answer_token_span=token_span(offsets, Span(answer.start - spaced, answer.end), where),
    )
