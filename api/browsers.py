"""What a page in somebody's browser may do here: nothing, unless the page is ours.

Such a page can reach a server on loopback, key or no key: by a form post, by a script with a foreign Origin,
or under a name that it made point here (DNS rebinding). So each name that the request was sent to must be
ours, an Origin must be one of these names or be allowed by the operator, and what the browser itself says
comes from another site may at most be a link that somebody followed. Only allowed origins get CORS headers.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import METHODS, Forbidden
from db.settings import LOOPBACK, Settings

# Another port of this machine is the same site, and another server.
ELSEWHERE = frozenset({"cross-site", "same-site"})
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
PREFLIGHT_SECONDS = 600
PREFLIGHT = {
    "access-control-allow-methods": ", ".join(METHODS),
    "access-control-allow-headers": "*, authorization",
    "access-control-max-age": str(PREFLIGHT_SECONDS),
}
LET_IN = {
    "access-control-expose-headers": "x-request-id, retry-after, x-should-retry, content-disposition",
    "vary": "origin",
}


class Browsers:
    """Refuses what comes from a page that is neither ours nor of an allowed origin."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {*LOOPBACK, settings.api_host.lower(), *settings.allowed_hosts}
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked_as = self._check_names(headers)
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            scope["state"]["headers"] = {"access-control-allow-origin": origin, **LET_IN}
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await Response(status_code=204, headers=PREFLIGHT)(scope, receive, send)
                return
        else:
            _check_origin(origin, asked_as)
            _check_site(scope["method"], headers)
        await self._app(scope, receive, send)

    def _check_names(self, headers: Headers) -> set[str]:
        """The names, with ports, that the request was sent to: here, and to the proxies before us.

        Raises:
            Forbidden: one of them is not ours. A proxy may write our own into Host; then what the browser
                asked for stands in X-Forwarded-Host.
        """
        forwarded = [name for value in headers.getlist("x-forwarded-host") for name in value.split(",")]
        names = {name.strip().lower() for name in [headers.get("host", ""), *forwarded]}
        for name in names:
            host = _host_name(name)
            if host not in self._hosts:
                raise Forbidden(
                    f"This server is not {host or 'nameless'!r}. Ask it as 127.0.0.1 or localhost, or add "
                    "the name to LATHE_ALLOWED_HOSTS.",
                    code="foreign_host",
                )
        return names


def _check_origin(origin: str | None, asked_as: set[str]) -> None:
    if origin is not None and not _addresses(origin) & asked_as:
        raise Forbidden(
            f"Pages of {origin} may not use this server. If that is this server behind a proxy, let the "
            "proxy pass Host on as it is, or add the origin to LATHE_ALLOWED_ORIGINS.",
            code="foreign_origin",
        )


def _check_site(method: str, headers: Headers) -> None:
    """Not every request of a foreign page bears an Origin: those for images, scripts and frames do not."""
    followed = (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
    if headers.get("sec-fetch-site") in ELSEWHERE and not followed:
        raise Forbidden("Pages of other servers may not use this one.", code="foreign_origin")


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _addresses(origin: str) -> set[str]:
    """How a Host header may write an Origin: its port may be left out where it is the scheme's."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return set()
    port = DEFAULT_PORTS.get(parts.scheme)
    address = parts.netloc.lower()
    if not address or port is None:
        return set()
    return {address, address.removesuffix(port), address if ":" in address else address + port}
