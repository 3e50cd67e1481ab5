"""What is new in the jobs that are watched, read once for all who watch.

A feed is one watched job's newest events, as they are sent. It reads when its process has heard that
there are more, and now and then in any case. Who is further behind than it remembers reads for itself.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import structlog
from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.jobs.views import event_out
from db.models import Event, Job
from db.queries.jobs import list_events, newest_events
from db.session import SessionFactory, transaction

REMEMBERED = 500
# Should a notification be lost, an event is this late at most.
LOOK_ANYWAY_SECONDS = 30.0
RETRY_SECONDS = 1.0
DELETED = "deleted"

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Frame:
    """One event as it is sent."""

    number: int
    type: str
    data: bytes


@dataclass(frozen=True)
class News:
    """What comes after some event.

    Args:
        seen: the number of the event to go on after.
        status: the job's, and all that it said until then is told, unless there is `more`. None: not known.
    """

    frames: list[Frame]
    seen: int
    status: str | None = None
    more: bool = False


class Feed:
    """The newest events of one job that is watched."""

    def __init__(self, job_id: str, factory: SessionFactory) -> None:
        self.watchers = 0
        self._job_id, self._factory = job_id, factory
        self._status: str | None = None
        self._recent: deque[Frame] = deque()
        self._floor = 0  # what came after this event, up to the newest, is in `_recent`
        self._newest: int | None = None  # that was read
        self._reading = asyncio.Lock()
        self._woken = asyncio.Event()
        self._stale = True
        self._looked_at = self._not_before = 0.0

    def wake(self) -> None:
        """There may be something new: whoever waits shall look."""
        self._stale = True
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def changed(self, seconds: float) -> None:
        """Wait until there may be something new, for `seconds` at most."""
        if self._stale:  # since the last look, or because that failed
            await asyncio.sleep(min(seconds, max(0.0, self._not_before - _now())))
            return
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    async def after(self, seen: int) -> News:
        """What comes after event `seen`; nothing when the database is away."""
        async with self._reading:
            if self._stale or _now() - self._looked_at > LOOK_ANYWAY_SECONDS:
                await self._look()
        if self._status is None:
            return News([], seen)
        if seen < self._floor:
            return await self._page(seen)
        newer = list(takewhile(lambda frame: frame.number > seen, reversed(self._recent)))
        return News(newer[::-1], newer[0].number if newer else seen, self._status)

    async def _look(self) -> None:
        """Read what came since the last look."""
        if _now() < self._not_before:
            return
        self._stale = False
        found = await self._read(lambda session: _newer(session, self._job_id, self._newest))
        if found is None:
            return
        self._status, floor, frames = found
        self._looked_at = _now()
        self._recent.extend(frames)
        if self._newest is None:
            self._floor = floor
        while len(self._recent) > REMEMBERED:
            self._floor = self._recent.popleft().number
        self._newest = self._recent[-1].number if self._recent else self._floor

    async def _page(self, seen: int) -> News:
        """Events that are no longer remembered, or never were."""
        floor = self._floor
        page = await self._read(lambda session: _page(session, self._job_id, seen))
        if page is None:
            return News([], seen)
        frames, more = page
        # Without more of them, all that may be missing is above the floor.
        last = frames[-1].number if frames else floor
        return News(frames, last if more else max(last, floor), more=True)

    async def _read(self, query: Callable[[Session], T]) -> T | None:
        """Do a query on a thread; None when the database is away."""

        def read() -> T:
            with transaction(self._factory) as session:
                return query(session)

        try:
            return await run_in_threadpool(read)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            log.warning("events_not_read", job_id=self._job_id, error=str(error))
            self._stale, self._not_before = True, _now() + RETRY_SECONDS
            return None
        except BaseException:
            self._stale = True
            raise


class Feeds:
    """The feeds of one process, which `hear` wakes."""

    def __init__(self, factory: SessionFactory) -> None:
        self._factory = factory
        self._feeds: dict[str, Feed] = {}
        self.ended = False

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Feed]:
        """The feed of a job, for as long as somebody watches it."""
        feed = self._feeds.setdefault(job_id, Feed(job_id, self._factory))
        feed.watchers += 1
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if feed.watchers == 0:
                del self._feeds[job_id]

    def end(self) -> None:
        """Let every stream end now; it can be taken up where it ended."""
        self.ended = True
        self.hear(None)

    def hear(self, job_id: str | None) -> None:
        """There are new events of a job; None: perhaps of any."""
        names = list(self._feeds) if job_id is None else [job_id]
        for name in names:
            if name in self._feeds:
                self._feeds[name].wake()


def _newer(session: Session, job_id: str, newest: int | None) -> tuple[str, int, list[Frame]]:
    """The job's status, the event that is gone on after, and those that came; at first, the last of them."""
    # The status first: what a job says, it says before it ends. One that was deleted has ended.
    status = session.scalar(select(Job.status).where(Job.id == job_id)) or DELETED
    if newest is None:
        events = newest_events(session, job_id, limit=REMEMBERED)
        floor = events[0].id - 1 if len(events) == REMEMBERED else 0
        return status, floor, [_frame(event) for event in events]
    frames, more = _page(session, job_id, newest)
    while more:
        following, more = _page(session, job_id, frames[-1].number)
        frames += following
    return status, newest, frames


def _page(session: Session, job_id: str, after: int) -> tuple[list[Frame], bool]:
    events, more = list_events(session, job_id, after=after, limit=REMEMBERED)
    return [_frame(event) for event in events], more


def _frame(event: Event) -> Frame:
    shown = event_out(event)
    data = f"id: {shown.id}\nevent: {event.type}\ndata: {shown.model_dump_json()}\n\n"
    return Frame(event.id, event.type, data.encode())


def _now() -> float:
    return asyncio.get_running_loop().time()
