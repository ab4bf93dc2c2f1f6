"""Where among the passages of a prompt a needle stands: the position laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from rhstudy.errors import require

PositionLaw = Literal["uniform", "start", "middle", "end", "edges"]

_LAWS: Mapping[PositionLaw, Callable[[float], float]] = {
    "uniform": lambda at: at,
    "start": lambda at: at / 4,
    "middle": lambda at: 3 / 8 + at / 4,
    "end": lambda at: 3 / 4 + at / 4,
    "edges": lambda at: at / 2 if at < 1 / 2 else 1 / 2 + at / 2,
}
POSITION_LAWS: tuple[PositionLaw, ...] = get_args(PositionLaw)


def place(law: PositionLaw, at: float) -> float:
    """The position of a needle, as a share of the haystack, from a uniform draw.

    ``uniform`` anywhere; ``start``, ``middle`` and ``end`` in a quarter of the haystack; ``edges`` in the first or the
    last quarter (Liu et al. 2023, "Lost in the Middle": where models find most).

    Args:
        law: which.
        at: uniform in [0, 1).

    Returns:
        A number in [0, 1).

    Raises:
        InputError: no law has that name.
    """
    require(law in _LAWS, "needle position", f"be one of {', '.join(POSITION_LAWS)}", law, "Choose one")
    return _LAWS[law](at)
