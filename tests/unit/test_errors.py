from __future__ import annotations

import pytest

from rhstudy.errors import masked, message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:pw@host:5000/x", "http://***@host:5000/x"),
        ("at postgresql+psycopg2://ada:p@w@db/mlflow now", "at postgresql+psycopg2://***@db/mlflow now"),
        ("--tracking.uri=https://token@host", "--tracking.uri=https://***@host"),
        ("http://host/?password=pw&x=1", "http://host/?password=***&x=1"),
        ("http://host/a@b", "http://host/a@b"),
        ("ada@example.org", "ada@example.org"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_logins_in_addresses_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_message_shows_no_login() -> None:
    said = message("tracking.uri", "open", "http://ada:pw@host", "The server says: http://ada:pw@host/api is down")
    assert said == "tracking.uri must open, got 'http://***@host'. The server says: http://***@host/api is down."


@pytest.mark.parametrize("address", ["http://ada:{}@host", "http://host/?password={}", "<no answer at http://{}@host>"])
def test_a_login_longer_than_what_is_shown_is_masked_too(address: str) -> None:
    said = message("tracking.uri", "open", address.format("p" * 300), "Check it")
    assert "ppp" not in said
    assert "***" in said


def test_a_long_value_is_cut() -> None:
    assert message("x", "be short", "a" * 300, "Cut it") == f"x must be short, got '{'a' * 196}.... Cut it."
