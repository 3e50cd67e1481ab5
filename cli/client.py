"""The REST API, as the commands call it.

Every failure becomes one of `db.errors`, with what the API said and which field it meant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlsplit

import httpx

from db.errors import Conflict, InvalidInput, LatheError, NotFound, Unavailable
from db.settings import LOOPBACK, load_settings

JSON = dict[str, Any]

# Reading waits for the server to check and store a large upload, or for a model to load.
TIMEOUT = httpx.Timeout(connect=5, read=300, write=60, pool=60)
PAGE_SIZE = 100
ESTIMATE_WAIT_SECONDS = 30

ERRORS: dict[int, type[LatheError]] = {
    400: InvalidInput,
    401: InvalidInput,
    403: InvalidInput,
    404: NotFound,
    409: Conflict,
    413: InvalidInput,
    415: InvalidInput,
    422: InvalidInput,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def connect(timeout: httpx.Timeout = TIMEOUT) -> "Client":
    """A client for the API that the settings name."""
    settings = load_settings()
    return Client(settings.client_url, settings.api_key.get_secret_value(), timeout=timeout)


class Client:
    """Lathe's API, or any other that speaks OpenAI's, at `url`. Use as a context manager.

    Args:
        url: the server's address, without `/v1`.
        key: sent as a bearer token unless empty.
        hint: what to say when nothing answers there.
        key_hint: what to say when it refuses the key.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        hint: str = "Is `lathe up` running? LATHE_API_URL names another address.",
        key_hint: str = "LATHE_API_KEY holds the key that is sent.",
        timeout: httpx.Timeout = TIMEOUT,
    ) -> None:
        self.url = url.rstrip("/")
        self._hint = hint
        self._key_hint = key_hint
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is no address of a server: it begins with http:// or https://.")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            # A proxy of the environment cannot reach our own loopback.
            trust_env=parts.hostname not in LOOPBACK,
            # Loading the system's certificates takes longer than most requests.
            verify=parts.scheme == "https",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # --- requests -------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> JSON:
        return self._ask("GET", path, params=_given(query))

    def post(self, path: str, body: JSON | None = None) -> JSON:
        return self._ask("POST", path, json=body)

    def delete(self, path: str, **query: Any) -> JSON:
        return self._ask("DELETE", path, params=_given(query))

    def pages(
        self, path: str, *, limit: int | None = None, page_size: int = PAGE_SIZE, **query: Any
    ) -> Iterator[JSON]:
        """Yield the rows of a list, page after page, `limit` of them at most."""
        left = limit
        after = query.pop("after", None)
        while left is None or left > 0:
            size = page_size if left is None else min(left, page_size)
            page = self.get(path, limit=size, after=after, **query)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = page.get("last_id") or page["data"][-1]["id"]
            left = None if left is None else left - len(page["data"])

    @contextmanager
    def stream(
        self, method: str, path: str, *, body: JSON | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """A response whose body is read as it comes; its status has been checked."""
        with self._failures(), self._http.stream(method, path, json=body, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
                raise self._error_of(response)
            yield response

    def _ask(self, method: str, path: str, **options: Any) -> JSON:
        with self._failures():
            response = self._http.request(method, path, **options)
        if response.status_code >= 400:
            raise self._error_of(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LatheError(f"What answers at {self.url} is not Lathe: {method} {path} is no JSON object.")
        return answer

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as failure:
            raise Unavailable(f"Nothing answers at {self.url} ({failure}). {self._hint}") from failure
        except httpx.TimeoutException as failure:
            raise Unavailable(f"{self.url} took too long to answer.") from failure
        except (httpx.TransportError, httpx.InvalidURL, httpx.DecodingError) as failure:
            raise Unavailable(f"The connection to {self.url} broke: {failure}") from failure

    def _error_of(self, response: httpx.Response) -> LatheError:
        status = response.status_code
        try:
            error = response.json()["error"]
            message, param, code = str(error["message"]), error.get("param"), error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{self.url} answered {status} {response.reason_phrase} to {response.request.method} "
            message += f"{response.request.url.path}, without saying why. Is that the right address?"
            param = code = None
        if status == 401:
            message = f"{message.rstrip('.')}. {self._key_hint}"
        return ERRORS.get(status, LatheError)(message, param=param, code=code)

    # --- what the API offers --------------------------------------------------------------------------

    def upload(self, file: BinaryIO, filename: str, purpose: str = "fine-tune") -> JSON:
        """Send a file, read from `file` as it goes."""
        return self._ask("POST", "/v1/files", data={"purpose": purpose}, files={"file": (filename, file)})

    def submit(self, kind: str, params: JSON, **fields: Any) -> JSON:
        return self.post("/v1/jobs", {"kind": kind, "params": params, **_given(fields)})

    def estimate(self, kind: str, params: JSON) -> JSON:
        """Submit an estimate of a job; it has ended, if that took no longer than a request may."""
        return self.post(f"/v1/jobs/estimate?wait={ESTIMATE_WAIT_SECONDS}", {"kind": kind, "params": params})

    def job(self, job_id: str) -> JSON:
        return self.get(f"/v1/jobs/{segment(job_id)}")

    def jobs(self, **query: Any) -> Iterator[JSON]:
        return self.pages("/v1/jobs", **query)

    def steer(self, job_id: str, verb: str, **fields: Any) -> JSON:
        """Cancel, pause, resume, retry or clone a job."""
        return self.post(f"/v1/jobs/{segment(job_id)}/{verb}", fields or None)

    def delete_job(self, job_id: str) -> JSON:
        return self.delete(f"/v1/jobs/{segment(job_id)}")

    def job_rows(self, job_id: str, noun: str, **query: Any) -> Iterator[JSON]:
        """A job's events, metrics, logs or artifacts, the oldest first."""
        return self.pages(f"/v1/jobs/{segment(job_id)}/{noun}", **query)

    def warnings(self, job_id: str) -> list[str]:
        """What a job's steps have warned of, the first one first."""
        events = self.job_rows(job_id, "events", type="message")
        return [event["message"] for event in events if event["level"] == "warn"]

    def artifact_path(self, job_id: str, name: str) -> str:
        return f"/v1/jobs/{segment(job_id)}/artifacts/{segment(name)}"

    def models(self) -> list[JSON]:
        rows: list[JSON] = self.get("/v1/models")["data"]
        return rows

    def model(self, name: str) -> JSON:
        return self.get(model_path(name))

    def delete_model(self, name: str, **query: Any) -> JSON:
        return self.delete(model_path(name), **query)


def model_path(name: str) -> str:
    return f"/v1/models/{segment(name)}"


def segment(text: str) -> str:
    if text in ("", ".", ".."):
        raise InvalidInput(f"{text!r} is not an id or a name.")
    return quote(text, safe=":@")


def _given(values: JSON) -> JSON:
    return {name: value for name, value in values.items() if value is not None}
