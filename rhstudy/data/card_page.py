"""The data card as a page of markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BAR_WIDTH = 40


def card_page(card: Mapping[str, Any]) -> str:
    """Markdown of a data card.

    Args:
        card: as `rhstudy.data.build` makes it, with each part's portrait.
    """
    return "\n".join(_lines(card)).rstrip() + "\n"


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    recipe = card["recipe"]
    yield f"# Data card: {card['task']}, recipe {recipe['name']}"
    yield ""
    real = "some" if recipe["contains_real"] else "no"
    yield f"Recipe digest `{recipe['digest']}`; {real} training examples are real rows of the task."
    yield f"Seed {card['seed']}, split seed {card['split_seed']}."
    yield ""
    yield from _budget(card)
    yield from _sources(card)
    for name, part in card["parts"].items():
        yield from _part(name, part, len(card["dropped_rows"].get(name, {})))
    yield "## Recipe"
    yield ""
    yield from _table(("knob", "value"), [(key, f"`{value}`") for key, value in recipe["knobs"].items()])
    for note in card["notes"]:
        yield note
        yield ""


def _budget(card: Mapping[str, Any]) -> Iterator[str]:
    budget = card.get("budget")
    if budget:
        yield (
            f"Budget of every recipe of the study: {budget['num_examples']} examples, {budget['num_prompt_tokens']} "
            f"prompt tokens within {budget['tolerance']:.1%}. Found: {budget['num_prompt_tokens_found']} "
            f"({budget['deviation']:+.2%})."
            + (f" Distinct rows of every recipe: {budget['num_distinct']}." if "num_distinct" in budget else "")
        )
        yield ""


def _sources(card: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (name, str(source["num_rows"]), f"`{source['sha256']}`", source.get("licence", ""))
        for name, source in card["sources"].items()
    ]
    yield "## Sources"
    yield ""
    yield from _table(("source", "rows", "sha256", "licence"), rows)


def _part(name: str, part: Mapping[str, Any], num_dropped: int) -> Iterator[str]:
    yield f"## Part {name}"
    yield ""
    told = [
        ("examples", part["num_examples"]),
        ("distinct rows", part["num_distinct_rows"]),
        ("rows dropped", num_dropped),
        ("needle wording (examples)", _counts(part["num_by_origin"])),
        ("distinct needle texts", part["num_distinct_needles"]),
        ("wordings, names left out", part["num_wordings"]),
        ("tokens in all", part["num_tokens_total"]),
        ("prompt tokens", _range(part["num_prompt_tokens"])),
        ("answer tokens", _range(part["num_answer_tokens"])),
        ("documents", _range(part["num_documents"])),
        ("answer tokens found in the needle", f"{part['share_answer_in_needle']:.1%}"),
        ("question's words in the needle", _share(part["question_words_in_needle"])),
        ("question's words in a distractor", _share(part["question_words_in_distractors"])),
        ("questions that name their answer", part["num_answer_in_question"]),
        ("leaks found", part["num_leaks"]),
        ("sha256 of ids and answers", f"`{part['content_sha256']}`"),
    ]
    yield from _table(("", ""), [(key, str(value)) for key, value in told])
    lengths = [(f"{low}-{high}", count) for low, high, count in part["prompt_token_histogram"]]
    yield from _bars("Prompt tokens", lengths)
    tenths = [
        (f"{place * 10}-{place * 10 + 10} %", count) for place, count in enumerate(part["needle_position_tenths"])
    ]
    yield from _bars("Place of the needle among the documents", tenths)
    if part["wordings"]:
        yield "Most frequent wordings:"
        yield ""
        yield from _table(("wording", "needles"), [(_cell(text), str(count)) for text, count in part["wordings"]])
    yield f"### Examples of part {name}"
    yield ""
    for example in part["examples"]:
        yield f"**{_cell(example['question'])}** ({example['num_prompt_tokens']} tokens, `{example['example_id']}`)"
        yield ""
        for needle in example["needles"]:
            yield f"> {_marked(needle)}"
            yield ""
        yield f"Answer: {_cell(example['answer'])}"
        yield ""


def _marked(pieces: Sequence[str]) -> str:
    before, start, answer, end, after = map(_escaped, pieces)
    return f"...{before}<mark>{start}<b>{answer}</b>{end}</mark>{after}..."


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items())


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _range(values: Mapping[str, float]) -> str:
    return f"{values['min']} to {values['max']}, mean {values['mean']:g}"


def _cell(text: str) -> str:
    return _escaped(text).strip()


def _escaped(text: str) -> str:
    """Text that shows itself in markdown, on one line; spaces at its ends stay."""
    marked = re.sub(r"([\\`*|\[\]])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return re.sub(r"\s+", " ", marked)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> Iterator[str]:
    most, width = max(count for _, count in rows), max(len(label) for label, _ in rows)
    yield f"{title}:"
    yield ""
    yield "```"
    for label, count in rows:
        yield f"{label:>{width}}  {'#' * round(BAR_WIDTH * count / most)} {count}".rstrip()
    yield "```"
    yield ""
