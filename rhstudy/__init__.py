"""rhstudy: which long-context training data teaches the attention heads that retrieve.

Reading order: `heads/score.py` (the quantity), `models/probe.py` (how it is observed), `data/knobs.py` (what varies),
`interventions/knockout.py` (how it is tested causally), `stats/correlation.py` (what is claimed), `stages/detect.py`
(how they meet).

Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
