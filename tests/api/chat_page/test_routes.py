"""The page's files: whole without another server, open without a key, and under a strict policy."""

import re
from urllib.parse import urljoin

import httpx
import pytest

from api.chat_page.routes import FILES, FOLDER
from tests.api.conftest import error_of
from tests.api.keyed import Keyed

TYPES = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}
BY_A_SCRIPT = re.compile(r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function)")


def ours() -> list[str]:
    return [name for name in FILES if not name.startswith("vendor/") and name.endswith(".js")]


def test_all_that_it_loads_is_ours_and_needs_no_key(keyed: Keyed) -> None:
    client = keyed.with_key(None)
    page = client.get("/chat")
    assert page.status_code == 200
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
    wanted = set(re.findall(r'(?:src|href)="chat/([^"]+)"', page.text))
    for name in ours():
        script = client.get(f"/chat/{name}").text
        imported = re.findall(r'^import .*from "\./([^"]+)"', script, re.MULTILINE)
        wanted |= set(imported)
    assert wanted == set(FILES)
    for name in FILES:
        answer = client.get(urljoin(f"{keyed.url}/chat", f"chat/{name}"))
        assert answer.status_code == 200
        assert TYPES[name.rpartition(".")[2]] in answer.headers["content-type"]
    assert client.get("/v1/models").status_code == 401


def test_every_file_is_served_but_what_only_people_read() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there - set(FILES) == {"index.html", "vendor/README.md", "vendor/LICENSES.txt"}


def test_what_is_not_ours_is_recorded_with_its_version_and_licence() -> None:
    [version] = re.findall(r"markdown-it (\d[\d.]+) ", (FOLDER / "vendor/markdown-it.js").read_text()[:200])
    assert f"| {version} |" in (FOLDER / "vendor/README.md").read_text()
    assert f"=== markdown-it-{version}\n" in (FOLDER / "vendor/LICENSES.txt").read_text()


def test_the_policy_lets_nothing_run_but_our_files(api: httpx.Client) -> None:
    headers = api.get("/chat").headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["trusted-types"] == "'none'"
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page)


@pytest.mark.parametrize("name", ours())
def test_no_text_becomes_markup(name: str) -> None:
    assert not BY_A_SCRIPT.search((FOLDER / name).read_text())


@pytest.mark.parametrize(("path", "to"), [("/", "chat"), ("/chat/", "../chat")])
def test_the_root_leads_to_it_by_a_relative_address(api: httpx.Client, path: str, to: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, to)
    assert api.get(urljoin(f"{api.base_url}{path}", to)).status_code == 200


@pytest.mark.parametrize(
    "name", ["none.js", "..%2froutes.py", "vendor/README.md", "vendor", "%2e%2e%2froutes.py"]
)
def test_nothing_else_is_served(api: httpx.Client, name: str) -> None:
    answer = api.get(f"/chat/{name}")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "unknown_route"


def test_a_browser_that_has_a_file_is_told_so(api: httpx.Client) -> None:
    first = api.get("/chat/main.js")
    again = api.get("/chat/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (first.headers["cache-control"], again.status_code) == ("no-cache", 304)
