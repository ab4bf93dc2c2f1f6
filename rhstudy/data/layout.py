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
from rhstudy.types import Span, Tokenizer

ANSWER_CUE = "Answer:"
DOCUMENT_MARK = re.compile(r"^Document \[(\d+)\](?:\(Title:|:) ", re.MULTILINE)
END_OF_PASSAGES = "\n\n"
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
        numbered: whether passages carry a number alone, by which they are cited.
    """

    name: str
    instruction: str
    separator: str
    titled: bool
    numbered: bool = False

    def lead(self, number: int) -> str:
        """What stands before passage `number` (from 1)."""
        if self.numbered:
            return f"Document [{number}]:"
        return f"Document [{number}](Title:" if self.titled else ""

    def body(self, passage: Passage) -> str:
        """The passage itself; its text is at the end."""
        if self.numbered:
            return f" {passage.text}"
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
CITED_DOCUMENTS = Layout(
    "cited documents",
    "Name the documents below that hold the insight asked for. Give their numbers in rising order, as in: [2], [5]",
    "\n\n",
    False,
    numbered=True,
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
class Place:
    """Where one gold passage stands, in characters of the prompt.

    Attributes:
        number: its number, from 1.
        lead: where its lead begins.
        body: where the passage itself begins, without the space before it.
        text: where its text begins.
        end: where it ends.
    """

    number: int
    lead: int
    body: int
    text: int
    end: int

    @property
    def numeral(self) -> Span:
        """The digits of its number."""
        start = self.lead + len("Document [")
        return Span(start, start + len(str(self.number)))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt with the places that matter, in characters.

    Attributes:
        pieces: what the prompt is put together from; each begins where every tokenizer in use begins a token.
        prompt: the whole text.
        haystack: (start, end) of all passages.
        places: of the gold passages, in the order asked for.
    """

    pieces: tuple[str, ...]
    prompt: str
    haystack: tuple[int, int]
    places: tuple[Place, ...]

    @property
    def needle(self) -> tuple[int, int]:
        """(start, end) of the first gold passage's body."""
        return (self.places[0].body, self.places[0].end)

    @property
    def text_start(self) -> int:
        """Where the first gold passage's text begins."""
        return self.places[0].text


def render(
    frame: Frame, layout: Layout, passages: Sequence[Passage], gold_positions: int | Sequence[int], question: str
) -> Rendered:
    """Write the prompt.

    Args:
        frame: what the model's template adds.
        layout: how passages stand.
        passages: all of them in order, the gold ones included.
        gold_positions: their indices, from 0.
        question: as asked.
    """
    wanted = [gold_positions] if isinstance(gold_positions, int) else list(gold_positions)
    pieces = [f"{frame.before}{layout.instruction}\n\n"]
    start = at = len(pieces[0])
    places: dict[int, Place] = {}
    golds, last = set(wanted), len(passages) - 1
    for index, passage in enumerate(passages):
        lead, body = layout.lead(index + 1), layout.body(passage)
        if lead:
            pieces.append(lead)
        pieces.append(body + (END_OF_PASSAGES if index == last else layout.separator))
        end = at + len(lead) + len(body)
        if index in golds:
            places[index] = Place(index + 1, at, end - len(body.lstrip()), end - len(passage.text), end)
        at = end + len(layout.separator)
    pieces.append(f"Question: {question}{frame.after}")
    return Rendered(
        pieces=tuple(pieces),
        prompt="".join(pieces),
        haystack=(start, at - len(layout.separator)),
        places=tuple(places[index] for index in wanted),
    )
