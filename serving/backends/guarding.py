"""What stands before a backend: so many requests at once, the next few in a queue, how long each may take,
one more try before the first byte, and an error of OpenAI's shape after it.

Of a stream nothing is parsed. Its bytes are only held back until an event is whole, so that an event that a
dying backend leaves half said is never seen, and the error after it can be read; and the name by which the
backend knows the model becomes the one that was asked for.

The limit holds in this process: two processes of the API let twice as many through.
"""

import asyncio
import contextlib
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Literal

import httpx
import structlog

from db.errors import Busy, Conflict, LatheError, Unavailable
from serving.backends.choices import ask_for_all, single_requests
from serving.backends.configuration import BackendConfig
from serving.backends.idling import Idling
from serving.backends.interface import Answer, Backend, Request
from serving.backends.rewriting import named_as_asked
from serving.backends.silence import Silence
from serving.context_window import Gauge
from serving.openai_compatible import message_of

Route = Literal["chat", "complete", "embed"]
Rename = Callable[[bytes], bytes]

# Whose keys have settings of their own.
KEY_SETTINGS = {"llama_server": "LATHE_CHAT_SERVER_KEY", "embeddings": "LATHE_EMBEDDING_SERVER_KEY"}
RETRY_SECONDS = 0.2
RETRY_AFTER_MOST_SECONDS = 60
LOOK_SECONDS = 2
# An event of a stream is no longer than this; what is has no end that we know, and is passed on as it comes.
EVENT_BYTES = 1 << 20
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
STREAM_END = b"data: [DONE]"
END_BYTES = len(STREAM_END) + 8
BROKE = "The server that runs this model stopped in mid-answer."
# A whole answer up to this size is read before it is passed on; of a larger one its ends are looked at.
READ_BYTES = 1 << 18

log = structlog.get_logger(__name__)


