"""How a prompt reads: instruction, documents or lines, question, the model's own chat frame, ``Answer:``.

Every prompt ends in ``Answer:`` after the assistant marker and gold starts with a space, so the answer's first token
is the one it has inside running text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rhstudy.data.facts import Passage
from rhstudy.errors import InputError, message
from rhstudy.types import Tokenizer

ANSWER_CUE = "Answer:"
DOCUMENT_MARK = re.compile(r"^Document \[\d+\]\(Title: ", re.MULTILINE)
_PLACEHOLDER = "RHSTUDY-CONTENT-PLACEHOLDER"
_TEMPLATE_DATE = "26 Jul 2024"  # Llama 3.x templates print today's date unless given one: data would differ by day


@dataclass(frozen=True, slots=True)
class Layout:
    """How passages stand in the prompt.

    Attributes:
        name: ``documents`` or ``lines``, of the task.
        instruction: first paragraph of the prompt.
        separator: between passages.
        titled: whether passages carry a number and a title.
    """

    name: str
    instruction: str
    separator: str
    titled: bool

    def lead(self, number: int) -> str:
        """What stands before passage `number` (from 1)."""
        return f"Document [{number}](Title:" if self.titled else ""

    def body(self, passage: Passage) -> str:
        """The passage itself; its text is at the end."""
        return f" {document_text(passage)}" if self.titled else passage.text


def document_text(passage: Passage) -> str:
    """Title and text as a document shows them; as a gold document this is the needle, for 12 % of NQ answers stand in
    the title too."""
    return f"{passage.title}) {passage.text}"


DOCUMENTS = Layout(
    "documents",
    "Write a short answer to the question, using only the documents below (most of which are irrelevant).",
    "\n\n",
    True,
)
LINES = Layout(
    "lines",
    "Each line below gives a key and its value. Answer the question with the value alone.",
    "\n",
    False,
)
_COPY = "Copy the word that follows the quoted words in the"
CUE_DOCUMENTS = Layout("cue documents", f"{_COPY} documents below.", "\n\n", True)
CUE_LINES = Layout("cue lines", f"{_COPY} lines below.", "\n", False)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the model's template puts around the user's text.

    Attributes:
        before: up to the user's text.
        after: from there to the end of the prompt, ``Answer:`` included.
        add_special_tokens: whether the tokenizer adds its own special tokens; never when a chat template wrote them.
    """

    before: str
    after: str
    add_special_tokens: bool


def frame_of(tokenizer: Tokenizer) -> Frame:
    """The frame of `tokenizer`'s chat template (user turn, then the assistant marker), or plain text without one.

    Raises:
        InputError: the template does not print the user's text exactly once.
    """
    if not tokenizer.chat_template:
        return Frame("", f"\n{ANSWER_CUE}", True)
    conversation = [{"role": "user", "content": _PLACEHOLDER}]
    rendered = str(
        tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, date_string=_TEMPLATE_DATE
        )
    )
    pieces = rendered.split(_PLACEHOLDER)
    if len(pieces) != 2:
        got = f"<{len(pieces) - 1} times>"
        remedy = "Use a tokenizer with a standard chat template"
        raise InputError(message("tokenizer.chat_template", "print the user's text once", got, remedy))
    return Frame(pieces[0], pieces[1] + ANSWER_CUE, False)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt with the places that matter, in characters.

    Attributes:
        prompt: the whole text.
        haystack: (start, end) of all passages.
        needle: (start, end) of the gold passage's body.
        text_start: where the gold passage's text begins inside the needle.
    """

    prompt: str
    haystack: tuple[int, int]
    needle: tuple[int, int]
    text_start: int


def render(frame: Frame, layout: Layout, passages: Sequence[Passage], gold_position: int, question: str) -> Rendered:
    """Write the prompt.

    Args:
        frame: what the model's template adds.
        layout: how passages stand.
        passages: all of them in order, the gold one included.
        gold_position: its index, from 0.
        question: as asked.
    """
    before = f"{frame.before}{layout.instruction}\n\n"
    pieces = [layout.lead(number) + layout.body(passage) for number, passage in enumerate(passages, start=1)]
    start = len(before) + sum(len(piece) + len(layout.separator) for piece in pieces[:gold_position])
    end = start + len(pieces[gold_position])
    body = layout.separator.join(pieces)
    return Rendered(
        prompt=f"{before}{body}\n\nQuestion: {question}{frame.after}",
        haystack=(len(before), len(before) + len(body)),
        needle=(end - len(layout.body(passages[gold_position]).lstrip()), end),
        text_start=end - len(passages[gold_position].text),
    )
