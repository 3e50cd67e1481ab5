"""What OpenAI's own client goes by besides the body: statuses, codes, ids of requests, limits, and whether to
ask again.
"""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.api.keyed import Keyed


@pytest.fixture(scope="module")
def keys(keyed: Keyed) -> dict[str, str]:
    """Keys: one that may do all, one that may only look, and one of a project that may ask twice."""
    keyed.project("going-by")
    keyed.project("seldom", max_requests_per_minute=2)
    return {
        "all": keyed.key("going-by", scopes=["read", "write", "inference"])["key"],
        "looks": keyed.key("going-by", scopes=["read"])["key"],
        "seldom": keyed.key("seldom", scopes=["read"])["key"],
    }


@pytest.fixture
def asked() -> list[str]:
    return []


def client_of(keyed: Keyed, key: str, asked: list[str], *, retries: int = 0) -> OpenAI:
    client = OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=retries)
    client._client.event_hooks = {"request": [lambda request: asked.append(str(request.url))]}
    return client


@pytest.fixture
def client(keyed: Keyed, keys: dict[str, str], asked: list[str]) -> Iterator[OpenAI]:
    with client_of(keyed, keys["all"], asked, retries=2) as client:
        yield client


def test_an_id_of_the_request(client: OpenAI) -> None:
    answer = client.vector_stores.create(name="going by")
    assert (answer._request_id or "").startswith("req-")
    named = client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1"})
    assert named.request_id == "mine-1"


@pytest.mark.parametrize("key", ["", "wrong"])
def test_no_key_or_a_wrong_one(keyed: Keyed, asked: list[str], key: str) -> None:
    with (
        client_of(keyed, key or "none", asked, retries=2) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")
    assert len(asked) == 1


def test_a_key_that_may_not(keyed: Keyed, keys: dict[str, str], asked: list[str]) -> None:
    with (
        client_of(keyed, keys["looks"], asked, retries=2) as client,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.responses.create(model="tiny", input="?")
    assert (caught.value.code, caught.value.type) == ("scope_missing", "permission_error")
    assert len(asked) == 1


def test_one_request_too_many(keyed: Keyed, keys: dict[str, str], asked: list[str]) -> None:
    with client_of(keyed, keys["seldom"], asked) as client:
        left = [
            client.models.with_raw_response.list().headers["x-ratelimit-remaining-requests"] for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
    assert left == ["1", "0"]
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    headers = caught.value.response.headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "0")
    wait = client._parse_retry_after_header(headers)
    assert wait is not None
    assert 0 < wait <= 60
    assert client._should_retry(caught.value.response)


def test_what_is_of_no_use_is_not_repeated(client: OpenAI, asked: list[str]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve("resp-none")
    assert (caught.value.param, caught.value.type) == ("response_id", "invalid_request_error")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="default", input="")
    assert len(asked) == 2
