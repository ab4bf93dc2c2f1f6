"""Text to token ids: prompts with offsets, answers as they continue a prompt, and counts for filling a length."""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from rhstudy.data.layout import Frame, frame_of
from rhstudy.errors import InputError, message, require
from rhstudy.types import Tokenizer

TAIL_CHARS = 64
"""How much of the prompt's end is tokenised again to see that the answer starts on a token boundary."""

_WORD_END = re.compile(r"(?<=\S)(?=\s|$)")


def ids_sha256(ids: Sequence[int]) -> str:
    """SHA-256 of token ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()


class Encoder:
    """A tokenizer as data building uses it; counts are remembered, so a passage is tokenised once.

    Args:
        tokenizer: a fast tokenizer (one that gives character offsets).

    Raises:
        InputError: a slow tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        fast = bool(getattr(tokenizer, "is_fast", True))
        require(fast, "tokenizer", "give character offsets", type(tokenizer).__name__, "Use the model's fast tokenizer")
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}
        self.frame: Frame = frame_of(tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        self._special = [token for token in getattr(tokenizer, "all_special_ids", ()) if token != unknown]
        self._num_special = self._count_special(self.prompt_ids(f"{self.frame.before}x{self.frame.after}"))

    def prompt(self, text: str, *, rendered: bool = False) -> tuple[list[int], np.ndarray]:
        """Ids of a whole prompt and the character offsets of every token, shape (tokens, 2).

        Special tokens are added only where no chat template wrote them.

        Args:
            text: the whole prompt.
            rendered: the caller wrote the chat template's special tokens, of as many turns as it likes; else they may
                stand where this package's own frame has them and nowhere else.

        Raises:
            InputError: the tokenizer adds something after the prompt, so that no answer could follow; or the text
                spells one of the model's special tokens, which would end the user's turn in mid-prompt.
        """
        encoded = self._tokenizer(
            text,
            add_special_tokens=self.frame.add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids, offsets = list(encoded["input_ids"]), np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        complete = len(ids) > 0 and int(offsets[-1, 1]) == len(text)
        remedy = "Switch off its end token (add_eos_token)"
        require(complete, "tokenizer", "add nothing after the prompt", f"<token {ids[-1:]}>", remedy)
        extra = self._count_special(ids) - self._num_special
        remedy = "Remove the model's special tokens from the rows and passages"
        require(rendered or extra <= 0, "prompt", "spell no special token in its text", f"<{extra} of them>", remedy)
        return ids, offsets

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a whole prompt, as `prompt` gives them."""
        special = self.frame.add_special_tokens
        return list(
            self._tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
        )

    def answer_ids(self, prompt: str, answer: str) -> list[int]:
        """Ids of `answer` as it continues `prompt`: the tokens of both together, less the prompt's.

        Only the last `TAIL_CHARS` characters of the prompt are looked at: every tokenizer in use splits at word
        boundaries first, so nothing further away can change.

        Args:
            prompt: ends in ``Answer:``.
            answer: starts with a space.

        Raises:
            InputError: the end of the prompt and the start of the answer share a token.
        """
        tail = prompt[-TAIL_CHARS:]
        before, both = (self._plain([text])[0] for text in (tail, tail + answer))
        clean = both[: len(before)] == before and len(both) > len(before)
        remedy = "This tokenizer merges the prompt's end with the answer and cannot be used"
        require(clean, "tokenizer", "start a token where the answer starts", answer, remedy)
        return both[len(before) :]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text on its own, without special tokens."""
        new = [text for text in dict.fromkeys(texts) if text not in self._counts]
        if new:
            self._counts.update(zip(new, map(len, self._plain(new)), strict=True))
        return [self._counts[text] for text in texts]

    def count(self, text: str) -> int:
        """Number of tokens of one text."""
        return self.counts([text])[0]

    def cut(self, text: str, num_tokens: int, at_words: bool = True) -> str:
        """The longest start of `text` that has at most `num_tokens` tokens and ends where a word does.

        Args:
            text: what to shorten.
            num_tokens: the most tokens, counted in `text` itself.
            at_words: False cuts between any two characters, for scripts without spaces and for giant words.
        """
        if num_tokens <= 0:
            return ""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        if len(ends) <= num_tokens:
            return text
        limit = ends[num_tokens - 1]
        while limit and ends[num_tokens] <= limit:  # bytes of one character: the character is whole or not there
            num_tokens -= 1
            limit = ends[num_tokens - 1] if num_tokens else 0
        if at_words:
            words = [match.start() for match in _WORD_END.finditer(text)]
            place = bisect.bisect_right(words, limit)
            limit = words[place - 1] if place else 0
        return text[:limit].rstrip()

    def _count_special(self, ids: Sequence[int]) -> int:
        return int(np.isin(np.asarray(ids), self._special).sum()) if self._special else 0

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])


def check_answer(answer: str) -> None:
    """Raise unless `answer` starts with exactly one space.

    Raises:
        InputError: it does not.
    """
    good = answer.startswith(" ") and answer.strip() == answer[1:] and len(answer) > 1
    if not good:
        raise InputError(message("answer", "start with one space", answer, "Take it from the needle's text"))
