"""One root seed, many named independent random streams.

Global seeding is banned: a stream's numbers depend on (root seed, names) alone, never on what else drew before it,
so adding a stage or a recipe changes no other's data.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(root_seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` under `root_seed` (SHA-256, equal on every machine).

    Args:
        root_seed: the run's one seed, >= 0.
        names: what the stream is for, for instance ``("haystack", example_id)``.

    Returns:
        An integer in [0, 2**63), fit for `torch.Generator.manual_seed`.
    """
    key = "\x1f".join([str(root_seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator(root_seed: int, *names: str | int) -> np.random.Generator:
    """The numpy generator of stream `names` under `root_seed`; see `stream_seed`."""
    return np.random.Generator(np.random.PCG64(stream_seed(root_seed, *names)))
