"""Who may ask: the key, the Host, the Origin, and the address that is listened on."""

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
    told = {"api_key": SecretStr(KEY), "allowed_hosts": ["lathe.example"]}
    app = create_app(settings.model_copy(update=told))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def keyed_client(keyed: httpx.Client) -> Iterator[httpx.Client]:
    """One that sends the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=keyed.base_url, headers=headers, trust_env=False) as client:
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


class TestHost:
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "[::2]",
            "",
        ],
    )
    def test_a_foreign_one_is_refused(self, api: httpx.Client, host: str) -> None:
        answer = api.get("/v1/models", headers={"host": host})
        assert answer.status_code == 403
        assert error_of(answer)["code"] == "foreign_host"

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000", "localhost."])
    def test_ours(self, api: httpx.Client, host: str) -> None:
        assert api.get("/v1/models", headers={"host": host}).status_code == 200

    def test_one_that_the_operator_allows(self, keyed: httpx.Client) -> None:
        headers = {"host": "lathe.example", "authorization": f"Bearer {KEY}"}
        assert keyed.get("/v1/models", headers=headers).status_code == 200


class TestOrigin:
    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", "http://[::1", ""],
    )
    def test_a_foreign_one_is_refused(self, api: httpx.Client, origin: str) -> None:
        answer = api.post("/v1/jobs", json={}, headers={"origin": origin})
        assert answer.status_code == 403
        assert error_of(answer)["code"] == "foreign_origin"
        assert "access-control-allow-origin" not in answer.headers

    def test_our_own(self, api: httpx.Client) -> None:
        assert api.get("/v1/models", headers={"origin": str(api.base_url).rstrip("/")}).status_code == 200

    def test_a_preflight_gets_no_leave(self, api: httpx.Client) -> None:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = api.options("/v1/jobs", headers=headers)
        assert answer.status_code == 403


class TestBrowsers:
    """What a page in somebody's browser can send, with and without keys; it cannot send the key's header
    unasked, but a server without keys has to refuse it all the same."""

    @pytest.fixture(params=["without keys", "with the key"])
    def server(
        self, request: pytest.FixtureRequest, api: httpx.Client, keyed_client: httpx.Client
    ) -> httpx.Client:
        return api if request.param == "without keys" else keyed_client

    @pytest.mark.parametrize(
        "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"]
    )
    @pytest.mark.parametrize("path", ["/v1/jobs", "/v1/keys", "/v1/projects", "/v1/chat/completions"])
    def test_a_form_post_is_refused_by_its_type(self, server: httpx.Client, path: str, kind: str) -> None:
        answer = server.post(path, content=b'{"name": "evil"}', headers={"content-type": kind})
        assert answer.status_code == 415
        assert error_of(answer)["code"] == "wrong_content_type"

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
    def test_an_upload_from_a_foreign_form_is_refused_by_its_origin(
        self, server: httpx.Client, origin: str
    ) -> None:
        before = server.get("/v1/files", params={"limit": 1}).json()["first_id"]
        form = {"files": {"file": ("a.csv", b"a,b\n1,2\n")}, "headers": {"origin": origin}}
        answer = server.post("/v1/files", **form)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_origin")
        assert server.get("/v1/files", params={"limit": 1}).json()["first_id"] == before

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    @pytest.mark.parametrize(
        ("method", "mode"), [("GET", "no-cors"), ("POST", "navigate"), ("DELETE", "cors")]
    )
    def test_what_the_browser_says_comes_from_elsewhere_is_refused_without_an_origin_too(
        self, server: httpx.Client, site: str, method: str, mode: str
    ) -> None:
        headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
        answer = server.request(method, "/v1/files/none", headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_origin")

    def test_a_link_to_us_may_be_followed_and_our_own_pages_may_ask(self, server: httpx.Client) -> None:
        followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert server.get("/docs", headers=followed).status_code == 200
        for site in ("same-origin", "none"):
            assert server.get("/v1/models", headers={"sec-fetch-site": site}).status_code == 200

    def test_a_name_that_was_made_to_point_here_is_refused(self, server: httpx.Client) -> None:
        """DNS rebinding: to the browser the page and the server are one origin then."""
        for path in ("/v1/models", "/healthz", "/docs", "/v1/keys"):
            headers = {"host": "rebound.example:8000", "origin": "http://rebound.example:8000"}
            answer = server.get(path, headers={**headers, "sec-fetch-site": "same-origin"})
            assert (answer.status_code, error_of(answer)["code"]) == (403, "foreign_host")


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
