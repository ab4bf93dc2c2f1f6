"""Text to token ids: prompts with offsets, answers as they continue a prompt, and counts for filling a length.

A passage is tokenised once. Where the tokenizer splits text at fixed places first (byte-level BPE and its like), a
prompt is put together from the ids of its pieces; that this gives the ids of the whole text is a matter of how the
pieces are cut (`rhstudy.data.layout`), is compared on the first prompts, and is checked again when a data set is read.
Other tokenizers (sentencepiece and its like) get every prompt whole, which takes some ten times as long.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rhstudy.data.layout import Frame, frame_of
from rhstudy.data.words import WordTokens, splits_at_words, splits_sentences
from rhstudy.errors import InputError, message, require
from rhstudy.types import Tokenizer

TAIL_CHARS = 64
"""How much of the prompt's end is tokenised again to see that the answer starts on a token boundary."""

NUM_COMPARED = 2
"""Prompts put together from pieces that are tokenised whole too, to see that the ids are the same."""
LINES_AT_ONCE = 64
"""Lines tokenised in one piece: a call costs more than the tokens of a line."""
_LINE, _PAIRS, _SENTENCES = "line", "pairs", "sentences"
MOST_SENTENCE_CHARS = 512
"""Documents up to this length are put together from their words: invented ones, which come once each."""
WORD_LINES_AT_ONCE = 1 << 10
"""The same for lines whose words are looked up."""
MAX_REMEMBERED = 1 << 16
"""Pieces kept at a time; the oldest are forgotten first."""
_SPLITTERS = {"Split", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}

_WORD_END = re.compile(r"(?<=\S)(?=\s|$)")


