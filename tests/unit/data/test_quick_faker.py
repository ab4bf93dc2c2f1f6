"""Names drawn fast are Faker's own: the same seeds, the same names, and the same random numbers used for them."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from faker import Faker

from rhstudy.data import quick_faker as module
from rhstudy.data.entities import LOCALE, WORLD_LOCALES
from rhstudy.data.quick_faker import drawn, nearest_in_words, quick_faker

KINDS = ("name", "first_name", "last_name", "company", "city", "street_name", "job", "language_name", "address")


@pytest.mark.parametrize("locale", [LOCALE, *WORLD_LOCALES])
def test_names_are_those_of_faker(locale: str) -> None:
    quick, slow = quick_faker(locale), Faker(locale).factories[0]
    for number in range(300):
        quick.seed_instance(number)
        slow.seed_instance(number)
        kinds = random.Random(number).sample(KINDS, 3)
        assert [getattr(quick, kind)() for kind in kinds] == [getattr(slow, kind)() for kind in kinds]
        assert quick.random.getstate() == slow.random.getstate()


def test_lists_that_faker_makes_anew_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 2)
    quick, slow = quick_faker(LOCALE), Faker(LOCALE).factories[0]
    provider, plain = quick.providers[0], slow.providers[0]
    for number in range(20):
        quick.seed_instance(number)
        slow.seed_instance(number)
        for elements in (["a", "b", str(number)], ("c", str(number)), OrderedDict(x=1.0, y=2.0, z=float(number + 1))):
            assert provider.random_element(elements) == plain.random_element(elements)
        for kind in ("x", "abc", {"k": 1}.keys()):
            assert provider.random_element(kind) == plain.random_element(kind)


def test_patterns_with_arguments_and_signs_are_written_as_faker_writes_them() -> None:
    quick, slow = quick_faker(LOCALE), Faker(LOCALE).factories[0]
    for generator in (quick, slow):
        generator.set_arguments("small", {"min_value": 5, "max_value": 9})
    for text in ("100 % {{ last_name }}%s", "{{pyint:small}} of {{ last_name }}", "nothing"):
        quick.seed_instance(3)
        slow.seed_instance(3)
        assert quick.parse(text) == slow.parse(text)
    with pytest.raises(AttributeError, match="no_such_name"):
        quick.parse("{{no_such_name}}")


def test_lists_are_shortened_to_the_elements_nearest_in_words() -> None:
    patterns = OrderedDict([("{{a}} {{b}}", 0.9), ("{{ a }} {{b}} {{c}}", 0.05), ("{{a}} de {{b}} {{c}}", 0.05)])
    assert nearest_in_words(patterns, 4) == OrderedDict([("{{a}} de {{b}} {{c}}", 0.05)])
    assert list(nearest_in_words(patterns, 3)) == ["{{ a }} {{b}} {{c}}"]
    names = [*(f"n{number}" for number in range(99)), "a b c"]
    assert nearest_in_words(names, 3) == tuple(names)  # one of a hundred is too few, so what is next nearest comes too
    assert nearest_in_words([*names, "a b"], 3) == ("a b c", "a b")
    assert nearest_in_words(names, 1) == tuple(names[:99])
    assert nearest_in_words(names * 2, 9) == tuple(names * 2)
    assert nearest_in_words([], 2) == []
    assert nearest_in_words("abc", 2) == "abc"


def test_a_length_holds_for_one_name_and_for_the_list_that_decides() -> None:
    fake = quick_faker(LOCALE)
    assert len(drawn(fake, "name", 4).split()) == 4
    assert {len(fake.name().split()) for _ in range(200)} > {2}
    with pytest.raises(AttributeError):
        drawn(fake, "no_such_kind", 4)
    assert fake.length.words == 0
    german = quick_faker("de_DE")  # its only pattern of cities is a placeholder, so the names behind it decide
    assert {len(drawn(german, "city", 2).split()) for _ in range(100)} == {2}


def test_a_length_holds_however_many_lists_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 0)
    few = quick_faker(LOCALE)
    monkeypatch.undo()
    many = quick_faker(LOCALE)
    assert [drawn(few, "name", 4) for _ in range(50)] == [drawn(many, "name", 4) for _ in range(50)]
