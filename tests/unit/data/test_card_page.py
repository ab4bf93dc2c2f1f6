"""The card beside its counts: histograms, wordings, similarity, examples; its page, and the preview."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from rhstudy.data import preview
from rhstudy.data.build import build_dataset
from rhstudy.data.card_page import card_page
from rhstudy.data.config import DataConfig
from rhstudy.data.licences import KNOWN, UNKNOWN, licence_of
from rhstudy.data.portrait import Portrait, histogram, pattern_of
from rhstudy.data.preview import example_text, print_example


def test_histograms_cover_every_value_once() -> None:
    assert histogram({5: 2}) == [[5, 5, 2]]
    bins = histogram({10: 1, 19: 2, 35: 4, 34: 1})
    assert bins[0][0] == 10
    assert bins[-1][1] >= 35
    assert [low for low, _, _ in bins[1:]] == [high + 1 for _, high, _ in bins[:-1]]
    assert sum(count for _, _, count in bins) == 8
    assert len(bins) <= 10


def test_patterns_leave_names_out() -> None:
    assert pattern_of("Alden Brisa) Alden Brisa was born in Lake Rome.") == "_ was born in _."
    assert pattern_of("kavot38) kavot38 = lumin22") == "_ = _"
    assert (
        pattern_of("Mary Lopez) It was in 1999, not in 2,001, that Mary Lopez came.")
        == "_ was in _, not in _, that _ came."
    )


@pytest.mark.parametrize("recipe", ["real", "low_low", "symbolic", "diverse_high"])
def test_portrait_and_page(
    recipe: str, config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build_dataset(config(recipe=recipe, num_examples=14), chat_tokenizer)
    portrait = Portrait()
    for example in data.parts["train"]:
        assert portrait.add(example) is example
    facts = portrait.facts()
    assert sum(count for _, _, count in facts["prompt_token_histogram"]) == 14
    assert facts["num_distinct_needles"] == 14
    assert len(facts["examples"]) == 10
    for shown, example in zip(facts["examples"], data.parts["train"], strict=False):
        before, start, answer, end, after = shown["needles"][0]
        assert answer == example.answer.strip() == shown["answer"]
        assert before + start + answer + end + after in example.prompt
        assert start + answer + end == example.prompt[slice(*example.needles[0].char_span)]
    assert (facts["num_wordings"] == 0) is (recipe == "real")
    assert 0 <= facts["question_words_in_distractors"] <= facts["question_words_in_needle"] <= 1
    if recipe == "low_low":
        assert facts["question_words_in_distractors"] == 0
        assert facts["num_wordings"] <= 10
    card = dict(data.card)
    card["parts"] = {"train": {**card["parts"]["train"], **facts}}
    page = card_page(card)
    assert page.count("<mark>") == 10
    assert f"# Data card: mdqa, recipe {recipe}" in page
    assert card["parts"]["train"]["content_sha256"] in page
    assert "| leaks found | 0 |" in page


def test_markup_in_texts_cannot_break_the_page(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build_dataset(config(num_examples=2), chat_tokenizer)
    portrait = Portrait()
    portrait.add(data.parts["train"][0])
    part = {**data.card["parts"]["train"], **portrait.facts()}
    part["examples"][0]["question"] = "a | b </mark> **c**"
    page = card_page({**data.card, "parts": {"train": part}})
    assert r"a \| b &lt;/mark> \*\*c\*\*" in page


def test_licences() -> None:
    assert "CC BY 4.0" in licence_of("3807c7ec459c83ed1f5cebf3e93cc507057d067802f953bbf73831b1f8b7bb37")
    assert "Python Software Foundation" in licence_of("0", "/cache/python-docs-abc.jsonl")
    assert licence_of("0", "mine.jsonl") == UNKNOWN
    assert all(len(sha256) == 64 for sha256 in KNOWN)


def test_preview_highlights_needle_and_answer(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    example = build_dataset(config(num_examples=1, num_tokens=1024), chat_tokenizer).parts["train"][0]
    text = example_text(example)
    marked = {style: "" for style in ("black on yellow", "bold white on red")}
    for span in text.spans:
        if span.style in marked:
            marked[span.style] += text.plain[span.start : span.end] + "|"
    needle = example.prompt[slice(*example.needles[0].char_span)]
    assert marked["black on yellow"] == f"{needle}|"
    assert marked["bold white on red"] == f"{example.answer.strip()}|{example.answer}|"
    assert "characters ...]" in text.plain
    assert len(text.plain) < len(example.prompt)
    shown = io.StringIO()
    print_example(example, "train", Console(file=shown, width=100, force_terminal=True))
    assert "\x1b[" in shown.getvalue()
    assert example.example_id in shown.getvalue()


def test_a_needle_across_the_edge_of_the_head_is_marked_once(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = build_dataset(config(num_examples=1, num_tokens=1024), chat_tokenizer).parts["train"][0]
    needle = example.needles[0].char_span
    for head in (needle.start - 1, needle.start, needle.start + 5, needle.end, needle.end + 1):
        monkeypatch.setattr(preview, "HEAD_CHARS", head)
        text = example_text(example)
        shown = [text.plain[span.start : span.end] for span in text.spans if span.style == preview.NEEDLE]
        assert shown == [example.prompt[slice(*needle)]]


def test_preview_without_colour_has_brackets(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    example = build_dataset(config(recipe="low_low", num_examples=1), chat_tokenizer).parts["train"][0]
    shown = io.StringIO()
    print_example(example, "train", Console(file=shown, width=10_000))
    needle, answer = example.needles[0].char_span, example.needles[0].answer_char_span
    before, after = example.prompt[needle.start : answer.start], example.prompt[answer.end : needle.end]
    line = f"[[{before}**{example.prompt[slice(*answer)]}**{after}]]"
    assert "\x1b[" not in shown.getvalue()
    assert line in shown.getvalue()
    assert f"**{example.answer}**" in shown.getvalue()


def test_the_page_keeps_spaces_and_shows_brackets(
    config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build_dataset(config(recipe="low_high", num_examples=1), chat_tokenizer)
    portrait = Portrait()
    example = portrait.add(data.parts["train"][0])
    page = card_page({**data.card, "parts": {"train": {**data.card["parts"]["train"], **portrait.facts()}}})
    needle = example.needles[0]
    assert example.prompt[needle.answer_char_span.start - 1] == " "
    assert f" <b>{example.answer.strip()}</b>" in page
    assert r"Document \[" in page