def ids_sha256(ids: Sequence[int]) -> str:
    """SHA-256 of token ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()


class Tokens(NamedTuple):
    """Token ids with the characters each stands for, shape (tokens, 2)."""

    ids: np.ndarray
    offsets: np.ndarray


class Encoder:
    """A tokenizer as data building uses it; pieces are remembered, so a passage is tokenised once.

    Args:
        tokenizer: a fast tokenizer (one that gives character offsets).

    Raises:
        InputError: a slow tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        fast = bool(getattr(tokenizer, "is_fast", True))
        require(fast, "tokenizer", "give character offsets", type(tokenizer).__name__, "Use the model's fast tokenizer")
        self._tokenizer = tokenizer
        self._pieces: dict[str, Tokens | None] = {}
        self.frame: Frame = frame_of(tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        self._special = [token for token in getattr(tokenizer, "all_special_ids", ()) if token != unknown]
        self._num_special = self._count_special(self.prompt_ids(f"{self.frame.before}x{self.frame.after}"))
        self._joins = splits_first(tokenizer)
        splitter: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
        by_words = self._joins and splits_at_words(splitter)
        self._words = self._word_tokens(splitter) if by_words else None
        self._num_to_compare = NUM_COMPARED

    def _word_tokens(self, splitter: Any) -> WordTokens:
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        sentences = splits_sentences(splitter, backend.get_added_tokens_decoder().values())
        return WordTokens(lambda words: list(self._encode_each(words, special=False)), sentences)

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
        if not rendered:
            self._require_no_special(ids)
        return ids, offsets

    def _require_no_special(self, ids: Sequence[int] | np.ndarray) -> None:
        extra = self._count_special(ids) - self._num_special
        remedy = "Remove the model's special tokens from the rows and passages"
        require(extra <= 0, "prompt", "spell no special token in its text", f"<{extra} of them>", remedy)

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a whole prompt, as `prompt` gives them."""
        special = self.frame.add_special_tokens
        return list(
            self._tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
        )

    def prompts_ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`prompt_ids` of many prompts, which fast tokenizers share out over the cores."""
        special = self.frame.add_special_tokens
        encoded = self._tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
        return [tuple(ids) for ids in encoded["input_ids"]]

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

    def spells(self, ids: Sequence[int], text: str) -> bool:
        """Whether tokens spell all of `text`: tokenizers without a token for each byte lose characters in silence.

        Compared in normal form (NFKC, without white space), which some tokenizers bring texts into. What the unknown
        token stands for has a token.
        """
        if (text.isascii() and text.isprintable()) or getattr(self._tokenizer, "unk_token_id", None) in ids:
            return True
        decoded = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return _normal(text) in _normal(str(decoded))

    def joined(self, pieces: Sequence[str]) -> Tokens:
        """Ids and offsets of the prompt that `pieces` make, exactly as `prompt` gives them, mostly without tokenising.

        Args:
            pieces: the first begins the prompt, the last ends it; cut as `rhstudy.data.layout.render` cuts.

        Raises:
            InputError: as `prompt`.
        """
        found = self._join(pieces) if self._joins else None
        if found is not None and not self._num_to_compare:
            return found
        ids, offsets = self.prompt("".join(pieces))
        if found is not None:
            self._num_to_compare -= 1
            self._joins = found.ids.tolist() == ids and np.array_equal(found.offsets, offsets)
        return Tokens(np.asarray(ids), offsets)

    def _join(self, pieces: Sequence[str]) -> Tokens | None:
        """The pieces' own tokens one after another; None where one has none of its own."""
        self._remember(pieces[1:-1])
        first = self._first_piece(pieces[0])
        ends = self._encode([pieces[-1]])
        parts = [first, *(self._pieces.get(piece) for piece in pieces[1:-1]), *ends]
        if any(part is None for part in parts):
            return None
        kept = [part for part in parts if part is not None]
        starts = np.cumsum([0, *map(len, pieces[:-1])])
        lengths = [len(part.ids) for part in kept]
        ids = np.concatenate([part.ids for part in kept])
        offsets = np.concatenate([part.offsets for part in kept]) + np.repeat(starts, lengths)[:, None]
        self._require_no_special(ids)
        return Tokens(ids, offsets)

    def _first_piece(self, text: str) -> Tokens | None:
        key = f"\x00{text}"
        if key not in self._pieces:
            self._pieces.update({key: next(iter(self._encode([text], self.frame.add_special_tokens)))})
        return self._pieces[key]

    def _remember(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._pieces]
        if len(self._pieces) + len(new) > MAX_REMEMBERED:
            wanted = set(texts)
            for text in list(self._pieces)[: MAX_REMEMBERED // 2]:
                if text not in wanted:
                    del self._pieces[text]
        if new:
            self._pieces.update(zip(new, self._encode(new), strict=True))

    def _encode(self, texts: Sequence[str], special: bool = False) -> Iterator[Tokens | None]:
        """Tokens of each text as it stands before what follows it in a prompt; None where they share one with that."""
        size = LINES_AT_ONCE if self._words is None else WORD_LINES_AT_ONCE
        for kind, group in _groups(texts, size) if self._joins and not special else [("", texts)]:
            found = self._encode_group(kind, group) if kind and len(group) > 1 else None
            yield from self._encode_each(group, special) if found is None else found

    def _encode_group(self, kind: str, texts: Sequence[str]) -> Sequence[Tokens | None] | None:
        """Tokens of texts of one kind, from their words or, of lines, tokenised together; None where neither works."""
        by_words = self._words.of_texts(texts) if self._words is not None else None
        if by_words is not None:
            return list(itertools.starmap(Tokens, by_words))
        return self._encode_lines(texts) if kind == _LINE else self._encode_apart(texts)

    def _encode_apart(self, texts: Sequence[str]) -> Sequence[Tokens | None] | None:
        """Tokens of sentences from their words, of the few that are none as whole texts: one odd character in a
        hundred documents must not have all of them tokenised."""
        if self._words is None:
            return None
        fit = [self._words.is_sentence(text) for text in texts]
        sentences = [text for text, fits in zip(texts, fit, strict=True) if fits]
        by_words = self._words.of_texts(sentences) if sentences and not all(fit) else None
        if by_words is None:
            return None
        others = self._encode_each([text for text, fits in zip(texts, fit, strict=True) if not fits], special=False)
        known = itertools.starmap(Tokens, by_words)
        return [next(known) if fits else next(others) for fits in fit]

    def _encode_lines(self, lines: Sequence[str]) -> list[Tokens] | None:
        """Tokens of short lines, tokenised in one piece and cut where each ends; None where a token crosses an end."""
        whole = next(iter(self._encode_each(["".join(lines)], special=False)))
        if whole is None:
            return None
        ends = np.cumsum([len(line) for line in lines])[:-1]
        cuts = np.searchsorted(whole.offsets[:, 0], ends, side="left")
        if not (np.array_equal(whole.offsets[cuts, 0], ends) and bool((whole.offsets[cuts - 1, 1] <= ends).all())):
            return None
        bounds, starts = [0, *cuts.tolist(), len(whole.ids)], [0, *ends.tolist()]
        return [
            Tokens(whole.ids[first:last], whole.offsets[first:last] - start)
            for first, last, start in zip(bounds, bounds[1:], starts, strict=False)
        ]

    def _encode_each(self, texts: Sequence[str], special: bool) -> Iterator[Tokens | None]:
        following = [_following(text) if self._joins else "" for text in texts]
        encoded = self._tokenizer(
            [text + more for text, more in zip(texts, following, strict=True)],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for text, more, ids, pairs in zip(
            texts, following, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            offsets = np.asarray(pairs, dtype=np.int32).reshape(-1, 2)
            count = int((offsets[:, 1] <= len(text)).sum()) if more else len(ids)
            whole = not more or (count < len(ids) and int(offsets[count, 0]) == len(text))
            yield Tokens(np.asarray(ids[:count], dtype=np.int32), offsets[:count]) if whole else None

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without special tokens."""
        self._remember(texts)
        return [self._num_tokens(text) for text in texts]

    def _num_tokens(self, text: str) -> int:
        found = self._pieces[text]
        return len(found.ids) if found is not None else len(self._plain([text])[0])

    def count(self, text: str) -> int:
        """Number of tokens of one text."""
        found = self._pieces.get(text)
        return len(found.ids) if found is not None else self.counts([text])[0]

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

    def _count_special(self, ids: Sequence[int] | np.ndarray) -> int:
        return int(np.isin(np.asarray(ids), self._special).sum()) if self._special else 0

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])


def _is_line(text: str) -> bool:
    """Whether `text` is a line that begins with a plain letter: then what stands before it changes no token of it."""
    return text[-1:] == "\n" and text[0].isascii() and text[0].isalpha() and text.count("\n") == 1


def _kind(text: str) -> str:
    """A line, a document of ``key = value;`` pairs, a short document, or none of these."""
    if text[-2:] == "\n\n" and text[0] == " " and len(text) <= MOST_SENTENCE_CHARS:
        return _PAIRS if text[-3] == ";" else _SENTENCES
    return _LINE if text and _is_line(text) else ""


def _groups(texts: Sequence[str], size: int) -> Iterator[tuple[str, list[str]]]:
    """`texts` in their order: runs of one kind, of at most `size` texts where it is a kind."""
    for kind, run in itertools.groupby(texts, key=_kind):
        group = list(run)
        step = size if kind else len(group)
        yield from ((kind, group[start : start + step]) for start in range(0, len(group), step))


def _following(text: str) -> str:
    """What may stand for whatever follows `text` in a prompt: a letter after a line break, a word after a lead."""
    return {"\n": "D", ":": " D"}.get(text[-1:], "")


def splits_first(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` splits text at places that a few characters around them decide, before anything else.

    Then no token crosses such a place, and a text may be tokenised in pieces that end there. Looked up in the fast
    tokenizer's own description; False where that is not known for certain.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        return False
    steps = _steps(backend.pre_tokenizer)
    known = all(step["type"] in _SPLITTERS and not step.get("add_prefix_space") for step in steps)
    splits = any(step["type"] != "ByteLevel" or step.get("use_regex", True) for step in steps)
    folds = _steps(backend.normalizer) if backend.normalizer is not None else []
    return known and splits and all(step["type"] == "NFC" for step in folds)


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's part, sequences unpacked."""
    state = json.loads(part.__getstate__())
    nested = state.get("pretokenizers", state.get("normalizers"))
    return list(nested) if nested is not None else [state]


def _normal(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def check_answer(answer: str) -> None:
    """Raise unless `answer` starts with exactly one space.

    Raises:
        InputError: it does not.
    """
    good = answer.startswith(" ") and answer.strip() == answer[1:] and len(answer) > 1
    if not good:
        raise InputError(message("answer", "start with one space", answer, "Take it from the needle's text"))
