"""Hearing which jobs have new events, whatever breaks."""

import asyncio
import contextlib

import pytest
from sqlalchemy import text

from db.listener import Listener
from db.session import JOBS_WITH_EVENTS, SessionFactory


@pytest.mark.parametrize("breaks_at", [None, "job-1"], ids=["at the start", "while it hears"])
def test_what_breaks_it_is_not_the_end(
    database_url: str, session_factory: SessionFactory, breaks_at: str | None
) -> None:
    heard: list[str | None] = []

    def hear(job_id: str | None) -> None:
        heard.append(job_id)
        if heard.count(breaks_at) == 1 and job_id == breaks_at:
            raise OSError("no descriptors left")

    def notify(job_id: str) -> None:
        with session_factory() as session, session.begin():
            session.execute(text(f"NOTIFY {JOBS_WITH_EVENTS}, '{job_id}'"))

    async def listen() -> None:
        listening = asyncio.create_task(Listener(database_url, {JOBS_WITH_EVENTS: hear}).run())
        async with asyncio.timeout(20):
            for job_id in ("job-1", "job-2"):
                while job_id not in heard:
                    assert not listening.done()
                    await asyncio.to_thread(notify, job_id)
                    await asyncio.sleep(0.05)
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening

    asyncio.run(listen())
