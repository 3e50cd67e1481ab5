"""docs/how-to/coming-from-earlier-projects.md, run: each request on it is put, and answered as it says."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai._streaming import SSEDecoder
from sqlalchemy import select

from api.app import create_app
from db.lathe_yaml import read_settings
from db.models import Job
from db.queries.jobs import get_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobStatus, StepStatus
from tests.api.answers.conftest import Desk
from tests.api.conftest import FAQ, upload
from tests.api.serving import serving
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "how-to" / "coming-from-earlier-projects.md").read_text()
EXAMPLE = re.compile(
    r"```http\n(?P<method>[A-Z]+) (?P<path>\S+)\n(?P<body>.*?)```\n"
    r"(?:[^`#]*?)```(?P<kind>json|text)\n(?P<answer>.*?)```",
    re.DOTALL,
)
CONFIGURATION = re.compile(r"```yaml\n# lathe\.yaml\n(.*?)```", re.DOTALL)
ANYTHING = "…"


@dataclass(frozen=True)
class Example:
    method: str
    path: str
    body: str
    kind: str
    answer: str

    @property
    def is_before_the_model(self) -> bool:
        return '"model_downloading"' in self.answer

    def put(self, api: httpx.Client, files: dict[str, str]) -> httpx.Response:
        path, body = self.path, self.body
        for name, file_id in files.items():
            path, body = path.replace(name, file_id), body.replace(name, file_id)
        return api.request(self.method, path, json=json.loads(body) if body else None)


EXAMPLES = [Example(**match.groupdict()) for match in EXAMPLE.finditer(PAGE)]


def same(said: Any, told: Any, where: str = "answer") -> None:
    """Whether an answer is what the page tells, where that tells it."""
    if isinstance(told, dict):
        more = ANYTHING in told
        assert set(told) - {ANYTHING} <= set(said) if more else set(told) == set(said), (where, said)
        for key in set(told) - {ANYTHING}:
            same(said[key], told[key], f"{where}.{key}")
    elif isinstance(told, list):
        assert isinstance(said, list), (where, said)
        for number, (one, other) in enumerate(zip(said, told, strict=False)):
            same(one, other, f"{where}[{number}]")
    elif isinstance(told, str) and ANYTHING in told:
        assert told == ANYTHING or re.fullmatch(".+".join(map(re.escape, told.split(ANYTHING))), said), where
    elif isinstance(told, float):
        assert isinstance(said, float), where
    elif told != ANYTHING:
        assert said == told, where


@pytest.fixture
def configured(app_settings: Settings, tmp_path: Path) -> Settings:
    """As the page's lathe.yaml has it, less where it listens."""
    path = tmp_path / "lathe.yaml"
    [text] = CONFIGURATION.findall(PAGE)
    path.write_text(text)
    return app_settings.model_copy(update=read_settings({"LATHE_CONFIG": str(path)}))


@pytest.fixture
def api(configured: Settings) -> Iterator[httpx.Client]:
    with (
        serving(create_app(configured)) as url,
        httpx.Client(base_url=url, timeout=20, trust_env=False) as api,
    ):
        yield api


def let_it_run(factory: SessionFactory, progress: dict[str, Any]) -> None:
    def job() -> str | None:
        with transaction(factory) as session:
            query = select(Job.id).where(Job.params["name"].astext == "some-7b").order_by(Job.id.desc())
            return session.scalars(query).first()

    wait_until(lambda: job() is not None)
    with transaction(factory) as session:
        row = get_job(session, job() or "", project_id="default", lock=True)
        move(session, row, JobStatus.RUNNING)
        move(session, row.steps[0], StepStatus.RUNNING)
        row.steps[0].progress = progress


class TestPage:
    def test_has_the_examples_that_are_run(self) -> None:
        assert len(EXAMPLES) == PAGE.count("```http\n") > 10

    def test_its_requests_are_answered_as_it_says(
        self, api: httpx.Client, desk: Desk, session_factory: SessionFactory
    ) -> None:
        let_it_run(
            session_factory,
            {"done": 1_200_000_000, "total": 4_100_000_000, "unit": "B", "eta_seconds": 80},
        )
        files = {
            "file-manual": upload(desk.api, b"Wipe it with a dry cloth.", "manual.txt"),
            "file-train": upload(desk.api, FAQ, "train.csv"),
            "file-test": upload(desk.api, FAQ, "test.csv"),
        }
        [before] = [example for example in EXAMPLES if example.is_before_the_model]
        answer = before.put(api, files)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        same(answer.json(), json.loads(before.answer))
        desk.ready("some-7b")
        for example in EXAMPLES:
            if example is before:
                continue
            answer = example.put(api, files)
            assert answer.status_code < 300, (example, answer.text)
            if example.kind == "text":
                events = list(SSEDecoder().iter_bytes(iter([answer.content])))
                assert events
                assert {event.event for event in events} == {None}
                continue
            told = example.answer
            for name, file_id in files.items():
                told = told.replace(name, file_id)
            same(answer.json(), json.loads(told), f"{example.method} {example.path}")

    def test_the_routes_ask_with_what_the_request_says(self, api: httpx.Client, desk: Desk) -> None:
        desk.ready("some-7b")
        [first] = [each for each in EXAMPLES if '"repeat_penalty": 1.3' in each.body]
        assert first.put(api, {}).json() == "Thirty days [1]."
        asked = desk.server.asked[-1]
        assert {name: asked[name] for name in asked if name not in ("model", "messages")} == {
            "max_tokens": 300, "temperature": 0.1, "top_k": 40, "top_p": 0.95, "stop": ["###"],
            "repeat_penalty": 1.3, "seed": 7, "repeat_last_n": 64,
        }  # fmt: skip

    def test_its_table_of_keys_is_whole(self) -> None:
        table = PAGE[PAGE.index("| key | what it is here |") : PAGE.index("A key that is not in this table")]
        [text] = CONFIGURATION.findall(PAGE)
        written = yaml.safe_load(text)
        keys = {
            *(key for key in written if not isinstance(written[key], dict)),
            *(key for value in written.values() if isinstance(value, dict) for key in value),
        }
        assert all(f"{key}`" in table for key in keys)
