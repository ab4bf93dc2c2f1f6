"""F1 of cited documents, corrected for chance (SummHay Citation).

With P the cited numbers, G the gold ones, N documents in the prompt:

    set_f1    = 2 |P ∩ G| / (|P| + |G|)
    random    = 2 min(|P|, N) |G| / (N (|P| + |G|))   expected set_f1 of |P| numbers drawn at random from the N
    corrected = (set_f1 - random) / (1 - random)      1 = all and only gold, 0 = as good as chance; may be negative
    cite_all  = 2 |G| / (N + |G|)                     set_f1 of citing every document; its corrected F1 is 0

Numbers beyond N are cited documents that do not exist: they count in |P| and can never be gold. With |G| < N `random`
stays below 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from rhstudy.errors import require

_BRACKETED = re.compile(r"\[([\d\s,;]+)\]")
_NUMBER = re.compile(r"\d+")


def parse_citations(text: str) -> frozenset[int]:
    """The numbers that `text` cites: those in square brackets, or all where nothing is in brackets."""
    bracketed = _BRACKETED.findall(text)
    return frozenset(int(number) for part in bracketed or [text] for number in _NUMBER.findall(part))


def citation_marks(cited: Collection[int], gold: Collection[int], num_documents: int) -> dict[str, float]:
    """``set_f1``, ``random_same_size``, ``cite_all``, ``corrected_f1`` and ``exact_match`` of one answer.

    Args:
        cited: P.
        gold: G, not empty.
        num_documents: N, more than |G|.

    Raises:
        InputError: no gold number, no other document, or a gold number that is none of 1 to N.
    """
    found, wanted = set(cited), set(gold)
    require(0 < len(wanted) < num_documents, "gold documents", f"be 1 to {num_documents - 1} of {num_documents}",
            len(wanted), "Leave the example out")  # fmt: skip
    real = min(wanted) >= 1 and max(wanted) <= num_documents
    must, remedy = f"be numbers from 1 to {num_documents}", "Leave the example out"
    require(real, "gold documents", must, sorted(wanted), remedy)
    size = len(found) + len(wanted)
    score = 2 * len(found & wanted) / size
    by_chance = 2 * min(len(found), num_documents) * len(wanted) / (num_documents * size)
    return {
        "set_f1": score,
        "random_same_size": by_chance,
        "cite_all": 2 * len(wanted) / (num_documents + len(wanted)),
        "corrected_f1": (score - by_chance) / (1 - by_chance),
        "exact_match": float(found == wanted),
    }
