"""The page at /docs: whole without a network, and open without a key."""

import re
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import SecretStr

from api.app import create_app
from api.documentation import FILES
from db.settings import Settings
from tests.api.conftest import error_of, serving

TYPES = {"js": "javascript", "css": "text/css", "png": "image/png"}


def test_all_that_the_page_loads_is_ours(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"api_key": SecretStr("a-key")}))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "//" not in re.sub(r"(?m)^\s*//.*$", "", page.text), "it names another server"
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) == len(FILES)
        for address in loaded:
            answer = client.get(urljoin(f"{url}/docs", address))
            assert answer.status_code == 200
            assert TYPES[address.rpartition(".")[2]] in answer.headers["content-type"]
        [described] = re.findall(r"url: '([^']+)'", page.text)
        assert client.get(urljoin(f"{url}/docs", described)).json()["openapi"].startswith("3.")


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2f__init__.py", "%2e%2e%2fcore.py"])
def test_nothing_else_of_the_package_is_served(api: httpx.Client, name: str) -> None:
    answer = api.get(f"/docs/{name}")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "unknown_route"
