"""Examples in the terminal: the haystack shortened, needle and answer highlighted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhstudy.types import Example

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

HEAD_CHARS = 300
AROUND_CHARS = 240
NEEDLE = "black on yellow"
ANSWER = "bold white on red"
GAP = "dim italic"


def example_text(example: Example) -> Text:
    """The prompt with what lies far from its needles left out, and the gold answer behind it."""
    from rich.text import Text

    prompt = example.prompt
    kept = [(0, HEAD_CHARS), (len(prompt) - len(example.question) - HEAD_CHARS, len(prompt))]
    kept += [(needle.char_span.start - AROUND_CHARS, needle.char_span.end + AROUND_CHARS) for needle in example.needles]
    whole = Text(prompt)
    for needle in example.needles:
        whole.stylize(NEEDLE, *needle.char_span)
    for needle in example.needles:
        whole.stylize(ANSWER, *needle.answer_char_span)
    shown, end = Text(), 0
    for low, high in sorted((max(low, 0), min(high, len(prompt))) for low, high in kept):
        start = max(low, end)
        if start >= high:
            continue
        if start > end:
            shown.append(f"\n[... {start - end:,} characters ...]\n", style=GAP)
        shown.append_text(whole[start:high])
        end = high
    shown.append(example.answer, style=ANSWER)
    return shown


def print_example(example: Example, part: str, console: Console | None = None) -> None:
    """Print one example to stderr.

    Args:
        example: what to show.
        part: its part, for the title.
        console: where to; None is stderr, coloured where that is a terminal.
    """
    from rich.console import Console
    from rich.panel import Panel

    told = f"{part}: {example.example_id}, {example.recipe}, {example.num_prompt_tokens:,} tokens"
    target = console or Console(stderr=True)
    target.print(Panel(example_text(example), title=told, title_align="left"))
