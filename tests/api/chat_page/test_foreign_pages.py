"""What a page of another origin can do in a real browser to an API on loopback: neither read nor write."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Response

from tests.api.keyed import Keyed
from tests.browser import FOREIGN, REBOUND
from tests.http_server import Handler, serving_by

pytestmark = pytest.mark.browser

# Each resolves with what the page got to see: a status, or that it was refused one.
TRIES = {
    "read": "fetch(api + '/v1/models').then((answer) => answer.text())",
    "read unseen": "fetch(api + '/v1/models', {mode: 'no-cors'}).then((answer) => answer.text())",
    "simple write": "fetch(api + '/v1/vector_stores', {method: 'POST', body: '{\"name\": \"evil\"}'})",
    "unseen write": """fetch(api + '/v1/vector_stores', {method: 'POST', mode: 'no-cors',
        headers: {'content-type': 'text/plain'}, body: '{"name": "evil"}'})
        .then((answer) => answer.text())""",
    "declared write": """fetch(api + '/v1/vector_stores', {method: 'POST', body: '{"name": "evil"}',
        headers: {'content-type': 'application/json'}})""",
    "image": """new Promise((seen, failed) => Object.assign(new Image(),
        {onload: seen, onerror: failed, src: api + '/chat/icon.svg'}))""",
    "script": """new Promise((seen, failed) => document.head.append(Object.assign(
        document.createElement('script'), {onload: seen, onerror: failed, src: api + '/chat/api.js'})))""",
}
TRY = "(api) => {}.then((text) => `got: ${{text}}`, () => 'refused')"
# A form's answer goes where the page cannot look; that it was refused, the server's rows tell.
FORM = """([address, kind, content]) => new Promise((done) => {
  const frame = Object.assign(document.createElement("iframe"), {name: kind});
  const form = Object.assign(document.createElement("form"),
    {action: address, method: "POST", enctype: kind, target: kind});
  const field = Object.assign(document.createElement("input"), {type: "file", name: "file"});
  const files = new DataTransfer();
  files.items.add(new File([content], "evil.csv"));
  field.files = files.files;
  const text = Object.assign(document.createElement("textarea"),
    {name: '{"name": "evil", "x": "', value: '"}'});
  form.append(...(kind === "multipart/form-data" ? [field] : [text]));
  document.body.append(frame, form);
  frame.onload = done;
  form.submit();
})"""
KINDS = ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data")


@pytest.fixture(scope="module")
def foreign_page() -> Iterator[str]:
    """The address of a page that is not ours, and does not mean well."""

    class Foreign(Handler):
        def do_GET(self) -> None:
            page = b"<!doctype html><title>Free tools</title><p>Nothing to see here."
            self.reply(200, page, {"content-type": "text/html"})

    with serving_by(Foreign) as url:
        yield url.replace("127.0.0.1", FOREIGN) + "/"


@pytest.fixture(params=["without keys", "with keys"])
def server(request: pytest.FixtureRequest, api: httpx.Client, keyed: Keyed) -> httpx.Client:
    """Its operator's client."""
    return api if request.param == "without keys" else keyed.operator


def rows_of(server: httpx.Client) -> dict[str, Any]:
    paths = ("/v1/files", "/v1/vector_stores", "/v1/jobs")
    return {path: server.get(path, params={"limit": 1}).json()["first_id"] for path in paths}


def test_a_foreign_page_can_neither_read_nor_write(
    browser: Browser, server: httpx.Client, foreign_page: str
) -> None:
    url, before = str(server.base_url).rstrip("/"), rows_of(server)
    statuses = []

    def note(response: Response) -> None:
        if response.url.startswith(url):
            statuses.append((response.request.method, response.status))

    context = browser.new_context()
    page = context.new_page()
    page.on("response", note)
    page.goto(foreign_page)
    for name, attempt in TRIES.items():
        got = page.evaluate(TRY.format(attempt), url)
        assert got in ("refused", "got: "), (name, got)
    for kind in KINDS:
        page.evaluate(
            FORM, [f"{url}/v1/{'files' if 'multi' in kind else 'vector_stores'}", kind, "a,b\n1,2\n"]
        )
    page.evaluate(
        """(address) => new Promise((done) => document.body.append(
            Object.assign(document.createElement("iframe"), {src: address, onload: done})))""",
        f"{url}/chat",
    )
    assert all(frame.locator("#prompt").count() == 0 for frame in page.frames)
    assert rows_of(server) == before
    assert {method for method, _ in statuses} >= {"GET", "POST"}
    assert {status for _, status in statuses} == {403}
    context.close()


def test_a_name_that_was_made_to_point_here_shows_nothing(browser: Browser, server: httpx.Client) -> None:
    """DNS rebinding: to the browser that page and the server are one origin."""
    port = urlsplit(str(server.base_url)).port
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"http://{REBOUND}:{port}/chat")
    assert answer is not None
    assert answer.status == 403
    told = page.evaluate("fetch('/v1/models').then((answer) => answer.json())")
    assert told["error"]["code"] == "foreign_host"
    context.close()


def test_a_link_to_the_chat_page_may_be_followed(
    browser: Browser, server: httpx.Client, foreign_page: str
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(foreign_page)
    page.evaluate("(address) => { location.href = address; }", f"{str(server.base_url).rstrip('/')}/chat")
    page.wait_for_selector("#prompt")
    context.close()
