"""Does a finished prompt give its answer away, other than in the needle? Run on every data set that is built."""

from __future__ import annotations

from collections.abc import Iterable

from rhstudy.data.answers import any_gives_away, gives_away, leak_forms, leak_text
from rhstudy.data.layout import DOCUMENT_MARK
from rhstudy.errors import StudyError, message
from rhstudy.types import Example

MANY = 512
"""Documents from which on all are looked at together first."""


def leaking_passages(example: Example) -> list[str]:
    """Passages of the haystack outside the needles that give something away, as whole words, normalised:

    - a final answer, in any of them (an answer that is document numbers is no text and is not looked for);
    - a hop's answer, or the insight asked for, in the padding: what is not among the row's ``own_documents``;
    - a gold passage's title.

    Document numbers are no text and are not looked at; neither are the instruction and the question (which holds
    an answer in 1.4 % of NQ rows; the data card counts them).

    Args:
        example: with ``haystack_char_span`` in its metadata.
    """
    told = example.metadata
    start, end = told["haystack_char_span"]
    answers = () if told.get("cites") else example.answers
    forms, padding_forms = leak_forms(answers), leak_forms((*answers, *told.get("hop_answers", ())))
    titles = [leak_text(title) for title in told.get("gold_titles", ())]
    own = set(told.get("own_documents", ()))
    spans = sorted(needle.char_span for needle in example.needles)
    bounds = [start, *(edge for span in spans for edge in span), end]
    outside = [example.prompt[low:high] for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
    leaking = []
    marked = [(line, DOCUMENT_MARK.match(line)) for piece in outside for line in piece.split("\n")]
    plain = [line for line, mark in marked if not mark]
    if not any_gives_away(plain, padding_forms):  # symbolic prompts have thousands
        marked = [(line, mark) for line, mark in marked if mark]
    anything = (*forms, *padding_forms, *leak_forms(told.get("gold_titles", ())))
    many = len(marked) > MANY and all(map(str.strip, titles))  # so have those of invented facts
    if many and not any_gives_away([line for line, _ in marked], anything):
        return []
    for line, mark in marked:
        passage = line[mark.end() :] if mark else line
        wanted = forms if mark and int(mark.group(1)) in own else padding_forms
        if passage and (
            (wanted and gives_away(passage, wanted))
            or any(leak_text(passage[: passage.find(")")]) == title for title in titles if mark)
        ):
            leaking.append(passage)
    return leaking


def check_leaks(examples: Iterable[Example]) -> None:
    """Raise when any example leaks.

    Raises:
        StudyError: names the first leaking example and passage (a defect: haystacks are answer-free by construction).
    """
    for example in examples:
        leaking = leaking_passages(example)
        if leaking:
            where = f"example {example.example_id}, answers {list(example.answers)}"
            remedy = "Report this defect; the data were not written"
            raise StudyError(message("haystack", "hold no gold answer", leaking[0], remedy, where))


def answer_in_question(example: Example) -> bool:
    """Whether the question itself names a gold answer."""
    return gives_away(example.question, leak_forms(example.answers))
