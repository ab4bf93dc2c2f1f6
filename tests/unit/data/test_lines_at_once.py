"""Lines tokenised many at a time have the tokens of each line alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rhstudy.data.encode import LINES_AT_ONCE, Encoder

LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=12).map(
        lambda text: f"k{text}\n"
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(lines=LINES)
def test_lines_together_and_alone(chat_tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> None:
    together, alone = (Encoder(chat_tokenizer) for _ in range(2))
    counts = together.counts(lines)
    assert counts == [alone.count(line) for line in lines]
    for line in lines:
        one, other = together._pieces[line], alone._pieces[line]
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.ids.tolist() == other.ids.tolist()
            assert np.array_equal(one.offsets, other.offsets)


def test_more_lines_than_one_call_takes(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    lines = [f"key{number} = value{number}\n" for number in range(3 * LINES_AT_ONCE + 1)]
    assert Encoder(chat_tokenizer).counts(lines) == [Encoder(chat_tokenizer).count(line) for line in lines[:3]] + [
        Encoder(chat_tokenizer).count(line) for line in lines[3:]
    ]
