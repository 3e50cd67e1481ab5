"""What a shell completes besides commands and flags: ids of jobs, names of models and collections, values of
flags. `lathe --install-completion` sets the shell up.

Names are asked of the API. What it does not tell at once is not completed: a Tab is no place for errors.
"""

from collections.abc import Callable, Iterable

import httpx

from cli.client import Client, connect
from cli.text import harmless
from db.errors import LatheError

Completed = list[tuple[str, str]]

QUICK = httpx.Timeout(2)
SHOWN = 50


def jobs(incomplete: str) -> Completed:
    """The newest jobs, each with what it is."""
    return _beginning(incomplete, _asked(_job_ids))


def models(incomplete: str) -> Completed:
    """The names that answer or can be trained on."""
    return _beginning(incomplete, _asked(_model_names))


def collections(incomplete: str) -> Completed:
    return _beginning(incomplete, _asked(_collection_names))


def files(incomplete: str) -> Completed:
    return _beginning(incomplete, _asked(_file_ids))


def one_of(values: Iterable[str], *, many: bool = False) -> Callable[[str], list[str]]:
    """A completer that knows what a flag takes; of several between commas it completes the last."""
    known = list(values)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if many else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in known if value.startswith(last)]

    return complete


def _asked(ask: Callable[[Client], Completed]) -> Completed:
    try:
        with connect(timeout=QUICK) as client:
            return ask(client)
    except LatheError:
        return []


def _beginning(incomplete: str, found: Completed) -> Completed:
    return [(value, about) for value, about in found if value.startswith(incomplete)]


def _job_ids(client: Client) -> Completed:
    rows = client.jobs(limit=SHOWN)
    return [(row["id"], _words(row["kind"], row["params"].get("name", ""), row["status"])) for row in rows]


def _model_names(client: Client) -> Completed:
    return [(row["id"], _words(row["type"], row["status"])) for row in client.models()]


def _file_ids(client: Client) -> Completed:
    return [(row["id"], harmless(row["filename"])) for row in client.pages("/v1/files", limit=SHOWN)]


def _collection_names(client: Client) -> Completed:
    return [(row["name"], row["id"]) for row in client.pages("/v1/vector_stores") if row["name"]]


def _words(*parts: str) -> str:
    return " ".join(harmless(part) for part in parts if part)
