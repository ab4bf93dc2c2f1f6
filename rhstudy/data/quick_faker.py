"""Faker's names from the same seeds, drawn several times as fast: weights are summed and patterns taken apart once.

Faker sums the weights of a word list and looks for placeholders anew in every draw; a prompt of 32k tokens of invented
facts draws some 3,000 names, or 30,000 where their length matters. Only those two steps are replaced, in the
generators made here; which names there are and in which order random numbers are used stays Faker's. Names of about a
given number of words come from shortened lists instead of being drawn until one fits.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

_MOST_KNOWN = 256
"""Lists and patterns that are remembered; Faker makes some anew in every draw, which are left to it beyond these."""
_LEAST_SHARE = 0.02
"""Lists of plain names are shortened to this share of them at least, so that names stay many."""
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def quick_faker(locale: str, random: Random | None = None) -> Any:
    """Faker's generator for a locale, with `random_element` and `parse` as described above.

    Args:
        locale: whose names.
        random: the stream to draw from, which generators may share; None makes one.
    """
    from faker import Faker

    generator = Faker(locale).factories[0]
    generator.random = random or Random(0)  # Faker's own is shared by all of a process
    generator.length = _Length()
    for provider in generator.providers:
        provider.random_element = _element_drawer(generator, provider.random_element)
    generator.parse = _parser(generator)
    return generator


def drawn(generator: Any, kind: str, words: int = 0) -> str:
    """A name from a generator of `quick_faker`.

    Args:
        generator: what draws it.
        kind: the generator's method.
        words: words that it is to have: the first list of the method, pattern or names, is shortened to its
            `nearest_in_words`, and the one that a lone placeholder stands for; 0 takes what comes.
    """
    generator.length.words = words
    try:
        return str(getattr(generator, kind)())
    finally:
        generator.length.words = 0


@dataclass(slots=True)
class _Length:
    """Words of the name that is being drawn; 0 once the list that decides was chosen from."""

    words: int = 0


def _element_drawer(generator: Any, slow: Callable[[Any], Any]) -> Callable[..., Any]:
    """`BaseProvider.random_element`: one element, by weight where it is an ordered dict; what it knows is kept."""
    random, length = generator.random, generator.length
    known: dict[int, tuple[Any, Callable[[], Any]]] = {}  # the list is held too, so that no other has its id
    near: dict[tuple[int, int], tuple[Any, Any]] = {}

    def of_length(elements: Any) -> Any:
        found = near.get((id(elements), length.words))
        if found is None:
            found = elements, nearest_in_words(elements, length.words)
            if len(near) < _MOST_KNOWN:
                near[id(elements), length.words] = found
        return found[1]

    def random_element(elements: Any = ("a", "b", "c")) -> Any:
        if length.words:
            drawn = drawn_of(of_length(elements))
            if not _PLACEHOLDER.fullmatch(drawn):  # else the list that it stands for decides
                length.words = 0
            return drawn
        return drawn_of(elements)

    def drawn_of(elements: Any) -> Any:
        found = known.get(id(elements))
        if found is None:
            draw = _drawer(random, elements) if len(known) < _MOST_KNOWN else None
            if draw is None:
                return slow(elements)
            found = known[id(elements)] = elements, draw
        return found[1]()

    return random_element


def nearest_in_words(elements: Any, words: int) -> Any:
    """The elements of a list, tuple or ordered dict whose number of words is nearest to `words`, in their order.

    A placeholder counts as one word. Of plain names those of the next nearest numbers are taken too until they are
    `_LEAST_SHARE` of the list; patterns are few and each makes many names.
    """
    if type(elements) not in (OrderedDict, tuple, list) or not elements:
        return elements
    distance = {one: abs(len(_PLACEHOLDER.sub("x", str(one)).split()) - words) for one in elements}
    patterns = all("{{" in str(one) for one in elements)
    least = 1 if patterns else max(int(_LEAST_SHARE * len(elements)), 1)
    reach = sorted(distance[one] for one in elements)[least - 1]
    kept = [one for one in elements if distance[one] <= reach]
    if type(elements) is OrderedDict:
        return OrderedDict((one, elements[one]) for one in kept)
    return tuple(kept)


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
