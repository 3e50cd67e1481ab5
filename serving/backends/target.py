"""Who answers for a model: one backend, or the first of several that can."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from db.errors import Unavailable
from serving.backends.guarding import Guarded, Route
from serving.backends.interface import Answer, Request
from serving.context_window import Gauge
from serving.prompting import Prompting, PromptingGauge

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Target:
    """Args:
    places: backends, each with the model's name there; at least one.
    prompting: what each request is given besides.
    """

    places: list[tuple[Guarded, str]]
    prompting: Prompting | None = None

    async def ask(self, route: Route, make: Callable[[str], Request]) -> Answer:
        """Ask the first; the next one if it does not answer, or has too many to answer.

        Args:
            make: the request, for a backend that knows the model by this name.
        Raises:
            Unavailable: none of them can.
        """
        *others, (last, last_model) = self.places
        for backend, model in others:
            try:
                return await backend.ask(route, self._prompted(make(model)))
            except Unavailable as error:
                log.warning("asked_another_backend", backend=backend.name, model=model, error=error.message)
        return await last.ask(route, self._prompted(make(last_model)))

    def _prompted(self, request: Request) -> Request:
        return request if self.prompting is None else self.prompting.put_into(request)

    async def gauge(self) -> Gauge:
        """How long a prompt may be, and how tokens are counted.

        Raises:
            Unavailable: none of them can tell.
        """
        gauge = await self._gauge()
        return gauge if self.prompting is None else PromptingGauge(gauge, self.prompting)

    async def _gauge(self) -> Gauge:
        *others, (last, last_model) = self.places
        for backend, model in others:
            try:
                return await backend.gauge(model)
            except Unavailable:
                continue
        return await last.gauge(last_model)

    async def load(self) -> str:
        """Have the first of them load the model; returns its name.

        Raises:
            Unavailable: it does not answer. InvalidInput: it loads nothing on request.
        """
        backend, model = self.places[0]
        await backend.load(model)
        return backend.name

    async def unload(self) -> str:
        """Have the first of them let go of the model; returns its name.

        Raises:
            Conflict: it is answering with it.
        """
        backend, model = self.places[0]
        await backend.unload(model)
        return backend.name
