"""A file of the storage root as an answer."""

from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from db.errors import NotFound


def send_file(root: Path, relative: str, *, name: str, sha256: str, request: Request) -> Response:
    """Answer with the bytes at `relative` inside `root`: by Range if asked, and 304 if known already.

    Raises:
        NotFound: the row is there, but its file is gone, or lies outside of the root.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise NotFound(f"The bytes of {name!r} are no longer on this server.", code="file_gone")
    etag = f'"{sha256}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": etag})
    return FileResponse(path, filename=name, media_type="application/octet-stream", headers={"etag": etag})
