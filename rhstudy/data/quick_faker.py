"""Faker's names from the same seeds, drawn several times as fast: weights are summed and patterns taken apart once.

Faker sums the weights of a word list and looks for placeholders anew in every draw; a prompt of 32k tokens of invented
facts draws some 3,000 names, or 30,000 where their length matters. Only those two steps are replaced, in the
generators made here; which names there are and in which order random numbers are used stays Faker's.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import Any

_MOST_KNOWN = 256
"""Lists and patterns that are remembered; Faker makes some anew in every draw, which are left to it beyond these."""
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def quick_faker(locale: str) -> Any:
    """Faker's generator for a locale, with `random_element` and `parse` as described above."""
    from faker import Faker

    generator = Faker(locale).factories[0]
    generator.seed_instance(0)  # from here on it has a random stream of its own, and keeps it
    for provider in generator.providers:
        provider.random_element = _element_drawer(generator.random, provider.random_element)
    generator.parse = _parser(generator)
    return generator


def _element_drawer(random: Random, slow: Callable[[Any], Any]) -> Callable[..., Any]:
    """`BaseProvider.random_element`: one element, by weight where it is an ordered dict; what it knows is kept."""
    known: dict[int, tuple[Any, Callable[[], Any]]] = {}  # the list is held too, so that no other has its id

    def random_element(elements: Any = ("a", "b", "c")) -> Any:
        found = known.get(id(elements))
        if found is None:
            draw = _drawer(random, elements) if len(known) < _MOST_KNOWN else None
            if draw is None:
                return slow(elements)
            found = known[id(elements)] = elements, draw
        return found[1]()

    return random_element


def _drawer(random: Random, elements: Any) -> Callable[[], Any] | None:
    """`Random.choices` by weight, `Random.choice` without, of this list; None where it is neither kind."""
    number, bits = random.random, random.getrandbits
    if type(elements) is OrderedDict and elements:
        names, sums = tuple(elements), list(accumulate(elements.values()))
        total, last = sums[-1] + 0.0, len(sums) - 1
        return lambda: names[bisect(sums, number() * total, 0, last)]
    if type(elements) not in (tuple, list) or not elements:
        return None

    def choice() -> Any:
        count = len(elements)
        at = bits(width := count.bit_length())
        while at >= count:
            at = bits(width)
        return elements[at]

    return choice


def _parser(generator: Any) -> Callable[[str], str]:
    """`Generator.parse`: the pattern with each placeholder replaced by what it names, from the left."""
    slow = generator.parse
    known: dict[str, tuple[str, list[Callable[[], Any]]]] = {}

    def parse(text: str) -> str:
        found = known.get(text)
        if found is None:
            literals, names = _PLACEHOLDER.split(text)[::2], _PLACEHOLDER.findall(text)
            if any("{{" in literal for literal in literals) or len(known) >= _MOST_KNOWN:
                return str(slow(text))
            form = "%s".join(literal.replace("%", "%%") for literal in literals)
            found = known[text] = form, [getattr(generator, name) for name in names]
        form, draws = found
        return form % tuple([draw() for draw in draws])

    return parse
