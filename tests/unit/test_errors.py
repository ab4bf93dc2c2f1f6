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
