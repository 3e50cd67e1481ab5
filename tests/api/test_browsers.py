"""What pages in somebody's browser may do, by the headers that browsers send."""

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from api.app import create_app
from db.settings import Settings
from tests.api.conftest import error_of, serving

KEY = "a-long-random-key"
FRIEND = "http://tools.example:3000"
OURS = "https://lathe.example"


@pytest.fixture(scope="module")
def keyed(settings: Settings) -> Iterator[httpx.Client]:
    """A client with the key of a server that also answers as lathe.example, and to pages of FRIEND."""
    told = {"api_key": SecretStr(KEY), "allowed_hosts": ["lathe.example"], "allowed_origins": [FRIEND]}
    app = create_app(settings.model_copy(update=told))
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serving(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False) as client,
    ):
        yield client


def refusal_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, error_of(answer)["code"]


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
        assert keyed.get("/v1/models", headers={"host": "lathe.example"}).status_code == 200

    @pytest.mark.parametrize("asked", ["evil.example", "lathe.example, evil.example", "localhost,"])
    def test_one_that_a_proxy_was_asked_by_is_looked_at_too(self, keyed: httpx.Client, asked: str) -> None:
        """A proxy may put our own name into Host, whatever it was asked by."""
        answer = keyed.get("/v1/models", headers={"x-forwarded-host": asked})
        assert refusal_of(answer) == (403, "foreign_host")


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

    @pytest.mark.parametrize(
        ("origin", "headers"),
        [
            (OURS, {"host": "lathe.example"}),
            (OURS, {"host": "lathe.example:443"}),
            (OURS, {"x-forwarded-host": "lathe.example"}),
            (f"{OURS}:8443", {"host": "lathe.example:8443"}),
            ("http://LATHE.example", {"host": "lathe.example"}),
        ],
    )
    def test_our_own_behind_a_proxy(self, keyed: httpx.Client, origin: str, headers: dict[str, str]) -> None:
        answer = keyed.post("/v1/jobs", json={}, headers={"origin": origin, **headers})
        assert refusal_of(answer)[0] == 400, "it came as far as the route"
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize("origin", [f"{OURS}:8443", "ftp://lathe.example", "https://lathe.example.evil"])
    def test_one_like_ours_is_refused(self, keyed: httpx.Client, origin: str) -> None:
        answer = keyed.post("/v1/jobs", json={}, headers={"origin": origin, "host": "lathe.example"})
        assert refusal_of(answer) == (403, "foreign_origin")

    def test_a_preflight_gets_no_leave(self, api: httpx.Client) -> None:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = api.options("/v1/jobs", headers=headers)
        assert answer.status_code == 403


class TestBrowsers:
    """What a page in somebody's browser can send, with and without keys; it cannot send the key's header
    unasked, but a server without keys has to refuse it all the same."""

    @pytest.fixture(params=["without keys", "with the key"])
    def server(self, request: pytest.FixtureRequest, api: httpx.Client, keyed: httpx.Client) -> httpx.Client:
        return api if request.param == "without keys" else keyed

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

    @pytest.mark.parametrize("frame", ["iframe", "frame", "embed", "object"])
    def test_our_pages_cannot_stand_within_another(self, server: httpx.Client, frame: str) -> None:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": frame}
        answer = server.get("/docs", headers=headers)
        assert refusal_of(answer) == (403, "foreign_origin")
        assert server.get("/docs").headers["x-frame-options"] == "DENY"

    def test_an_answer_cannot_be_taken_into_a_foreign_page(self, server: httpx.Client) -> None:
        """As an image or a script, which an old browser asks for without saying from where."""
        for path in ("/v1/models", "/v1/none", "/docs"):
            headers = server.get(path).headers
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"


class TestAllowedOrigin:
    """One whose pages the operator lets use the API."""

    def test_may_ask_and_read_with_the_key(self, keyed: httpx.Client) -> None:
        headers = {"origin": FRIEND, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
        answer = keyed.get("/v1/models", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert answer.headers["vary"] == "origin"

    def test_reads_errors_too(self, keyed: httpx.Client) -> None:
        headers = {"origin": FRIEND, "authorization": "Bearer wrong"}
        answer = keyed.get("/v1/models", headers=headers)
        assert refusal_of(answer) == (401, "invalid_api_key")
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "x-request-id" in answer.headers["access-control-expose-headers"]

    def test_gets_leave_by_a_preflight_which_bears_no_key(self, keyed: httpx.Client) -> None:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        with httpx.Client(base_url=keyed.base_url, trust_env=False) as client:
            answer = client.options("/v1/chat/completions", headers={"origin": FRIEND, **asked})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]

    def test_of_a_foreign_name_is_refused_still(self, keyed: httpx.Client) -> None:
        answer = keyed.get("/v1/models", headers={"origin": FRIEND, "host": "evil.example"})
        assert refusal_of(answer) == (403, "foreign_host")

    @pytest.mark.parametrize("origin", ["*", "null", "tools.example", "https://a.example/x", "file://"])
    def test_has_to_be_one_that_browsers_send(self, origin: str) -> None:
        with pytest.raises(ValidationError, match="is no origin"):
            Settings(allowed_origins=[origin])

    def test_and_hosts_are_compared_in_small_letters(self) -> None:
        settings = Settings(
            allowed_origins="HTTP://Tools.example:3000, https://b.example", allowed_hosts="A.b"
        )
        assert settings.allowed_origins == ["http://tools.example:3000", "https://b.example"]
        assert settings.allowed_hosts == ["a.b"]
