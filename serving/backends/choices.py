"""Several answers to one request, and answers to several prompts, from backends that give one at a time.

llama-server gives as many as it has slots, and counts the tokens of the first alone; Ollama gives one,
whatever is asked. So each answer is a request of its own, and together they look like one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from db.errors import InvalidInput, LatheError, Unavailable
from serving.backends.interface import DONE, JSON, Answer, Request, json_answer, request_of
from serving.backends.rewriting import event_of, read_events, read_whole
from serving.openai_compatible import message_of

MOST = 128
Ask = Callable[[Request], Awaitable[Answer]]


def single_requests(request: Request) -> list[Request]:
    """A request for each answer: the same one where it asks for one.

    Raises:
        InvalidInput: it asks for none, or for too many.
    """
    body = request.body
    number = 1 if body.get("n") is None else body["n"]
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST:
        raise InvalidInput(f"n must be a whole number from 1 to {MOST}.", param="n")
    prompts = body.get("prompt")
    several = isinstance(prompts, list) and bool(prompts) and not all(isinstance(one, int) for one in prompts)
    if number == 1 and not several:
        return [request]
    given: list[Any] = prompts if several and isinstance(prompts, list) else [prompts]
    if number * len(given) > MOST:
        raise InvalidInput(f"n times the prompts is more than {MOST}: send fewer at once.", param="n")
    return [_single(request, prompt, place) for prompt in given for place in range(number)]


def _single(request: Request, prompt: Any, place: int) -> Request:
    body = {name: value for name, value in request.body.items() if name != "n"}
    if prompt is not None:
        body["prompt"] = prompt
    if isinstance(body.get("seed"), int):
        body["seed"] += place  # or all would be the same
    return request_of(request.model, body)


async def ask_for_all(ask: Ask, requests: list[Request], *, at_once: int) -> Answer:
    """Ask each, so many at a time, and give their answers as one. Of errors the first is the answer.

    Raises:
        Unavailable, InvalidInput: as `ask` does, for the first that fails.
    """
    turns = asyncio.Semaphore(at_once)
    if requests[0].streams:
        return await _streamed(ask, requests, turns)

    async def whole(request: Request) -> JSON | Answer:
        async with turns:
            answer = await ask(request)
            if answer.status >= 400:
                return answer
            try:
                return await read_whole(answer)
            finally:
                await answer.close()

    async with _ended_together([asyncio.create_task(whole(request)) for request in requests]) as tasks:
        said = await asyncio.gather(*tasks)
    failed = next((one for one in said if isinstance(one, Answer)), None)
    if failed is not None:
        return failed
    merged = _Merged(requests)
    choices = [choice for place, one in enumerate(said) for choice in merged.choices(place, dict(one))]
    return json_answer({**merged.head, "choices": choices, "usage": merged.usage})


@contextlib.asynccontextmanager
async def _ended_together(tasks: list[asyncio.Task[Any]]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """None outlives the others' failure, nor the caller's going."""
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Merged:
    """What several answers come to.

    Args:
        head: what they have in common, as the first one says it.
    """

    requests: list[Request]
    head: JSON = field(default_factory=dict)
    _prompts: dict[Any, int] = field(default_factory=dict)
    _completion: int = 0

    def choices(self, place: int, said: JSON) -> list[JSON]:
        """The choices of an answer, or of a chunk of it, by their number among all."""
        if not self.head:
            self.head = {name: said[name] for name in said.keys() - {"choices", "usage", "timings"}}
        usage = said.get("usage") or {}
        self._completion += usage.get("completion_tokens") or 0
        if usage:
            # Read once, however many answers there are to it.
            self._prompts[str(self.requests[place].body.get("prompt"))] = usage.get("prompt_tokens") or 0
        return [{**choice, "index": place} for choice in said.get("choices") or []]

    @property
    def usage(self) -> JSON:
        prompt = sum(self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
        }


async def _streamed(ask: Ask, requests: list[Request], turns: asyncio.Semaphore) -> Answer:
    """The events of all as they come. The first one has begun when this returns."""
    await turns.acquire()
    first = await ask(requests[0])
    if first.status >= 400:
        return first
    heard: asyncio.Queue[tuple[int, JSON | None]] = asyncio.Queue(maxsize=64)

    async def tell(place: int) -> None:
        answer = first if place == 0 else await ask(requests[place])
        try:
            if answer.status >= 400:
                said = b"".join([chunk async for chunk in answer.chunks])
                raise Unavailable(message_of(said, answer.status))
            async for chunk in read_events(answer):
                await heard.put((place, chunk))
        finally:
            await answer.close()

    async def listen(place: int) -> None:
        if place:
            await turns.acquire()
        try:
            await tell(place)
            await heard.put((place, None))
        except LatheError as error:
            said = {
                "message": error.message,
                "type": "server_error",
                "param": error.param,
                "code": error.code,
            }
            await heard.put((place, {"error": said}))
        finally:
            turns.release()

    tasks = [asyncio.create_task(listen(place)) for place in range(len(requests))]

    async def close() -> None:
        async with _ended_together(tasks):
            await first.close()  # should its task never have begun

    chunks = _together(heard, _Merged(requests), requests)
    return Answer(first.status, first.content_type, chunks, close)


async def _together(
    heard: "asyncio.Queue[tuple[int, JSON | None]]", merged: _Merged, requests: list[Request]
) -> AsyncIterator[bytes]:
    left = len(requests)
    while left:
        place, chunk = await heard.get()
        if chunk is None:
            left -= 1
        elif "error" in chunk:
            yield event_of({"error": chunk["error"]})
            return
        elif choices := merged.choices(place, chunk):
            yield event_of({**merged.head, "choices": choices})
    if requests[0].tells_usage:
        yield event_of({**merged.head, "choices": [], "usage": merged.usage})
    yield DONE
