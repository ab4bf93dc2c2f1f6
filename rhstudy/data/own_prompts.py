"""Examples from prompts of your own: where needle and answer stand is found once, in characters, and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from rhstudy.data.align import placed_needle
from rhstudy.data.encode import Encoder, check_answer
from rhstudy.errors import require
from rhstudy.types import Example, Needle, Span, Tokenizer


def make_example(
    tokenizer: Tokenizer,
    prompt: str,
    needles: str | Sequence[str],
    answer: str,
    *,
    question: str = "",
    answers: Sequence[str] = (),
    example_id: str = "",
) -> Example:
    """An `Example` of a rendered prompt, for `rhstudy.detect`.

    Args:
        tokenizer: the model's fast tokenizer. It adds its special tokens unless it has a chat template: then render the
            prompt with the template yourself.
        prompt: the whole text up to where the answer begins, without white space at its end; best ending in a cue such
            as ``Answer:``, so that the answer's tokens are those it has in running text.
        needles: the text of the needle, or of each needle; each must stand in the prompt exactly once.
        answer: the gold answer as a needle spells it, without the space before it.
        question: as it stands in the prompt behind the needles; only mode `attention_mass` needs it.
        answers: every accepted answer; empty = `answer` alone.
        example_id: unique among the examples; empty = made from prompt, needles and answer.

    Raises:
        InputError: a needle is not in the prompt or more than once, no needle holds the answer, or the answer cannot
            begin a token behind the prompt.
    """
    texts = [needles] if isinstance(needles, str) else list(needles)
    digest = hashlib.sha256("\n".join([prompt, *texts, answer]).encode()).hexdigest()
    encoder, where = Encoder(tokenizer), example_id or f"own-{digest[:16]}"
    ids, offsets = encoder.prompt(prompt, rendered=True)
    spoken = f" {answer}"
    check_answer(spoken)
    spans = [_only_place(prompt, text, where) for text in texts]
    holding = [answer in text for text in texts]
    remedy = "Spell it as the needle does"
    require(any(holding), "answer", "stand in a needle", answer, remedy, where)
    placed = tuple(
        _placed(prompt, span, answer if holds else "", offsets, where)
        for span, holds in zip(spans, holding, strict=True)
    )
    return Example(
        example_id=example_id or where,
        task="own",
        recipe="own",
        question=question,
        answers=tuple(answers) or (answer,),
        prompt=prompt,
        answer=spoken,
        needles=placed,
        prompt_ids=tuple(ids),
        answer_ids=tuple(encoder.answer_ids(prompt, spoken)),
    )


def _only_place(prompt: str, text: str, where: str) -> Span:
    count = prompt.count(text) if text.strip() else 0
    require(count == 1, "needle", "stand in the prompt exactly once", f"<{count} times: {text[:60]!r}>",
            "Give more of the text around it", where)  # fmt: skip
    inner = text.strip()
    start = prompt.index(text) + text.index(inner)
    return Span(start, start + len(inner))


def _placed(prompt: str, span: Span, answer: str, offsets: np.ndarray, where: str) -> Needle:
    """The needle with its answer's first place; without the answer, an empty answer span at its end."""
    if not answer:
        return placed_needle(prompt, offsets, span, None, where)
    # As a word of its own where it stands as one: "10" is not the end of "2010".
    word = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)").search(prompt, span.start, span.end)
    start = word.start() if word else prompt.index(answer, span.start)
    return placed_needle(prompt, offsets, span, Span(start, start + len(answer)), where)
