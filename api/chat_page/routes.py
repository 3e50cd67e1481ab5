"""Serve the chat page at /chat, and lead from / to it.

The files hold nothing that is the user's, so they need no key; what the page then asks for does. The page
shows what a model says, which may be anybody's words: its policy lets it run our own files alone, load and
ask nothing but this server, and turn no text into markup or script.
"""

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from db.errors import NotFound

PAGE = "/chat"
FOLDER = Path(__file__).parent / "files"
FILES = (
    "api.js",
    "chat.css",
    "conversations.js",
    "dialogs.js",
    "dom.js",
    "errors.js",
    "icon.svg",
    "main.js",
    "markdown.js",
    "message.js",
    "models.js",
    "sidebar.js",
    "sources.js",
    "vendor/markdown-it.js",
)
PATHS = frozenset({"/", PAGE, f"{PAGE}/", *(f"{PAGE}/{name}" for name in FILES)})
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",  # with a new Lathe comes a new page
}


def add_chat_page(app: FastAPI) -> None:
    """Serve the page, and what it loads, below `/chat`."""
    files = StaticFiles(directory=FOLDER)

    async def lead(request: Request) -> Response:
        # Relative, so that it works below a proxy's prefix too.
        return RedirectResponse("chat" if request.url.path == "/" else "../chat")

    async def page(request: Request) -> Response:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise NotFound(f"There is no {request.url.path}.", code="unknown_route")
        response = await files.get_response(name, request.scope)
        response.headers["cache-control"] = HEADERS["cache-control"]
        return response

    app.add_route("/", lead, include_in_schema=False)
    app.add_route(f"{PAGE}/", lead, include_in_schema=False)
    app.add_route(PAGE, page, include_in_schema=False)
    app.add_route(f"{PAGE}/{{name:path}}", file, include_in_schema=False)
