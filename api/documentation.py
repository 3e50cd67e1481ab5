"""The page that shows the API to a person: Swagger UI, from files that the package fastapi-offline brings.

FastAPI's own page fetches them from a CDN: without a network it stays blank, and with one it tells a
stranger who reads it. Of the package only the files are used.
"""

from importlib import resources

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse
from starlette.responses import Response

from db.errors import NotFound

PAGE = "/docs"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
PATHS = frozenset({PAGE, *(f"{PAGE}/{name}" for name in FILES)})
CACHED_SECONDS = 24 * 3600


def add_documentation(app: FastAPI) -> None:
    """Serve the page, and what it loads, below `/docs`."""
    # Relative addresses, so that it works below a proxy's prefix too.
    script, style, icon = (f"{PAGE.strip('/')}/{name}" for name in FILES)
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
        swagger_ui_parameters={"validatorUrl": None},
    )

    async def page(request: Request) -> Response:
        return html

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise NotFound(f"There is no {request.url.path}.", code="unknown_route")
        path = str(resources.files("fastapi_offline") / "static" / name)
        return FileResponse(path, headers={"cache-control": f"max-age={CACHED_SECONDS}"})

    app.add_route(PAGE, page, include_in_schema=False)
    app.add_route(f"{PAGE}/{{name}}", file, include_in_schema=False)
