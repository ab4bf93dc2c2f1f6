"""Sequences to pretrain a small model on: excerpts of real passages, then several literal cues with their answers.

    Copy the word that follows ... below.
    Document [1](Title: ...) ...
    Question: Which word follows "..."?
    Answer: word<end>
    Question: ...

The prompt reads as in the task `cue_retrieval`; any word of an excerpt may be asked for, since a model that is asked
for names and numbers alone learns to copy late or never. A batch depends on (seed, step) alone, so training can stop
and go on anywhere, and any number of processes may make batches.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rhstudy.data.facts import Passage
from rhstudy.data.layout import ANSWER_CUE, CUE_DOCUMENTS, document_text
from rhstudy.data.tasks.cue_retrieval import CUE_WORDS, cue_question
from rhstudy.errors import require
from rhstudy.seeding import generator
from rhstudy.shapes import Bool, Int
from rhstudy.types import Tokenizer

MIN_EXCERPT_WORDS = 16
QUESTION_TOKENS = 26
"""Room kept for each question with its answer; a question that does not fit is left out."""

# Never part of a longer run of letters or digits: the "na" of "naïve" is no word and has other tokens there.
_WORD = re.compile(r"[A-Za-z]{2,}(?![^\W\d_])|\d+(?![^\W_A-Za-z])")


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Right-padded sequences of one length class.

    Attributes:
        ids: token ids; padding is the end token.
        is_real: False on padding.
        is_answer: True on the tokens of an answer and on the end token behind it.
    """

    ids: Int[np.ndarray, "batch tokens"]
    is_real: Bool[np.ndarray, "batch tokens"]
    is_answer: Bool[np.ndarray, "batch tokens"]


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A text, where its documents end, and the characters of each answer, its space and its end token included."""

    text: str
    documents_end: int
    answers: list[tuple[int, int]]


class SequenceMaker:
    """Makes batches of sequences from passages.

    Args:
        passages: where excerpts are taken from.
        tokenizer: a fast tokenizer that splits at spaces first, so that tokens can be counted word by word.
        end_token: text of the token that closes an answer.
        questions: sequence length in tokens -> number of questions asked in it; each batch draws one length.
        seed: root seed.

    Raises:
        InputError: no passages, or none long enough.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        tokenizer: Tokenizer,
        *,
        end_token: str,
        questions: Mapping[int, int],
        seed: int,
    ) -> None:
        usable = [passage for passage in passages if len(passage.text.split()) >= MIN_EXCERPT_WORDS]
        remedy = f"Give passages of at least {MIN_EXCERPT_WORDS} words"
        require(bool(usable), "passages", "hold one that is long enough", f"<{len(passages)} passages>", remedy)
        self._passages, self._tokenizer, self._end_token = usable, tokenizer, end_token
        self.end_id = int(tokenizer(end_token, add_special_tokens=False)["input_ids"][0])
        self._questions, self._seed = dict(questions), seed
        self._count = _counter(tokenizer)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_count"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._count = _counter(self._tokenizer)

    def batch(self, name: str, step: int, num_tokens: int, length: int = 0) -> SequenceBatch:
        """The batch of `step`.

        Args:
            name: which stream, for instance ``train``.
            step: number of the batch.
            num_tokens: about how many tokens the batch holds.
            length: length class; 0 draws one of `questions`.
        """
        rng = generator(self._seed, "pretraining", name, step)
        drawn = length or int(rng.choice(sorted(self._questions)))
        asked = self._questions.get(drawn) or max(self._questions.values())
        sequences = [self._sequence(rng, drawn, asked) for _ in range(max(1, num_tokens // drawn))]
        return self._encode(sequences, drawn)

    def _sequence(self, rng: np.random.Generator, length: int, num_questions: int) -> _Sequence:
        text = f"{CUE_DOCUMENTS.instruction}\n\n"
        room = length - self._count(text) - QUESTION_TOKENS * num_questions
        spans: list[tuple[int, int]] = []
        while room > 0 or not spans:
            piece, cost, skipped = self._document(rng, len(spans) + 1, room)
            if spans and cost > room:
                break
            text += CUE_DOCUMENTS.separator if spans else ""
            spans.append((len(text) + skipped, len(text) + len(piece)))
            text += piece
            room -= cost
        places = [match.span() for start, end in spans for match in _askable(text, start, end)]
        chosen = rng.permutation(len(places))[:num_questions].tolist()
        documents_end = len(text)
        answers: list[tuple[int, int]] = []
        for start, end in (places[index] for index in chosen):
            text += f"\n\nQuestion: {cue_question(text, start)}\n{ANSWER_CUE}"
            answers.append((len(text), len(text) + 1 + end - start + len(self._end_token)))
            text += f" {text[start:end]}{self._end_token}"
        return _Sequence(text, documents_end, answers)

    def _document(self, rng: np.random.Generator, number: int, room: int) -> tuple[str, int, int]:
        """A document with an excerpt of at most `room` tokens (or the shortest allowed), its cost, its text's start."""
        passage = self._passages[int(rng.integers(len(self._passages)))]
        words = passage.text.split()
        begin = int(rng.integers(len(words) - MIN_EXCERPT_WORDS + 1))
        lead = CUE_DOCUMENTS.lead(number) + " " + document_text(Passage(passage.title, "")).rstrip()
        cost = self._count(lead) + self._count(CUE_DOCUMENTS.separator)
        most = int(rng.integers(MIN_EXCERPT_WORDS, 2 * len(words)))
        taken: list[str] = []
        for word in words[begin : begin + most]:
            cost += self._count(f" {word}")
            if cost > room and len(taken) >= MIN_EXCERPT_WORDS:
                cost -= self._count(f" {word}")
                break
            taken.append(word)
        return f"{lead} {' '.join(taken)}", cost, len(lead) + 1

    def _encode(self, sequences: Sequence[_Sequence], length: int) -> SequenceBatch:
        encoded = self._tokenizer(
            [item.text for item in sequences], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        shape = (len(sequences), length)
        ids, is_real, is_answer = np.full(shape, self.end_id), np.zeros(shape, bool), np.zeros(shape, bool)
        for row, sequence in enumerate(sequences):
            bounds = np.asarray(encoded["offset_mapping"][row])
            bounds = bounds[: _num_fitting(bounds, sequence, length)]
            tokens = encoded["input_ids"][row][: len(bounds)]
            ids[row, : len(tokens)], is_real[row, : len(tokens)] = tokens, True
            for start, end in sequence.answers:
                is_answer[row, : len(tokens)] |= (bounds[:, 0] < end) & (bounds[:, 1] > start)
        return SequenceBatch(ids, is_real, is_answer)


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Tokens of a text, each text counted once."""
    return functools.cache(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _num_fitting(bounds: Int[np.ndarray, "tokens 2"], sequence: _Sequence, length: int) -> int:
    """Tokens of a sequence that fit: documents and whole questions, or the start of documents that are too long."""
    ends = [sequence.documents_end, *(end for _, end in sequence.answers)]
    counts = [int((bounds[:, 0] < end).sum()) for end in ends]
    return max((count for count in counts if count <= length), default=length)


def _askable(text: str, start: int, end: int) -> list[re.Match[str]]:
    """Words and numbers of `text[start:end]` behind `CUE_WORDS` words and a space, quotation marks in none of them."""
    words = list(re.finditer(r"\S+", text[start:end]))
    found = []
    for index in range(CUE_WORDS, len(words)):
        match = _WORD.match(text, start + words[index].start(), start + words[index].end())
        cue = text[start + words[index - CUE_WORDS].start() : start + words[index - 1].end()]
        if match and '"' not in cue:
            found.append(match)
    return found
