"""Whether a project may have more: another job, more bytes, more requests.

What counts is read under a lock on the project, which is held until what was admitted is there: two who come
at once cannot both have the last place. A project without limits takes no lock and asks nothing.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.caller import Caller, Limits, limits_of
from api.unit_of_work import Unit
from db.errors import QuotaExceeded
from db.queries.projects import get_project
from db.queries.usage import Usage, usage_of

WINDOW_SECONDS = 60
ANSWERS_WITHIN_SECONDS = 0.25
LEFT_ALONE_SECONDS = 5.0  # after it did not answer
# The window begins with a project's first request, and all processes of the API count in it.
COUNT = """
    local number = redis.call('INCR', KEYS[1])
    if number == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
    return {number, redis.call('PTTL', KEYS[1])}
"""

log = structlog.get_logger(__name__)


def admit_job(unit: Unit, *, awaited: str | None = None) -> None:
    """See that the project may have another job, and keep its place until the transaction ends.

    Args:
        awaited: the job for which it will wait, and with which it shares a place.
    Raises:
        QuotaExceeded: it may not; the message has the numbers.
    """
    limits, used = _held(unit, awaited)
    if used is None:
        return
    project = f"The project {unit.project_id!r}"
    if limits.max_jobs is not None and used.jobs >= limits.max_jobs:
        raise QuotaExceeded(
            f"{project} has {used.jobs} jobs queued or running, and may have {limits.max_jobs} at once "
            "(max_jobs): wait until one ends, or pause or cancel one.",
            code="jobs_quota_exceeded",
        )
    if limits.max_gpu_minutes is not None and used.gpu_minutes >= limits.max_gpu_minutes:
        raise QuotaExceeded(
            f"{project} has used {used.gpu_minutes:.1f} GPU minutes this month, and may use "
            f"{limits.max_gpu_minutes} (max_gpu_minutes): they begin anew on the first of the next.",
            code="gpu_minutes_quota_exceeded",
        )
    if limits.max_bytes is not None and used.bytes >= limits.max_bytes:
        raise _bytes_exceeded(project, used, limits.max_bytes, 0)


def admit_bytes(unit: Unit, more: int) -> None:
    """See that the project may store so many bytes more.

    Raises:
        QuotaExceeded: it may not.
    """
    limits, used = _held(unit)
    if used is not None and limits.max_bytes is not None and used.bytes + more > limits.max_bytes:
        raise _bytes_exceeded(f"The project {unit.project_id!r}", used, limits.max_bytes, more)


def _held(unit: Unit, awaited: str | None = None) -> tuple[Limits, Usage | None]:
    """The project's limits as they are now, and what it uses; None where nothing is limited."""
    limits = unit.caller.limits
    if (limits.max_jobs, limits.max_gpu_minutes, limits.max_bytes) == (None, None, None):
        return limits, None
    project = get_project(unit.session, unit.project_id, lock=True)
    return limits_of(project), usage_of(unit.session, unit.project_id, awaited=awaited)


def _bytes_exceeded(project: str, used: Usage, limit: int, more: int) -> QuotaExceeded:
    wanted = f", {more} more are too many" if more else ""
    return QuotaExceeded(
        f"{project} stores {used.bytes} bytes, and may store {limit} (max_bytes){wanted}: delete files, "
        "models or jobs that are no longer needed.",
        code="bytes_quota_exceeded",
    )


@dataclass(frozen=True)
class Window:
    """How many requests a project has made in this window, this one among them."""

    number: int
    limit: int
    seconds_left: float

    @property
    def headers(self) -> dict[str, str]:
        """As OpenAI tells it."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(max(self.limit - self.number, 0)),
            "x-ratelimit-reset-requests": f"{self.seconds_left:.3f}s",
        }

    def check(self, project_id: str) -> None:
        """Raise QuotaExceeded for one request too many."""
        if self.number > self.limit:
            wait = max(math.ceil(self.seconds_left), 1)
            raise QuotaExceeded(
                f"The project {project_id!r} may make {self.limit} requests a minute "
                f"(max_requests_per_minute): try again in {wait} s.",
                code="rate_limit_exceeded",
                retry_after_seconds=wait,
            )


class RequestCounter:
    """Counts requests where all processes of the API see it: in the broker. When it is away, none is counted,
    since to refuse everybody would be worse."""

    def __init__(self, redis_url: str) -> None:
        self._client: Any = redis.asyncio.Redis.from_url(
            redis_url,
            socket_timeout=ANSWERS_WITHIN_SECONDS,
            socket_connect_timeout=ANSWERS_WITHIN_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._count = self._client.register_script(COUNT)
        self._not_before = 0.0

    async def count(self, caller: Caller) -> Window | None:
        """Count a request; None when the project has no limit, or nobody can count."""
        limit = caller.limits.max_requests_per_minute
        if limit is None or time.monotonic() < self._not_before:
            return None
        name = f"lathe:requests:{caller.project_id}"
        try:
            number, milliseconds = await self._count(keys=[name], args=[WINDOW_SECONDS * 1000])
        except (RedisError, OSError, TimeoutError) as error:
            self._not_before = time.monotonic() + LEFT_ALONE_SECONDS
            log.warning("requests_not_counted", project_id=caller.project_id, error=str(error))
            return None
        return Window(number, limit, milliseconds / 1000)

    async def close(self) -> None:
        await self._client.aclose()
