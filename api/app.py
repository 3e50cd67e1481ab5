"""The application: `create_app(settings)`. Importing this module does nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.audit.routes import router as audit
from api.auditing import Ledger
from api.batches.routes import router as batches
from api.browsers import Browsers
from api.chat.configured import fetch_at_start
from api.chat.routes import router as chat
from api.chat_page.routes import add_chat_page
from api.datasets.routes import router as datasets
from api.destinations import Destinations
from api.devices.routes import router as devices
from api.documentation import add_documentation
from api.edge import Edge
from api.embeddings.routes import router as embeddings
from api.errors import DESCRIPTIONS, ErrorBody, answer_to
from api.files.routes import router as files
from api.fine_tuning.routes import router as fine_tuning
from api.health.routes import router as health
from api.idempotency import make_groups
from api.jobs.feeds import Feeds
from api.jobs.routes import router as jobs
from api.keyring import Keyring
from api.keys.routes import router as keys
from api.models.document_routes import router as model_documents
from api.models.routes import router as models
from api.projects.routes import router as projects
from api.quotas import RequestCounter
from api.responses.routes import router as responses
from api.scopes import scopes_for
from api.security import OPEN_PATHS, Gate
from api.unit_of_work import Services
from api.uploads.routes import router as uploads
from api.vector_stores.file_routes import router as vector_store_files
from api.vector_stores.routes import router as vector_stores
from api.webhooks.routes import router as webhooks
from db.doorbell import Doorbell
from db.listener import Hearer, Listener
from db.session import (
    CALLERS_CHANGED,
    DESTINATIONS_CHANGED,
    JOBS_WITH_EVENTS,
    make_engine,
    make_session_factory,
)
from db.settings import Settings
from serving.backends.roster import Backends
from serving.openai_compatible import make_async_client
from training_data.deepspeed_settings import read_configurations
from training_data.ray_clusters import read_clusters
from training_data.reward_settings import read_rewards
from training_data.sql_settings import read_sources, read_targets

DESCRIPTION = """Submit a job, go away, and come back to a model that you serve yourself.

Errors are `{"error": {"message", "type", "param", "code"}}`, lists
`{"object": "list", "data", "has_more", "first_id", "last_id"}`, times Unix seconds. Files, models, chat and
embeddings take OpenAI's own clients: point `base_url` here. Where the server has keys, send yours as
`Authorization: Bearer …`; what it needs to be for is with each route.
"""
TAGS = [
    {"name": "jobs", "description": "What takes a while: submit, watch, cancel, fetch what it made."},
    {"name": "files", "description": "What jobs read, streamed to disk on upload."},
    {"name": "datasets", "description": "Training data, looked at before anything is trained on it."},
    {"name": "fine-tuning", "description": "OpenAI's fine-tuning jobs: those of kind `fine_tune`."},
    {"name": "batches", "description": "Many requests in a file, and a file of responses."},
    {"name": "models", "description": "What answers. `faq`, `faq:Q8_0`, `faq@2` and `faq@2:Q8_0` are names."},
    {"name": "chat", "description": "Prompts, passed on to the server that holds the model."},
    {"name": "responses", "description": "Answers as items, kept as conversations that can be gone on with."},
    {"name": "embeddings", "description": "Vectors of text, from the model `default`."},
    {"name": "devices", "description": "The GPUs that workers have, and what holds each."},
    {
        "name": "collections",
        "description": "Documents that are searched together, as OpenAI's vector stores.",
    },
    {"name": "webhooks", "description": "Who is told when a job ends, signed by Standard Webhooks."},
    {"name": "keys", "description": "API keys: who may ask, for which project, and what they may do."},
    {"name": "projects", "description": "Who owns rows, and how much each may use."},
    {"name": "audit", "description": "Who changed what, and who was refused."},
    {"name": "health", "description": "For whoever watches over the server."},
]
ROUTERS = (
    # In the order in which they are tried: what is asked most goes first. A model's name may hold slashes, so
    # what comes after it has to be looked for before it.
    chat, embeddings, responses, jobs, files, uploads, datasets, fine_tuning, batches, model_documents,
    models, vector_stores, vector_store_files, devices, webhooks, keys, projects, audit, health,
)  # fmt: skip
ERROR_CONTENT = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
ERRORS = {
    str(status): {"description": description, "content": ERROR_CONTENT}
    for status, description in DESCRIPTIONS.items()
}


def create_app(settings: Settings) -> FastAPI:
    """Make the application. Servers are first reached for when a request needs them.

    Raises:
        InvalidInput: DATABASE_URL or REDIS_URL is not set, or a file of the operator's (of backends, SQL
            sources, rewards, Ray clusters or DeepSpeed) is wrong.
    """
    read_sources(settings.sql)
    read_targets(settings.sql)
    read_rewards(settings.rewards)
    read_clusters(settings.ray_clusters)
    read_configurations(settings.deepspeed)
    client = make_async_client()
    backends = Backends(settings, client)
    engine = make_engine(settings.require_database_url())
    factory = make_session_factory(engine)
    doorbell = Doorbell(settings.require_redis_url())
    doorbell.listen(factory)
    keyring = Keyring(settings, factory)
    ledger = Ledger(factory)
    counter = RequestCounter(settings.require_redis_url())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            feeds = Feeds(factory)
            destinations = Destinations(lambda: listener.is_listening)
            hearers: dict[str, Hearer] = {
                DESTINATIONS_CHANGED: destinations.forget,
                CALLERS_CHANGED: keyring.forget,
                JOBS_WITH_EVENTS: feeds.hear,
            }
            listener = Listener(settings.require_database_url(), hearers)
            listening = asyncio.create_task(listener.run())
            app.state.services = Services(
                settings, engine, factory, doorbell, client, feeds, keyring, backends, destinations
            )
            app.state.groups = make_groups(app.state.services)
            fetching = asyncio.create_task(fetch_at_start(app.state.services))
            yield
            await fetching
            listening.cancel()
            await asyncio.wait([listening])
            await backends.close()
            await ledger.close()
            await counter.close()
        doorbell.close()
        engine.dispose()

    app = FastAPI(
        title="Lathe",
        version=version_of("lathe"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.operations = [route for router in ROUTERS for route in router.routes]
    # As they are: `include_router` would have each made once more at the first request that passes it.
    app.router.routes += app.state.operations
    add_documentation(app)
    add_chat_page(app)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_middleware(Gate, settings=settings, keyring=keyring, ledger=ledger, counter=counter)
    app.add_middleware(Browsers, settings=settings)
    app.add_middleware(Edge, ledger=ledger)  # added last, so outermost
    app.openapi = _openapi_of(app)  # type: ignore[method-assign]
    return app


def _answer_error(request: Request, error: Exception) -> JSONResponse:
    response = answer_to(error, request.scope)
    if response is None:
        raise error
    return response


def _openapi_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's own description, and what all routes may answer, less 422, and 413 and 415 without a body."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    scopes = sorted(scopes_for(method.upper(), path))
                    operation["security"] = [{}] if path in OPEN_PATHS else [{"key": scopes}, {}]
                    for status, answer in ERRORS.items():
                        operation["responses"].setdefault(status, answer)
                    operation["responses"].pop("422", None)
                    if "requestBody" not in operation:
                        operation["responses"].pop("413", None)
                        operation["responses"].pop("415", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    return describe
