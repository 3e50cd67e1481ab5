"""Hearing, in one process, what any process has changed: LISTEN on a connection of its own.

The connection is one of the event loop's, and no thread waits on it. Postgres keeps nothing for whoever
does not listen; so after each connect, and while none can be made, hearers are told to look for themselves.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
import structlog
from anyio import to_thread
from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
from sqlalchemy import make_url

RETRY_SECONDS = 1.0
# A peer that is gone without a word is noticed within a minute.
OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

Hearer = Callable[[str | None], None]

log = structlog.get_logger(__name__)


class Listener:
    """Tells what comes through some channels.

    Args:
        database_url: in SQLAlchemy's form.
        hearers: by channel; each is given what a notification says (of `jobs_with_events` the job's id), and
            None when any may have been missed.
    """

    def __init__(self, database_url: str, hearers: Mapping[str, Hearer]) -> None:
        url = make_url(database_url).set(drivername="postgresql")
        self._dsn = url.render_as_string(hide_password=False)
        self._hearers = hearers
        self._away = False
        self.is_listening = False

    async def run(self) -> None:
        """Listen until cancelled; a connection that breaks is made anew."""
        while True:
            try:
                await self._listen()
            except psycopg2.Error as error:
                if not self._away:
                    log.warning("listener_away", error=str(error).strip())
                self._away = True
            except Exception:
                # The edge of the task: without it nothing of this process would be told of anything.
                log.exception("listener_broken")
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        try:
            connection = await to_thread.run_sync(self._connect, abandon_on_cancel=True)
            if self._away:
                log.info("listener_back")
            self._away, self.is_listening = False, True
            self._tell_all()
            await self._hear(connection)
        finally:
            self.is_listening = False
            self._tell_all()

    def _tell_all(self) -> None:
        for hear in self._hearers.values():
            hear(None)

    def _connect(self) -> Connection:
        connection: Connection = psycopg2.connect(self._dsn, **OPTIONS)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for channel in self._hearers:
                cursor.execute(f"LISTEN {channel}")
        return connection

    async def _hear(self, connection: Connection) -> None:
        """Hear until the connection breaks, which is raised."""
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        broken: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                connection.poll()
                while connection.notifies:
                    notice = connection.notifies.pop(0)
                    self._hearers[notice.channel](notice.payload)
            except Exception as error:  # noqa: BLE001 - told to who awaits, whatever it is
                loop.remove_reader(descriptor)
                broken.set_exception(error)

        loop.add_reader(descriptor, read)
        try:
            await broken
        finally:
            loop.remove_reader(descriptor)
            connection.close()