class Door:
    """Lets so many in at once, and so many wait, first come first served."""

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that an answer takes, lately
        self.inside = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def enter(self) -> None:
        """Wait for one's turn.

        Raises:
            Busy: too many wait already, or this one has waited too long.
        """
        limit = self._config.concurrency
        if limit is None or (self.inside < limit and not self._waiting):
            self.inside += 1
            return
        if len(self._waiting) >= self._config.queue:
            raise self._busy(limit)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._config.timeout.queue):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._let_in_next()  # the turn came as its owner went
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._busy(limit) from None
            raise

    def leave(self, seconds: float) -> None:
        self._seconds += (seconds - self._seconds) / 8
        self._let_in_next()

    def _let_in_next(self) -> None:
        """Hand one's place over, so that nobody who comes just now takes it before who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1

    def _busy(self, limit: int) -> Busy:
        wait = math.ceil(self._seconds * (len(self._waiting) + 1) / limit)
        return Busy(
            f"The backend {self._config.name!r} answers {limit} requests at once, and {len(self._waiting)} "
            "wait: try again.",
            param="model",
            code="backend_busy",
            retry_after_seconds=min(max(wait, 1), RETRY_AFTER_MOST_SECONDS),
        )


class Guarded:
    """A backend, and what stands before it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.config = backend.config
        self.name = backend.config.name
        self.door = Door(backend.config)
        self._idling = Idling(backend)
        self._routes: dict[Route, Callable[[Request], Awaitable[Answer]]] = {
            "chat": backend.chat,
            "complete": backend.complete,
            "embed": backend.embed,
        }

    async def ask(self, route: Route, request: Request) -> Answer:
        """Ask, and return once the first bytes of the answer are there. They and the rest are in its
        `chunks`, which must be run to their end, or the answer closed.

        Raises:
            Busy: too many ask it at once.
            Unavailable: it does not answer, not in time, or breaks off before its first byte.
            InvalidInput, NotFound: it cannot do this.
        """
        if route == "embed":
            return await self._ask_once(route, request)
        request = self.backend.adapted(request)
        requests = [request] if self.backend.gives_choices else single_requests(request)
        if len(requests) == 1:
            return await self._ask_once(route, requests[0])
        at_once = min(len(requests), self.config.concurrency or len(requests))
        return await ask_for_all(lambda one: self._ask_once(route, one), requests, at_once=at_once)

    async def _ask_once(self, route: Route, request: Request) -> Answer:
        await self.door.enter()
        self._idling.begin(request.model)
        begun = time.monotonic()

        def leave() -> None:
            self.door.leave(time.monotonic() - begun)
            self._idling.end(request.model)

        try:
            answer, first = await self._begin(self._routes[route], request)
        except BaseException:
            leave()
            raise

        async def close() -> None:
            nonlocal leave
            done, leave = leave, lambda: None
            done()
            await _close(answer)

        passed = self._passed(answer, first, named_as_asked(request))
        return Answer(answer.status, answer.content_type, passed, close, answer.retry_after_seconds)

    async def _begin(
        self, call: Callable[[Request], Awaitable[Answer]], request: Request
    ) -> tuple[Answer, bytes | None]:
        """The answer and its first bytes; None of one that has none."""
        seconds = self.config.timeout.first_byte
        for left in reversed(range(self.config.retries + 1)):
            try:
                async with asyncio.timeout(seconds):
                    return await self._try(call, request)
            except TimeoutError:
                raise self.unavailable(
                    f"did not begin to answer within {seconds:g} s", "backend_timeout"
                ) from None
            except (httpx.HTTPError, OSError) as error:
                if left == 0:
                    log.warning("backend_unreachable", backend=self.name, error=repr(error))
                    raise self.unavailable("does not answer") from error
                log.info("backend_asked_again", backend=self.name, error=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError("the loop above ends by itself")

    async def _try(
        self, call: Callable[[Request], Awaitable[Answer]], request: Request
    ) -> tuple[Answer, bytes | None]:
        try:
            answer = await call(request)
        except (LatheError, httpx.HTTPError, OSError):
            raise
        except Exception as error:
            # A class of the operator's own may raise anything.
            log.exception("backend_failed", backend=self.name)
            raise self.unavailable(f"failed: {type(error).__name__}", "backend_failed") from error
        try:
            if answer.status in (401, 403):
                held = KEY_SETTINGS.get(self.name, f"`key` of [{self.name}] in LATHE_BACKENDS")
                raise self.unavailable(f"refuses our key: {held} holds it", "backend_refuses_key")
            if answer.status in (502, 503, 504):
                said = message_of(b"".join([chunk async for chunk in answer.chunks]), answer.status)
                raise self.unavailable(
                    f"cannot answer now: {said}", Unavailable.code, wait=answer.retry_after_seconds
                )
            return answer, await anext(answer.chunks, None)
        except BaseException:
            await _close(answer)
            raise

    def unavailable(
        self, what: str, code: str = "model_server_unavailable", *, wait: int | None = None
    ) -> Unavailable:
        return Unavailable(
            f"The backend {self.name!r}, which runs this model, {what}.",
            param="model",
            code=code,
            retry_after_seconds=wait,
        )

    def _passed(self, answer: Answer, first: bytes | None, rename: Rename) -> AsyncIterator[bytes]:
        if answer.status >= 400:
            return self._timely(answer, first)  # an error may be any text
        passed = self._events if answer.is_stream else self._whole
        return passed(answer, first, rename)

    async def _events(self, answer: Answer, first: bytes | None, rename: Rename) -> AsyncIterator[bytes]:
        """A stream, event by whole event; one that breaks ends with OpenAI's error event."""
        held, end = b"", b""
        try:
            async with contextlib.aclosing(self._timely(answer, first)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    part = held + chunk if held else chunk
                    held = b""
                    if not part.endswith(EVENT_ENDS):
                        part, held = _at_event_end(part)
                    if part:
                        end = part[-END_BYTES:] if len(part) >= END_BYTES else (end + part)[-END_BYTES:]
                        yield rename(part)
        except Unavailable as error:
            yield broken_event(error)
            return
        # llama-server's router ends the stream of a model that went away as if it were whole.
        if STREAM_END not in end + held:
            yield broken_event(Unavailable(BROKE))
        elif held:
            yield rename(held)

    async def _whole(self, answer: Answer, first: bytes | None, rename: Rename) -> AsyncIterator[bytes]:
        """An answer in one piece.

        Raises:
            Unavailable: it breaks off, or is half a JSON.
        """
        content = b"".join([chunk async for chunk in self._timely(answer, first)])
        if not is_whole_json(content):
            raise Unavailable(BROKE, code="bad_backend_answer")
        yield rename(content)

    async def _timely(self, answer: Answer, first: bytes | None) -> AsyncIterator[bytes]:
        """The bytes as they come.

        Raises:
            Unavailable: they stop coming.
        """
        silence = Silence(self.config.timeout.between_bytes)
        wait, chunk = answer.chunks.__anext__, first
        try:
            while chunk is not None:
                yield chunk
                with silence:
                    chunk = await wait()
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(
                "The server that runs this model has stopped to send, amid its answer.",
                code="backend_timeout",
            ) from None
        except LatheError:
            raise
        except Exception as error:
            log.warning("backend_broke_off", backend=self.name, error=repr(error))
            raise Unavailable(BROKE) from error
        finally:
            silence.stop()

    async def gauge(self, model: str) -> Gauge:
        """How long a prompt may be, and how tokens are counted.

        Raises:
            Unavailable: it does not answer.
        """
        with self._reaching():
            return await self.backend.gauge(model)

    async def load(self, model: str) -> None:
        """Have a model loaded, and kept for as long as the settings say.

        Raises:
            Unavailable: it does not answer. InvalidInput: it loads nothing on request.
        """
        with self._reaching():
            await self.backend.load(model, keep_seconds=self.config.keep_alive)

    async def unload(self, model: str) -> None:
        """Have a model leave its memory.

        Raises:
            Conflict: it is answering with it.
        """
        with self._reaching():
            if await self.backend.is_answering(model):
                raise Conflict(
                    f"Model {model!r} is answering: ask again when it is done.",
                    param="model",
                    code="model_is_answering",
                )
            await self.backend.unload(model)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, OSError) as error:
            raise self.unavailable("does not answer") from error

    async def health(self) -> str | None:
        """None if it can be asked, else what is wrong."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self.backend.health()
        except TimeoutError:
            return "It does not answer in time."
        except LatheError as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - a class of the operator's own may raise anything
            return f"It does not answer: {type(error).__name__}."
        return None

    async def close(self) -> None:
        self._idling.stop()
        with contextlib.suppress(Exception):
            await self.backend.close()


def broken_event(error: LatheError) -> bytes:
    said = {"message": error.message, "type": "server_error", "param": None, "code": error.code}
    return b"data: " + json.dumps({"error": said}).encode() + b"\n\n"


def is_whole_json(content: bytes) -> bool:
    if len(content) > READ_BYTES:
        stripped = content.strip()
        return stripped[:1] + stripped[-1:] in (b"{}", b"[]")
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _at_event_end(part: bytes) -> tuple[bytes, bytes]:
    """What is whole of the events in it, and the rest."""
    cut = max(part.rfind(mark) + len(mark) if mark in part else 0 for mark in EVENT_ENDS)
    if not cut and len(part) >= EVENT_BYTES:
        return part, b""
    return part[:cut], part[cut:]


async def _close(answer: Answer) -> None:
    with contextlib.suppress(Exception):
        await answer.close()
