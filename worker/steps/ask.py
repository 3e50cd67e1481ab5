"""Ask a model for each row of a job, many rows at once.

An answer is kept the moment that it comes. A row whose backend does not answer is tried again, so many times;
while the backend is away as a whole nobody asks, and no row is blamed for it.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from db.errors import Busy, InvalidInput, NotFound, Unavailable
from serving.backends.configuration import BackendConfig
from serving.backends.guarding import Guarded, Route
from serving.backends.interface import request_of
from serving.backends.roster import guarded
from serving.backends.target import Target
from serving.openai_compatible import make_async_client, read_error
from serving.prompting import Prompting
from worker.answers import JSON, REQUESTS, AnswerLog, take_over
from worker.step import Step, Stopped
from worker.steps import batched_responses

ROUTES: dict[str, Route] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "complete",
    "/v1/embeddings": "embed",
    batched_responses.ENDPOINT: "chat",
}
CONCURRENCY = 16  # where neither the job nor the backend's settings say
WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
BACKOFF_SECONDS, BACKOFF_MOST_SECONDS = 0.5, 30.0
# A row that comes with an outage so often may be what brings it about.
OUTAGES_MOST = 5
OUTAGE_SECONDS = 600.0
TELL_SECONDS, LOOK_SECONDS, SYNC_SECONDS = 0.5, 0.1, 2.0
GRACE_SECONDS = 1.0
HALF = "The model's server gave an answer that is none."


def run(step: Step) -> dict[str, Any]:
    """Leave `answers.jsonl`.

    Raises:
        Stopped: what was answered is kept for the next attempt.
        Unavailable: no backend has answered for ten minutes.
    """
    step.save_when_stopped()
    rows: int = step.input.results["read"]["rows"]
    with AnswerLog(take_over(step.input.folder), rows) as answers:
        before = answers.answered + answers.failed
        if before:
            step.event(f"{before} of {rows} rows were done before: they are not asked again.", rows=before)
        asking = _Asking(step, answers, rows)
        began = time.monotonic()
        asyncio.run(asking.ask_all())
        seconds = time.monotonic() - began
    done = answers.answered + answers.failed
    rate = (done - before) / seconds if seconds else 0.0
    step.event(
        f"{answers.answered} of {rows} rows are answered, {answers.failed} failed, {asking.retried} were "
        f"tried again; {rate:.1f} rows/s.",
        level="warn" if answers.failed else "info",
        answered=answers.answered,
        failed=answers.failed,
        retried=asking.retried,
        rows_per_second=round(rate, 3),
    )
    if done < rows:
        step.event(
            f"finish_within_seconds is over: {rows - done} rows were not answered, and are told as errors.",
            level="warn",
            unanswered=rows - done,
        )
    return {"answered": answers.answered, "failed": answers.failed, "expired": done < rows}


class _Asking:
    """One attempt's asking. `retried`: how often a row was tried again."""

    def __init__(self, step: Step, answers: AnswerLog, rows: int) -> None:
        if step.input.asked is None:
            raise InvalidInput("The job names no model.", param="model")
        self._step, self._answers, self._rows = step, answers, rows
        self._asked = step.input.asked
        endpoint = step.input.results["read"]["endpoint"]
        self._route, self._as_responses = ROUTES[endpoint], endpoint == batched_responses.ENDPOINT
        self._tries: int = step.input.params["row_tries"]
        self._there = asyncio.Event()
        self._began, self._before = time.monotonic(), answers.answered + answers.failed
        self._told = 0.0
        self._places: list[tuple[Guarded, str]] = []
        self.retried = 0

    async def ask_all(self) -> None:
        self._there.set()
        concurrency = self._concurrency()
        async with make_async_client() as client:
            configs = {name: BackendConfig.model_validate(row) for name, row in self._asked.backends.items()}
            self._places = [(guarded(configs[name], client), model) for name, model in self._asked.places]
            prompting = Prompting(**self._asked.prompting) if self._asked.prompting is not None else None
            target = Target(self._places, prompting)
            waiting = self._waiting()
            turns = [asyncio.create_task(self._take_turns(waiting, target)) for _ in range(concurrency)]
            watch = asyncio.create_task(self._watch(turns))
            try:
                await asyncio.gather(*turns)
            except asyncio.CancelledError:
                if self._step.stop_asked:
                    raise Stopped from None
            finally:
                watch.cancel()
                await _end(turns)
                for backend, _ in self._places:
                    await backend.close()
        self._tell()

    def _concurrency(self) -> int:
        """How many rows are asked at once."""
        name, _ = self._asked.places[0]
        limit: int | None = self._asked.backends[name]["concurrency"]
        wanted = self._step.input.params["concurrency"]
        if wanted == "auto":
            return limit or CONCURRENCY
        if limit is not None and wanted > limit:
            self._step.event(
                f"The backend {name!r} answers {limit} requests at once: so many rows are asked, not "
                f"{wanted}.",
                level="warn",
                concurrency=limit,
            )
            return limit
        return int(wanted)

    def _waiting(self) -> Iterator[JSON]:
        """The requests that have no answer yet."""
        with (self._step.input.step_folders["read"] / REQUESTS).open("rb") as file:
            for line in file:
                request: JSON = json.loads(line)
                if request["row"] not in self._answers:
                    yield request

    async def _take_turns(self, waiting: Iterator[JSON], target: Target) -> None:
        for request in waiting:
            status, said = await self._settle(request["body"], target)
            self._answers.add(request["row"], status, **said)
            if time.monotonic() - self._told >= TELL_SECONDS:
                self._tell()

    async def _settle(self, body: JSON, target: Target) -> tuple[int, JSON]:
        """A row's answer, or in the end its error."""
        tries = outages = 0
        while True:
            await self._there.wait()
            try:
                return await self._ask(body, target)
            except (InvalidInput, NotFound) as error:
                return _failure(404 if isinstance(error, NotFound) else 400, *_told(error))
            except Busy as error:  # with rows of ours, which make way: no try of the row's own
                await asyncio.sleep(error.retry_after_seconds or BACKOFF_MOST_SECONDS)
            except Unavailable as error:
                if outages < OUTAGES_MOST and await self._was_away(error):
                    outages += 1
                    continue
                tries += 1
                if tries >= self._tries:
                    return _failure(503, *_told(error))
                self.retried += 1
                wait = min(BACKOFF_SECONDS * 2**tries, BACKOFF_MOST_SECONDS)
                await asyncio.sleep(min(error.retry_after_seconds or wait, BACKOFF_MOST_SECONDS))

    async def _ask(self, body: JSON, target: Target) -> tuple[int, JSON]:
        asked = batched_responses.as_chat(body) if self._as_responses else body
        answer = await target.ask(self._route, lambda model: request_of(model, asked))
        try:
            content = b"".join([chunk async for chunk in answer.chunks])
        finally:
            await answer.close()
        status = answer.status
        if status < 400:
            try:
                said = json.loads(content)
            except (ValueError, RecursionError):
                raise Unavailable(HALF, code="bad_backend_answer") from None
            if self._route == "embed":
                _check_dimensions(said, body.get("dimensions"))
            if self._as_responses:
                said = batched_responses.as_response(body, said)
            return status, {"body": said}
        message, param, code = read_error(content, status)
        if status in WORTH_ANOTHER_TRY or status >= 500:
            raise Unavailable(message, code=code, retry_after_seconds=answer.retry_after_seconds)
        return _failure(status, message, param, code)

    async def _was_away(self, error: Unavailable) -> bool:
        """Whether no backend can be asked; if so, return once one can be again."""
        if not self._there.is_set():
            return True  # somebody else watches out for it already
        wrong = await self._wrong()
        if wrong is None:
            return False
        if not self._there.is_set():
            return True
        self._there.clear()
        self._step.event(f"{error.message} Nothing is asked until it does: {wrong}", level="warn")
        gone_at, wait = time.monotonic(), 0.25
        while wrong is not None:
            if time.monotonic() - gone_at > OUTAGE_SECONDS:
                raise Unavailable(f"No backend has answered for {OUTAGE_SECONDS:.0f} s: {wrong}")
            await asyncio.sleep(wait)
            wait = min(wait * 2, 5.0)
            self._tell()
            wrong = await self._wrong()
        self._step.event(f"It answers again, after {time.monotonic() - gone_at:.0f} s.")
        self._there.set()
        return True

    async def _wrong(self) -> str | None:
        """What is wrong with the first backend, if none can be asked."""
        said = [await backend.health() for backend, _ in self._places]
        return None if None in said else said[0]

    async def _watch(self, turns: list[asyncio.Task[None]]) -> None:
        """End the asking when it is to stop or its time is over; bring answers to the disk meanwhile."""
        synced = time.monotonic()
        while not self._step.stop_asked and not self._is_over():
            await asyncio.sleep(LOOK_SECONDS)
            if time.monotonic() - synced >= SYNC_SECONDS:
                await asyncio.to_thread(self._answers.sync)
                synced = time.monotonic()
        if self._step.stop_asked:
            await asyncio.wait(turns, timeout=GRACE_SECONDS)
        for turn in turns:
            turn.cancel()

    def _is_over(self) -> bool:
        return self._asked.ends_at is not None and time.time() >= self._asked.ends_at

    def _tell(self) -> None:
        self._told = time.monotonic()
        done = self._answers.answered + self._answers.failed
        fresh, seconds = done - self._before, self._told - self._began
        left = (self._rows - done) * seconds / fresh if fresh else None
        self._step.progress(done, self._rows, eta_seconds=left, unit="rows", failed=self._answers.failed)


async def _end(turns: list[asyncio.Task[None]]) -> None:
    for turn in turns:
        turn.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*turns, return_exceptions=True)


def _check_dimensions(said: Any, asked: int | None) -> None:
    """Not every server heeds `dimensions`, and none that does not says so.

    Raises:
        InvalidInput: this one has not.
    """
    rows = said.get("data") if isinstance(said, dict) else None
    vector = rows[0].get("embedding") if rows else None
    if asked is not None and isinstance(vector, list) and len(vector) != asked:
        raise InvalidInput(
            f"dimensions is {asked}, and this model's vectors have {len(vector)}: leave it out.",
            param="dimensions",
            code="not_supported",
        )


def _told(error: InvalidInput | NotFound | Unavailable) -> tuple[str, str | None, str]:
    return error.message, error.param, error.code


def _failure(status: int, message: str, param: str | None, code: str) -> tuple[int, JSON]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}
