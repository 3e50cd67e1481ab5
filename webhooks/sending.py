"""Sending one message to one receiver, once. Whatever the receiver does, there is an answer in time."""

import asyncio
import contextlib
import functools
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx

from db.errors import InvalidInput
from webhooks.addresses import Lookup, Network, check_url, look_up, permitted_addresses
from webhooks.signing import signed_headers

KEPT_BYTES = 1024
BODY_SECONDS = 2.0


@dataclass(frozen=True)
class Message:
    """What is sent. `id` is the same at every try: by it a receiver knows what it has had before."""

    id: str
    url: str
    body: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What came of it: a status and the beginning of the answer, or why there is none."""

    status_code: int | None = None
    response: str | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


async def send(
    message: Message, *, allowed: Sequence[Network], timeout_seconds: float, lookup: Lookup = look_up
) -> Answer:
    """POST a message to its receiver.

    Args:
        allowed: networks that may be reached although they are not public.
        timeout_seconds: for everything together, however slowly the receiver goes on.
        lookup: how names are resolved.
    """
    began = time.monotonic()
    status: int | None = None
    response = error = None
    try:
        async with asyncio.timeout(timeout_seconds):
            status, response = await _post(message, allowed, timeout_seconds, lookup)
    except TimeoutError:
        error = f"The receiver did not answer within {timeout_seconds:g} s."
    except InvalidInput as refused:
        error = refused.message
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    if status is not None and 300 <= status < 400:
        error = f"The receiver answered {status}: redirects are not followed."
    elif status is not None and status >= 400:
        error = f"The receiver answered {status}."
    return Answer(status, response, error, time.monotonic() - began)


async def _post(
    message: Message, allowed: Sequence[Network], timeout_seconds: float, lookup: Lookup
) -> tuple[int, str]:
    url = check_url(message.url)
    addresses = await asyncio.to_thread(permitted_addresses, url, allowed, lookup=lookup)
    # No proxy: it would resolve the name itself. Half the time for a connection leaves some for another.
    limits = httpx.Timeout(timeout_seconds, connect=timeout_seconds / 2)
    async with httpx.AsyncClient(
        verify=_trusted(), trust_env=False, follow_redirects=False, timeout=limits
    ) as client:
        for address in addresses[:-1]:
            # Nothing has been sent where no connection came about.
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await _post_to(client, address, url, message)
        return await _post_to(client, addresses[-1], url, message)


async def _post_to(
    client: httpx.AsyncClient, address: str, url: httpx.URL, message: Message
) -> tuple[int, str]:
    """Connect to `address`, and to nothing else; the receiver sees the name that it was called by."""
    request = client.build_request(
        "POST",
        url.copy_with(host=address, fragment=None),
        content=message.body.encode(),
        headers={
            "host": url.netloc.decode("ascii"),
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"Lathe/{version('lathe')}",
            **signed_headers(message.id, message.body, message.secrets),
        },
        extensions={"sni_hostname": url.raw_host.decode("ascii").rstrip(".")},
    )
    response = await client.send(request, stream=True)
    try:
        return response.status_code, await _beginning(response)
    finally:
        await response.aclose()


async def _beginning(response: httpx.Response) -> str:
    """The first bytes of an answer, as far as they come soon; its status has been heard already."""
    kept = b""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in response.aiter_raw(KEPT_BYTES):
                kept += chunk
                if len(kept) >= KEPT_BYTES:
                    break
    # Postgres takes no NUL in a text.
    return kept[:KEPT_BYTES].decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted, read once a process."""
    return httpx.create_ssl_context(trust_env=False)
