"""Examples in the terminal: the haystack shortened, needle and answer highlighted.

Where there is no colour the needle stands between ``[[`` and ``]]`` and the answer between ``**``.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    for low, high in _joined((max(low, 0), min(high, len(prompt))) for low, high in kept):
        if low > end:
            shown.append(f"\n[... {low - end:,} characters ...]\n", style=GAP)
        shown.append_text(whole[low:high])
        end = high
    shown.append(example.answer, style=ANSWER)
    return shown


def _joined(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The windows in order, those that touch made one: a needle shown in two pieces would be marked as two."""
    found: list[tuple[int, int]] = []
    for window in sorted(windows):
        first, last = found.pop() if found and window[0] <= found[-1][1] else window
        found.append((first, max(last, window[1])))
    return found


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
    text = example_text(example)
    coloured = target.is_terminal and not target.no_color
    target.print(Panel(text if coloured else _with_marks(text), title=told, title_align="left"))


def _with_marks(text: Text) -> Text:
    """Plain text with brackets for what is highlighted."""
    from rich.text import Text

    marks = {NEEDLE: ("[[", "]]"), ANSWER: ("**", "**")}
    edges = [(span.start, 1, -span.end, marks[str(span.style)][0]) for span in text.spans if span.style in marks]
    edges += [(span.end, 0, -span.start, marks[str(span.style)][1]) for span in text.spans if span.style in marks]
    plain = text.plain
    for place, _, _, mark in sorted(edges, reverse=True):
        plain = plain[:place] + mark + plain[place:]
    return Text(plain)
