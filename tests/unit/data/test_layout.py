from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rhstudy.data.facts import Passage
from rhstudy.data.layout import DOCUMENTS, LINES, Frame, frame_of, render
from rhstudy.errors import InputError

PASSAGES = [Passage("A", "one two"), Passage("B (x)", "three"), Passage("C", "four")]


def test_documents() -> None:
    rendered = render(Frame("<u>", "</u>Answer:", False), DOCUMENTS, PASSAGES, 1, "who?")
    assert rendered.prompt == (
        f"<u>{DOCUMENTS.instruction}\n\nDocument [1](Title: A) one two\n\nDocument [2](Title: B (x)) three\n\n"
        "Document [3](Title: C) four\n\nQuestion: who?</u>Answer:"
    )
    assert rendered.prompt[slice(*rendered.needle)] == "B (x)) three"
    assert rendered.prompt[rendered.text_start :].startswith("three\n\n")
    assert rendered.prompt[slice(*rendered.haystack)].startswith("Document [1]")
    assert rendered.prompt[slice(*rendered.haystack)].endswith("four")


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_lines(gold: int) -> None:
    rendered = render(Frame("", "\nAnswer:", True), LINES, PASSAGES, gold, "who?")
    assert rendered.prompt == f"{LINES.instruction}\n\none two\nthree\nfour\n\nQuestion: who?\nAnswer:"
    assert rendered.prompt[slice(*rendered.needle)] == PASSAGES[gold].text


def test_the_chat_template_frames_the_user_turn(chat_tokenizer: object, plain_tokenizer: object) -> None:
    assert frame_of(chat_tokenizer) == Frame("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\nAnswer:", False)
    assert frame_of(plain_tokenizer) == Frame("", "\nAnswer:", True)


class OddTemplate:
    """A tokenizer that only renders."""

    chat_template = "x"
    is_fast = True

    def __init__(self, template: Callable[..., str]) -> None:
        self.apply_chat_template = template

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def test_templates_that_print_the_date_get_a_fixed_one() -> None:
    def template(conversation: list[dict[str, str]], date_string: str = "today", **_: object) -> str:
        return f"{date_string} {conversation[0]['content']}"

    assert frame_of(OddTemplate(template)).before == "26 Jul 2024 "


@pytest.mark.parametrize(("times", "got"), [(0, "<0 times>"), (2, "<2 times>")])
def test_a_template_must_print_the_text_once(times: int, got: str) -> None:
    odd = OddTemplate(lambda conversation, **_: conversation[0]["content"] * times)
    with pytest.raises(InputError, match=f"tokenizer.chat_template must print the user's text once, got {got}"):
        frame_of(odd)
