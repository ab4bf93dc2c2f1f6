"""Names and years of invented facts: equal seeds, equal draws, whatever the day."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import numpy as np

from rhstudy.data.entities import Entities


def test_years_follow_from_the_seed_alone_and_not_from_the_day() -> None:
    entities, rng = Entities(), np.random.default_rng(5)
    seeds, end = np.random.default_rng(5), datetime(2026, 11, 25, 22, tzinfo=UTC).timestamp()
    for _ in range(5000):
        entities.reseed(rng)
        drawn = random.Random(int(seeds.integers(2**63))).uniform(0, end)
        assert entities.draw("year") == str(datetime.fromtimestamp(drawn, UTC).year)
