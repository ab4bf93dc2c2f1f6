"""Rows of an invented MDQA: towns, who founded them, and passages that answer nothing."""

from __future__ import annotations

from typing import Any

import numpy as np


def word(number: int) -> str:
    """A distinct invented name per number."""
    rng = np.random.Generator(np.random.PCG64(number))
    parts = rng.choice(["ka", "lo", "mi", "ru", "sen", "tor", "vel", "zan", "bir", "dus"], size=3)
    return "".join(parts).capitalize() + "abcdefghij"[number % 10] + "klmnopqrst"[number // 10 % 10]


def town_row(number: int) -> dict[str, Any]:
    """One MDQA row: who founded a town, or when."""
    town, founder, year = word(number), f"{word(number + 1000)} {word(number + 2000)}", str(1200 + number)
    who = number % 2 == 0
    text = (
        f"{town} lies by the sea. In {year} {founder} built its harbour, and the market of {word(number + 4000)} grew."
    )
    question = f"who built the harbour of {town}" if who else f"when was the harbour of {town} built"
    answers = ["nobody", founder] if who else [year]
    return {"id": f"row-{number}", "question": question, "answers": answers, "title": town, "gold_text": text}


def river_passage(number: int) -> dict[str, str]:
    """One passage that answers nothing."""
    names = [word(5000 + 7 * number + step) for step in range(7)]
    text = (
        f"The harbour of {names[0]} faces {names[1]}. Ships from {names[2]} and {names[3]} bring salt, wool and tin, "
        f"while {names[4]} sends timber. Nobody knows why {names[5]} left for {names[6]} so early, or who paid for it."
    )
    return {"title": f"River {names[0]}", "text": text.replace("Nobody", "Few")}
