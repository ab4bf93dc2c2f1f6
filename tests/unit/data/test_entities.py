"""Names and years of invented facts: equal seeds, equal draws, whatever the day."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import numpy as np
import pytest

from rhstudy.data.entities import Entities, EntitySource


def test_years_follow_from_the_seed_alone_and_not_from_the_day() -> None:
    entities, rng = Entities(), np.random.default_rng(5)
    seeds, end = np.random.default_rng(5), datetime(2026, 11, 25, 22, tzinfo=UTC).timestamp()
    for _ in range(5000):
        entities.reseed(rng)
        drawn = random.Random(int(seeds.integers(2**63))).uniform(0, end)
        assert entities.draw("year") == str(datetime.fromtimestamp(drawn, UTC).year)


@pytest.mark.parametrize("source", ["faker", "faker_world", "nonce"])
@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_names_of_a_length_are_nearer_to_it_than_what_comes(source: EntitySource, words: int) -> None:
    entities = Entities(source)
    for kind in ("name", "company", "city", "year", "job", "language_name", "street_name"):
        entities.reseed(np.random.default_rng(words))
        wanted = [entities.draw(kind, words) for _ in range(200)]
        free = [entities.draw(kind) for _ in range(200)]
        away = [np.mean([abs(len(name.split()) - words) for name in names]) for names in (wanted, free)]
        assert away[0] <= away[1]
        if kind in ("name", "company", "city", "street_name"):
            assert len(set(wanted)) > 80  # a length must not bring the same few names again and again
        entities.reseed(np.random.default_rng(words))
        assert wanted == [entities.draw(kind, words) for _ in range(200)]
        assert len(entities.draw("name").split()) > 0


def test_four_words_are_reached_where_patterns_have_them() -> None:
    entities = Entities()
    entities.reseed(np.random.default_rng(0))
    for kind in ("name", "company", "job"):
        assert {len(entities.draw(kind, 4).split()) for _ in range(100)} == {4}
