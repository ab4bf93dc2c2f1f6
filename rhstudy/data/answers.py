"""Where an answer stands in a text, and whether a text gives it away.

Finding the answer keeps its spelling (the model is taught what the needle says); looking for leaks ignores case,
accents and punctuation, so that "1,000" in a distractor is a leak of "1000".
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from rhstudy.types import Span

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_FAR_FROM_LATIN = re.compile("[^\x00-\u02ff]+")  # no character before U+0300 is combining
_NO_WORD_CHARACTERS = {code: None for code in range(128) if not chr(code).isalnum()}
_ACCENTS = re.compile("[\u0300-\u034e\u0350-\u036f]+")  # all combining, and most that letters come apart into
_SIGNS = [code for code in range(128) if not (chr(code).isalnum() or chr(code).isspace())]
_REMOVED, _AS_GAPS = dict.fromkeys(_SIGNS), dict.fromkeys(_SIGNS, " ")
"""`_PUNCTUATION` of plain texts, for `str.translate`, which takes a fraction of the time."""
_LEADING_ARTICLES = re.compile(r"^(?:(?:a|an|the) )+(?=\S)")


def find_answer(text: str, answers: Sequence[str]) -> Span | None:
    """The first of `answers` that occurs in `text` at word boundaries, at its first occurrence, case ignored.

    A boundary is asked for only where the answer begins or ends with a word character; white space inside the
    answer matches any white space.

    Args:
        text: the needle's text.
        answers: gold answers, in order of preference.

    Returns:
        Characters of the answer in `text`, or None when no answer occurs.
    """
    for answer in answers:
        words = answer.split()
        if not words:
            continue
        before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
        after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
        match = re.search(before + r"\s+".join(map(re.escape, words)) + after, text, re.IGNORECASE)
        if match:
            return Span(*match.span())
    return None


def _without_accents(match: re.Match[str]) -> str:
    return "".join(char for char in match.group() if not unicodedata.combining(char))


@functools.lru_cache(maxsize=1 << 15)
def leak_text(text: str) -> str:
    """`text` as leaks are looked for: case, accents and punctuation gone, words separated and framed by one space.

    Punctuation is read both ways SQuAD scoring meets it, removed ("1,000" -> "1000") and as a gap ("Smith-Jones" ->
    "smith jones"); both readings are kept, on lines of their own.
    """
    return _leak_text(text)


def _leak_text(text: str) -> str:
    folded = text.casefold()
    if not folded.isascii():
        folded = _FAR_FROM_LATIN.sub(_without_accents, _ACCENTS.sub("", unicodedata.normalize("NFKD", folded)))
    if folded.isascii():
        without, apart = folded.translate(_REMOVED), folded.translate(_AS_GAPS)
    else:
        without, apart = _PUNCTUATION.sub("", folded), _PUNCTUATION.sub(" ", folded)
    joined, spaced = " ".join(without.split()), " ".join(apart.split())
    return f" {joined} " if joined == spaced else f" {joined} \n {spaced} "


def leak_forms(answers: Sequence[str]) -> tuple[str, ...]:
    """What to look for in `leak_text` to find any of `answers`; leading articles are ignored.

    Returns:
        Distinct forms, each framed by spaces; empty when no answer has a word character.
    """
    forms = (form.strip() for answer in answers for form in leak_text(answer).split("\n"))
    return tuple(dict.fromkeys(f" {_LEADING_ARTICLES.sub('', form)} " for form in forms if form))


def gives_away(text: str, forms: Sequence[str]) -> bool:
    """Whether `text` holds one of the answers behind `forms` (see `leak_forms`) as whole words."""
    normalised = leak_text(text)
    return any(form in normalised for form in forms)


def may_give_away(text: str, answer: str) -> bool:
    """Whether `text` may hold `answer` as `gives_away` finds it; False is certain, and told some times faster.

    Every reading of a plain text has the letters and digits of the text in their order, and what is looked for ends in
    those of the answer's last word.
    """
    last = answer[answer.rfind(" ") + 1 :]
    if not (text.isascii() and last.isascii()):
        return True
    letters = last.lower().translate(_NO_WORD_CHARACTERS)
    return not letters or letters in text.lower().translate(_NO_WORD_CHARACTERS)


def any_gives_away(texts: Sequence[str], forms: Sequence[str]) -> bool:
    """Whether one of many short texts may give an answer away; False is certain, True may come of words of two texts.

    Every word of a text stands in all of them together too, so they are normalised as one.
    """
    normalised = _leak_text("\n".join(texts))
    return any(form in normalised for form in forms)
