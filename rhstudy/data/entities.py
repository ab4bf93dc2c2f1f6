"""Names of invented people, companies, places and things, from Faker; equal seeds give equal names."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache, partial
from random import Random
from typing import Any, Literal, get_args

import numpy as np

from rhstudy.data.quick_faker import drawn, quick_faker
from rhstudy.data.relations import Kind
from rhstudy.errors import InputError, StudyError, message

EntitySource = Literal["faker", "faker_world", "nonce"]
LOCALE = "en_US"
WORLD_LOCALES = ("de_DE", "es_ES", "fi_FI", "fr_FR", "hu_HU", "nl_NL", "pl_PL", "pt_BR", "sv_SE", "tr_TR")
"""Locales in Latin script; their company and street names come with their own spelling."""
MAX_DRAWS = 100
_COMPANY_TRIES, _ABROAD_TRIES = 12, 4
"""Draws of a name of a wanted length, of which the nearest is kept: parts of American companies may have two words, and
locales differ in the lengths they have."""
_SYLLABLES = ("ba", "den", "for", "gil", "ka", "lom", "mir", "nus", "pel", "rok", "sav", "tir", "vol", "wen", "zur")

_FIRST_DATE, _LAST_DATE = datetime(1970, 1, 1), datetime(2026, 11, 25, 22)
"""Years are drawn from 1970 to then. Faker's own end is the present: the same seed would give other years later on."""
_SECONDS = (_LAST_DATE - _FIRST_DATE).total_seconds()
_FIRMS = ("Group", "Works", "Mills", "Trust", "Foods", "Bank", "Press", "Lines")
_STREETS = ("Street", "Lane", "Road", "Avenue", "Way", "Square", "Alley", "Court")


class Entities:
    """A source of names; `reseed` it from a stream before each fact.

    Faker's word lists change between versions: data cards record the version, and golden digests hold the names fixed
    for the versions that pyproject.toml allows.

    Args:
        source: ``faker`` (locale en_US), ``faker_world`` (people, companies and places of ten other locales, the rest
            as ``faker``) or ``nonce`` (words of random syllables for people, companies, places and streets: no model
            has met them).

    Raises:
        InputError: an unknown source.
    """

    def __init__(self, source: EntitySource = "faker") -> None:
        if source not in get_args(EntitySource):
            known = ", ".join(get_args(EntitySource))
            raise InputError(message("knobs.entity_source", f"be one of {known}", source, "Choose one"))
        self._fake = quick_faker(LOCALE)
        self._random: Random = self._fake.random
        locales = WORLD_LOCALES if source == "faker_world" else ()
        self._abroad = [quick_faker(locale, self._random) for locale in locales]
        self._tries = {"company": _COMPANY_TRIES}
        self._draws = self._own_draws()
        if source == "nonce":
            self._draws |= {kind: partial(self._nonce, kind) for kind in ("name", "company", "city", "street_name")}
        elif source == "faker_world":
            self._draws |= {kind: partial(self._from_abroad, kind) for kind in ("name", "company", "city")}
            self._tries |= dict.fromkeys(("name", "company", "city"), _ABROAD_TRIES)

    def _own_draws(self) -> dict[str, Callable[[int], str]]:
        kinds = ("name", "company", "city", "language_name", "street_name")
        plain = {kind: partial(drawn, self._fake, kind) for kind in kinds}
        return {"job": self._plain_job, "year": self._year, **plain}

    def reseed(self, rng: np.random.Generator) -> None:
        """Start from the next number of the stream `rng`."""
        self._random.seed(int(rng.integers(2**63)))

    def draw(self, kind: Kind, words: int = 0) -> str:
        """One name of a kind.

        Args:
            kind: what it names.
            words: words that it is to have, as near as the source's patterns and lists allow; 0 takes what comes.
        """
        if not words:
            return self._draws[kind](0)
        nearest, distance = "", math.inf
        for _ in range(self._tries.get(kind, 1)):
            name = self._draws[kind](words)
            if (found := abs(len(name.split()) - words)) < distance:
                nearest, distance = name, found
            if not distance:
                break
        return nearest

    def _year(self, words: int) -> str:
        del words
        return str((_FIRST_DATE + timedelta(seconds=self._random.uniform(0, _SECONDS))).year)

    def _from_abroad(self, kind: str, words: int) -> str:
        abroad = self._random.choice(self._abroad)
        if kind != "name":
            return _plain_spaces(drawn(abroad, kind, words))
        first = drawn(abroad, "first_name")
        last = drawn(abroad, "last_name", max(words - len(first.split()), 0))
        return _plain_spaces(f"{first} {last}")

    def percent(self) -> str:
        """A whole number of two digits."""
        return str(self._random.randrange(11, 100))

    def _nonce(self, kind: str, words: int) -> str:
        del words

        def word() -> str:
            return "".join(self._random.choice(_SYLLABLES) for _ in range(3)).capitalize()

        shapes: dict[str, Callable[[], str]] = {
            "name": lambda: f"{word()} {word()}",
            "company": lambda: f"{word()} {self._random.choice(_FIRMS)}",
            "street_name": lambda: f"{word()} {self._random.choice(_STREETS)}",
        }
        return shapes.get(kind, word)()

    def _plain_job(self, words: int) -> str:
        """A job as running text spells it; Faker also has "Engineer, civil (consulting)"."""
        for _ in range(MAX_DRAWS):
            job = drawn(self._fake, "job", words)
            if plain := _plain(job):
                return plain
        must = f"be plain within {MAX_DRAWS} draws"
        raise StudyError(message("templated profession", must, job, "Report this defect"))


@lru_cache(maxsize=1 << 12)
def _plain(job: str) -> str:
    return job[0].lower() + job[1:] if job.replace(" ", "").isalpha() else ""


def _plain_spaces(text: Any) -> str:
    return " ".join(str(text).split())
