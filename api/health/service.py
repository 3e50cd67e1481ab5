"""Looks at each part that jobs and answers need. Each look is short, and they happen side by side.

Workers are seen by the rows that they renew with every heartbeat: one that hangs, or that has lost the
database, stops doing so.
"""

import asyncio
from collections.abc import Awaitable

import httpx
import redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.health.schemas import Part, Readiness
from api.unit_of_work import Services, Unit
from db.queries.workers import live_queues
from db.settings import Settings
from serving.backends.guarding import Guarded

LOOK_SECONDS = 3


async def readiness(services: Services) -> Readiness:
    settings = services.settings
    looks: dict[str, Awaitable[Part]] = {
        "broker": run_in_threadpool(_broker, settings.require_redis_url()),
        "chat_server": _server(services.client, _chat_health(settings)),
        "embedding_server": _server(services.client, f"{settings.embedding_url}/health"),
    }
    looks |= {
        f"backend:{there.name}": _backend(there)
        for there in services.backends
        if there.config.own_models or there.config.models
    }
    found = dict(zip(looks, await asyncio.gather(*looks.values()), strict=True))
    parts = await _database_and_workers(services) | found
    ready = all(part.ok for part in parts.values() if part.required)
    return Readiness(status="ready" if ready else "not ready", parts=parts)


def _chat_health(settings: Settings) -> str:
    if settings.chat_backend == "ollama":
        return f"{settings.ollama_url}/api/version"
    return f"{settings.chat_url}/health"


async def _backend(there: Guarded) -> Part:
    """One of the operator's, without which only its own models go unanswered."""
    problem = await there.health()
    return Part(ok=problem is None, required=False, message=problem)


async def _database_and_workers(services: Services) -> dict[str, Part]:
    settings = services.settings

    def live(unit: Unit) -> set[str]:
        return live_queues(unit.session, within_seconds=settings.lease_seconds)

    try:
        queues = await asyncio.wait_for(services.run_in_transaction(live), LOOK_SECONDS)
    except (SQLAlchemyError, TimeoutError):
        return {"database": Part(ok=False, required=True, message="It does not answer, or lacks its tables.")}
    parts = {"database": Part(ok=True, required=True)}
    for queue, wanted in settings.concurrency.items():
        if wanted:
            message = None if queue in queues else "No live worker serves this queue."
            parts[f"worker:{queue}"] = Part(ok=queue in queues, required=True, message=message)
    return parts


def _broker(url: str) -> Part:
    client = redis.Redis.from_url(url, socket_connect_timeout=LOOK_SECONDS, socket_timeout=LOOK_SECONDS)
    try:
        client.ping()
    except (RedisError, OSError):
        return Part(ok=False, required=True, message="It does not answer.")
    finally:
        client.close()
    return Part(ok=True, required=True)


async def _server(client: httpx.AsyncClient, url: str) -> Part:
    """A server without which jobs still run, but one kind of question goes unanswered."""
    try:
        response = await client.get(url, timeout=LOOK_SECONDS)
    except httpx.HTTPError:
        return Part(ok=False, required=False, message="It does not answer.")
    if response.status_code >= 500:
        return Part(ok=False, required=False, message=f"It answers with status {response.status_code}.")
    return Part(ok=True, required=False)
