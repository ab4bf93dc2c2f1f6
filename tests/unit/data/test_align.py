from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rhstudy.data.align import token_span
from rhstudy.errors import InputError
from rhstudy.types import Span

ALPHABET = st.sampled_from(
    [*"abc de.,\n\t-09éßÅłЖд日本語", "😀", "👩\u200d👩\u200d👧", "🇩🇪", "e\u0301", "\u00a0", "the ", " Document"]
)
TEXTS = st.lists(ALPHABET, max_size=40).map("".join)
NEEDLES = TEXTS.map(str.strip).filter(bool)


def brute_force(offsets: list[tuple[int, int]], chars: Span) -> Span | None:
    """Character by character: every token that owns one of the span's characters."""
    owners = {t for char in range(*chars) for t, (start, end) in enumerate(offsets) if start <= char < end}
    return Span(min(owners), max(owners) + 1) if owners else None


@settings(max_examples=150, deadline=None)
@given(before=TEXTS, needle=NEEDLES, after=TEXTS)
def test_agrees_with_brute_force_and_decodes_to_the_needle(
    chat_tokenizer: PreTrainedTokenizerFast, before: str, needle: str, after: str
) -> None:
    text = before + needle + after
    encoded = chat_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    chars = Span(len(before), len(before) + len(needle))
    span = token_span(offsets, chars)
    assert span == brute_force(offsets, chars)
    assert needle in chat_tokenizer.decode(encoded["input_ids"][slice(*span)])
    if span.end - span.start > 2:
        inner = encoded["input_ids"][span.start + 1 : span.end - 1]
        assert chat_tokenizer.decode(inner).strip("\ufffd") in text


@settings(max_examples=100, deadline=None)
@given(before=TEXTS, needle=NEEDLES, keep=st.floats(0, 1, exclude_max=True))
def test_a_needle_cut_short_raises(
    chat_tokenizer: PreTrainedTokenizerFast, before: str, needle: str, keep: float
) -> None:
    text = before + needle
    offsets = chat_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept = [pair for pair in offsets[: int(keep * len(offsets))]]
    if kept and max(end for _, end in kept) >= len(text):
        return  # the bytes of the last character were cut, not the character
    with pytest.raises(InputError, match="needle must lie inside the tokenised prompt"):
        token_span(kept, Span(len(before), len(text)))


@pytest.mark.parametrize(
    ("offsets", "chars"),
    [
        ([(0, 3), (3, 6)], Span(4, 9)),
        ([(0, 3), (3, 6)], Span(7, 9)),
        ([(2, 3)], Span(0, 3)),
        ([], Span(0, 1)),
        ([(0, 3)], Span(2, 2)),
        ([(0, 3)], Span(-1, 2)),
        ([(0, 0), (0, 0)], Span(0, 1)),
    ],
)
def test_what_cannot_be_placed_raises(offsets: list[tuple[int, int]], chars: Span) -> None:
    with pytest.raises(InputError, match=r"needle must lie inside .*\(row 7\)\. Lengthen the prompt"):
        token_span(offsets, chars, "row 7")


def test_added_special_tokens_are_never_part_of_a_span() -> None:
    offsets = np.array([(0, 0), (0, 3), (3, 4), (4, 9), (0, 0)])
    assert token_span(offsets, Span(0, 4)) == Span(1, 3)
    assert token_span(offsets, Span(4, 9)) == Span(3, 4)
