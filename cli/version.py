"""`lathe version`."""

from importlib.metadata import version as version_of
from typing import Any

import httpx

from cli.client import connect
from cli.output import JsonFlag, print_json, stdout
from db.errors import LatheError
from serving.llama_cpp import pinned_version

QUICK = httpx.Timeout(2)


def version(json: JsonFlag = False) -> None:
    """Show the versions of this command, of the API it reaches, and of llama.cpp."""
    versions = {"lathe": version_of("lathe"), **_api(), "llama_cpp": pinned_version()}
    if json:
        print_json(versions)
        return
    console = stdout()
    console.print(f"lathe      {versions['lathe']}")
    console.print(f"API        {versions['api'] or 'does not answer'}  [dim]{versions['api_url']}[/]")
    console.print(f"llama.cpp  {versions['llama_cpp']}  [dim](llama-cpp-python's sdist)[/]")


def _api() -> dict[str, Any]:
    with connect(timeout=QUICK) as client:
        try:
            answer: str | None = str(client.get("/healthz").get("version") or "unknown")
        except LatheError:
            answer = None
        return {"api": answer, "api_url": client.url}
