"""Rings go out after commit, and only then."""

import time

import redis

from db.doorbell import Doorbell
from db.session import SessionFactory, transaction
from tests.rows import add_job


def rings(redis_url: str, queue: str, *, at_least: int = 0) -> int:
    """How many messages the queue holds, waiting a moment until there are `at_least` so many."""
    client = redis.Redis.from_url(redis_url)
    deadline = time.monotonic() + 5
    try:
        while (found := int(client.llen(queue))) < at_least and time.monotonic() < deadline:
            time.sleep(0.02)
        return found
    finally:
        client.close()


class TestListen:
    def test_rings_once_the_work_is_committed(self, session_factory: SessionFactory, redis_url: str) -> None:
        doorbell = Doorbell(redis_url)
        doorbell.listen(session_factory)
        with transaction(session_factory) as session:
            with session.begin_nested():
                add_job(session)
            time.sleep(0.2)
            assert rings(redis_url, "train") == 0
        assert rings(redis_url, "train", at_least=1) == 1
        doorbell.close()

    def test_a_rolled_back_transaction_rings_nobody(
        self, session_factory: SessionFactory, redis_url: str
    ) -> None:
        doorbell = Doorbell(redis_url)
        doorbell.listen(session_factory)
        with session_factory() as session:
            add_job(session)
            session.rollback()
        doorbell.close()
        assert rings(redis_url, "train") == 0


class TestRing:
    def test_close_sends_what_was_rung(self, redis_url: str) -> None:
        doorbell = Doorbell(redis_url)
        doorbell.ring("train", "io")
        doorbell.close()
        assert doorbell.unheard(["train", "io", "cpu"]) == {"train": 1, "io": 1, "cpu": 0}

    def test_a_broker_that_is_away_costs_the_caller_nothing(self) -> None:
        doorbell = Doorbell("redis://127.0.0.1:1/0")
        started = time.monotonic()
        for _ in range(1000):
            doorbell.ring("train")
        assert time.monotonic() - started < 0.5
        assert doorbell.unheard(["train"]) is None
        doorbell.close(timeout_seconds=0)
