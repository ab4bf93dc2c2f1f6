"""SQuAD token F1 and exact match, against the best of several gold answers.

Normalisation and equations are those of the SQuAD 2.0 evaluation script (Rajpurkar et al. 2018, arXiv 1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from rhstudy.errors import require

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, ASCII punctuation removed, articles (a, an, the) removed, white space collapsed; in that order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _pair_f1(prediction: str, gold: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted)  # "The" against "the": equal, though nothing is left of either
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted))


def _pair_exact(prediction: str, gold: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(gold))


def _best(mark: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    remedy = "Mark the example unscored instead (rhstudy.evaluation.answers)"
    require(len(answers) > 0, "answers", "hold at least one gold answer", list(answers), remedy)
    return max(mark(prediction, gold) for gold in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD F1 = 2 |P ∩ G| / (|P| + |G|) over multisets of normalised tokens, maximum over gold answers.

    Where normalisation leaves nothing of one side, 1 if nothing is left of either, else 0 (as SQuAD 2.0).

    Args:
        prediction: the answer as parsed.
        answers: gold answers, at least one.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: no gold answer.
    """
    return _best(_pair_f1, prediction, answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised gold answer, else 0.0; args and errors as `token_f1`."""
    return _best(_pair_exact, prediction, answers)
