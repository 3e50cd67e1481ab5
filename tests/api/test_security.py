"""Who may ask: the key, and the address that is listened on."""

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from api.__main__ import check_address
from api.app import create_app
from db.errors import InvalidInput
from db.settings import Settings
from tests.api.conftest import error_of, serving

KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def keyed(settings: Settings) -> Iterator[httpx.Client]:
    app = create_app(settings.model_copy(update={"api_key": SecretStr(KEY)}))
    with serving(app) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        yield client


class TestKey:
    @pytest.mark.parametrize(
        "given", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"]
    )
    def test_missing_or_wrong_is_401(self, keyed: httpx.Client, given: str | None) -> None:
        headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]
        answer = keyed.get("/v1/models", headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert KEY not in answer.text

    def test_right(self, keyed: httpx.Client) -> None:
        assert keyed.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200

    def test_right_in_any_script(self, settings: Settings) -> None:
        app = create_app(settings.model_copy(update={"api_key": SecretStr("schlüssel-ключ")}))
        authorization = "Bearer schlüssel-ключ".encode()
        with serving(app) as url:
            headers = [(b"authorization", authorization)]
            answer = httpx.get(f"{url}/v1/models", headers=headers, trust_env=False)  # type: ignore[arg-type]
        assert answer.status_code == 200

    @pytest.mark.parametrize("path", ["/v1/nope", "/v1/jobs", "/generate"])
    def test_routes_that_do_not_exist_tell_nothing_without_it(self, keyed: httpx.Client, path: str) -> None:
        assert keyed.get(path).status_code == 401

    @pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json"])
    def test_open_paths(self, keyed: httpx.Client, path: str) -> None:
        assert keyed.get(path).status_code == 200


class TestAddress:
    def test_beyond_loopback_needs_a_key(self) -> None:
        with pytest.raises(InvalidInput, match="set LATHE_API_KEY"):
            check_address(Settings(api_host="0.0.0.0"))  # noqa: S104 - what is refused
        check_address(Settings(api_host="0.0.0.0", api_key=KEY))  # noqa: S104
        check_address(Settings(api_host="127.0.0.1"))


class TestRequestId:
    def test_is_made_or_taken(self, api: httpx.Client) -> None:
        assert api.get("/healthz").headers["x-request-id"].startswith("req-")
        assert api.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert api.get("/healthz", headers={"x-request-id": "no good"}).headers["x-request-id"] != "no good"
