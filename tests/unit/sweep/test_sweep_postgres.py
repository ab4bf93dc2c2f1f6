"""A sweep in PostgreSQL: killed workers lose nothing, and a server that is away for a while is waited for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Fake, fake_sweep
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from storages import assert_nothing_is_lost_or_doubled, kill_at_random, num_kills, states_of

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))

from tracking_server import Postgres, postgres_server

from rhstudy.sweep.guard import ServerGuard

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


def test_killed_workers_lose_no_trial_and_double_none(server: Postgres, world: Path, tmp_path: Path) -> None:
    wanted = num_kills(2)
    sweep = fake_sweep(world, tmp_path, name="kills", storage=server.url, num_trials=4 + wanted, max_retries=100)
    sweep(num_trials=1)  # makes the tables
    killed = kill_at_random(sweep, Fake(seconds=0.3), 2, wanted, limit_s=60 + 20 * wanted)
    assert killed == wanted
    assert_nothing_is_lost_or_doubled(sweep, killed)


def test_a_server_that_is_away_is_waited_for(server: Postgres, world: Path, tmp_path: Path) -> None:
    away_s = float(os.environ.get("RHSTUDY_AWAY_S", "1.5"))
    sweep = fake_sweep(world, tmp_path, name="away", storage=server.url, num_trials=6)
    sweep(num_trials=1)
    workers = [sweep.fork(Fake(seconds=0.3)) for _ in range(2)]
    limit = time.monotonic() + 60
    while states_of(sweep).count("COMPLETE") < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    server.stop()
    time.sleep(away_s)
    server.start()
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]
    assert_nothing_is_lost_or_doubled(sweep, num_kills=2)  # a claim that was cut is made anew
    said = "".join((tmp_path / f"stderr.{pid}").read_text() for pid in workers)
    assert "storage postgresql+psycopg2://***@127.0.0.1" in said
    assert "is away, trying again for 600 s" in said
    assert "is back" in said


def test_a_lock_whose_connection_was_ended_is_not_held(server: Postgres) -> None:
    guard = ServerGuard(server.url, "cut")
    guard.acquire()
    guard.require_held()
    engine = create_engine(server.url, poolclass=NullPool)
    with engine.connect() as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        assert connection.scalar(text(query)) is True
    with pytest.raises(DBAPIError):
        guard.require_held()
    guard.release()
    other = ServerGuard(server.url, "cut")
    assert other.acquire()
    other.release()
    assert guard.acquire()
    guard.release()
