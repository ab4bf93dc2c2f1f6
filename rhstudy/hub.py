"""Whether the hub can be reached, asked once with a limit; where it cannot, its libraries look into their cache alone.

Left to themselves they try six times for each file: half a minute where connections are refused, and more than five
minutes where a server takes them and says nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

PATIENCE_S = 10.0
"""Seconds in which the hub answers, or counts as away."""
CACHED = "fetch it once with a network, after which its cache serves it (at once under HF_HUB_OFFLINE=1)"
"""Ends the remedy of whatever needs the hub."""


@contextlib.contextmanager
def hub_or_cache() -> Iterator[str]:
    """Inside, the hub's libraries ask the hub, or nobody where it is away. Import them before.

    Yields:
        Why the hub is away, as `why_away`.
    """
    away = why_away()
    with _cache_alone() if away else contextlib.nullcontext():
        yield away


def why_away(address: str = "") -> str:
    """Why the hub, or another `address`, gives no answer (no network, offline mode); empty where it gives any."""
    from huggingface_hub import constants, get_session

    address = address or constants.ENDPOINT
    try:
        get_session().head(address, timeout=PATIENCE_S)
    except Exception as error:  # of whichever client the library has
        return told(address, error)
    return ""


def told(address: str, error: Exception) -> str:
    """What came of asking `address`, for messages."""
    return f"{address}: {type(error).__name__}: {str(error)[:120]}"


@contextlib.contextmanager
def _cache_alone() -> Iterator[None]:
    """The libraries' own offline mode, which they read from the environment at import and never again."""
    from huggingface_hub import constants

    switched = [constants, *(module.config for module in [sys.modules.get("datasets")] if module)]
    known = [module.HF_HUB_OFFLINE for module in switched]
    try:
        for module in switched:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(switched, known, strict=True):
            module.HF_HUB_OFFLINE = value
