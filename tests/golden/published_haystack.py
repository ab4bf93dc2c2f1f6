"""Needles and a haystack of our own in the folder layout of the published program (Wu et al. 2024).

    python tests/golden/published_haystack.py HAYSTACK

The haystack is this repository's LICENSE (Apache-2.0) as running text, turned so that each part begins elsewhere; the
three needles are invented here and chosen for what they show:

1. the answer repeats tokens ("the red ..."), which the program counts at every step;
2. the answer is short and begins otherwise than it does in the text (capital letter, no space before it), so with a
   byte-level tokenizer no window shares enough tokens and the program's span is (-1, -1);
3. the answer is long, so a window that begins before it passes the program's set overlap, and its span is shifted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LICENSE = Path(__file__).parents[2] / "LICENSE"
NEEDLES = (
    {
        "needle": "The keeper of the Orrin Bay lighthouse paints the red door, the red boat and the red lamp every"
        " spring before the first ships return.",
        "question": "What does the keeper of the Orrin Bay lighthouse paint every spring?",
        "real_needle": "the red door, the red boat and the red lamp every spring before the first ships return",
    },
    {
        "needle": "The secret ingredient of the baker in Tolmin is smoked chestnut honey.",
        "question": "What is the secret ingredient of the baker in Tolmin?",
        "real_needle": "Smoked chestnut honey",
    },
    {
        "needle": "The old ferry to Skarvo was stopped because a storm in March broke both of its engines, washed away"
        " the wooden pier, and left nobody willing to pay for a new captain.",
        "question": "Why was the old ferry to Skarvo stopped?",
        "real_needle": "Because a storm in March broke both of its engines, washed away the wooden pier, and left"
        " nobody willing to pay for a new captain.",
    },
)


def write_haystack(folder: Path) -> None:
    """Write ``needles.jsonl`` and ``part1`` to ``part3``."""
    words = LICENSE.read_text(encoding="utf-8").split()
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(needle) + "\n" for needle in NEEDLES)
    (folder / "needles.jsonl").write_text(lines, encoding="utf-8")
    for number in range(1, len(NEEDLES) + 1):
        start = (number - 1) * len(words) // len(NEEDLES)
        part = folder / f"part{number}"
        part.mkdir(exist_ok=True)
        (part / "p1.txt").write_text(" ".join(words[start:] + words[:start]) + " ", encoding="utf-8")


if __name__ == "__main__":
    write_haystack(Path(sys.argv[1]))
