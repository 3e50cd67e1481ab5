"""Short jobs, whose end a request may wait for."""

import asyncio
import functools
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import Response

from api.jobs.feeds import DELETED, Feeds
from api.jobs.schemas import JobOut
from api.jobs.views import job_out
from api.unit_of_work import Unit, services_of
from db.queries.jobs import get_job
from db.states import ENDED_JOB

MOST_SECONDS = 60
WAIT = inspect.Parameter(
    "wait",
    inspect.Parameter.KEYWORD_ONLY,
    default=0,
    annotation=Annotated[
        float,
        Query(
            ge=0,
            le=MOST_SECONDS,
            description="Seconds to wait for the job's end: then the answer is 200, with its result or its "
            "error. A job that takes longer goes on, and is answered as it is, with 202.",
        ),
    ],
)


def awaitable(once: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `repeatable` endpoint that submits a job take `?wait=` as well."""

    @functools.wraps(once)
    async def submitted(*, request: Request, wait: float, **arguments: Any) -> Response:
        response: Response = await once(request=request, **arguments)
        if not wait:
            return response
        job_id = json.loads(bytes(response.body))["id"]
        services = services_of(request)
        await _until_ended(services.feeds, job_id, wait)

        def look(unit: Unit) -> JobOut:
            return job_out(get_job(unit.session, job_id, project_id=unit.project_id))

        job = await services.run_in_transaction(look)
        ended = job.status in ENDED_JOB
        return Response(job.model_dump_json(), 200 if ended else 202, media_type="application/json")

    own = inspect.signature(once)
    submitted.__signature__ = own.replace(parameters=[*own.parameters.values(), WAIT])  # type: ignore[attr-defined]
    return submitted


async def _until_ended(feeds: Feeds, job_id: str, seconds: float) -> None:
    """Wait for a job's end; meanwhile no session and no thread is held."""
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    seen = 0
    with feeds.watch(job_id) as feed:
        while not feeds.ended and now() < deadline:
            news = await feed.after(seen)
            seen = news.seen
            if news.more:
                continue
            if news.status in ENDED_JOB or news.status == DELETED:
                return
            await feed.changed(deadline - now())
