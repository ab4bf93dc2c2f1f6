"""rhstudy: which long-context training data teaches the attention heads that retrieve.

Reading order: `heads/score.py` (the quantity), `models/probe.py` (how it is observed), `data/knobs.py` (what varies),
`interventions/knockout.py` (how it is tested causally), `stats/correlation.py` (what is claimed), `stages/detect.py`
(how they meet).

    from rhstudy import detect
    scores = detect(model, tokenizer, examples)      # every head of any decoder, see heads/detect.py

Importing this package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Example",
    "HeadScores",
    "MassSettings",
    "Needle",
    "PublishedQuirks",
    "Span",
    "detect",
    "make_example",
]
_HOMES = {
    "Example": "rhstudy.types",
    "HeadScores": "rhstudy.types",
    "MassSettings": "rhstudy.heads.attention_mass",
    "Needle": "rhstudy.types",
    "PublishedQuirks": "rhstudy.heads.published_code",
    "Span": "rhstudy.types",
    "detect": "rhstudy.heads.detect",
    "make_example": "rhstudy.data.own_prompts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rhstudy' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
