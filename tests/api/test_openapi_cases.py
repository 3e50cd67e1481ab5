"""Every route against what /openapi.json says of it.

schemathesis makes requests up from there: to each route by itself, and in chains, in which what one answer
holds goes into the next request. No answer may be a server's error, or other than it is described.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation.stateful.state_machine import APIStateMachine
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import text

from db.session import transaction
from db.settings import Settings
from tests.api.conftest import FAQ
from tests.api.keyed import OPERATORS_KEY, Keyed, keyed_api
from tests.api.model_server import ModelServer
from tests.conftest import PostgresServer

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip
PUBLISHED = """
    INSERT INTO models (id, project_id, name) VALUES ('model-faq', 'default', 'faq');
    INSERT INTO model_versions (id, model_id, number, details) VALUES ('version-faq', 'model-faq', 1, '{}');
    UPDATE models SET current_version_id = 'version-faq' WHERE id = 'model-faq';
    INSERT INTO model_files (version_id, position, quantization, backend, backend_name, bytes, sha256)
    VALUES ('version-faq', 0, 'Q4_K_M', 'llama_server', 'faq-v1', 4, '')
"""
NO_WORKER = "GET /readyz"  # says so by a 503
MANY_CASES = 20_000
UNDOING = re.compile(r"(POST /v1/projects/\{project_id\}(/archive)?)")


@dataclass
class Asking:
    """A schema, and what came of asking by it."""

    schema: Any
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return self.asked.total()

    def ask(self, case: schemathesis.Case) -> Response:
        self._spare(case)
        self.asked[case.operation.label] += 1
        response: Response = case.call(headers={"authorization": f"Bearer {OPERATORS_KEY}"}, timeout=30)
        self.answered[f"{case.operation.label} {response.status_code}"] += 1
        self.judge(case, response)
        return response

    def _spare(self, case: schemathesis.Case) -> None:
        """Leave the project that asks as it is: archived, it would get one answer for ever."""
        if UNDOING.fullmatch(case.operation.label) and case.path_parameters.get("project_id") == "default":
            case.path_parameters["project_id"] = "another"

    def judge(self, case: schemathesis.Case, response: Response) -> None:
        checks = [check for check in CHECKS if case.operation.label != NO_WORKER or check is not CHECKS[0]]
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as failures:
            told = "; ".join(str(failure) for failure in failures.exceptions)
            body = case.body if isinstance(case.body, dict | list | str) else None
            self.wrong.setdefault(
                case.operation.label, f"{told}\n  {case.formatted_path} {body!r:.500}\n  {response.text:.500}"
            )

    def told(self) -> str:
        """How many answers there were of each status."""
        statuses: Counter[str] = Counter()
        for name, number in self.answered.items():
            statuses[name.rpartition(" ")[2]] += number
        return ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))

    def verdict(self) -> str:
        return "\n".join(f"{label}: {what}" for label, what in self.wrong.items())


@pytest.fixture(scope="module")
def installation(
    settings: Settings,
    postgres_server: PostgresServer,
    migrated_template: str,
    backend: tuple[ModelServer, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Keyed]:
    """One of its own, since no row of it stays as it was."""
    postgres_server.execute(f"CREATE DATABASE cases TEMPLATE {migrated_template} STRATEGY file_copy")
    own = {"database_url": postgres_server.url("cases"), "data_dir": tmp_path_factory.mktemp("cases")}
    with keyed_api(Settings.model_validate({**settings.model_dump(), **own})) as keyed:
        with transaction(keyed.sessions) as session:
            session.execute(text(PUBLISHED))
        backend[0].models.add("faq-v1")
        yield keyed


@pytest.fixture
def asking(installation: Keyed) -> Asking:
    described = installation.operator.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=installation.url)
    documented = examples_of(described, installation)

    @schema.hook
    def flatmap_body(context: Any, body: Any) -> st.SearchStrategy[Any]:
        """Half of the bodies are those that the documentation gives: they get beyond what checks a field."""
        example = documented.get(context.operation.label)
        return st.just(body) if example is None else st.sampled_from([body, example])

    return Asking(schema)


def examples_of(described: dict[str, Any], installation: Keyed) -> dict[str, Any]:
    """The documented example of each operation's body, with a file and an address that there are."""
    answer = installation.operator.post(
        "/v1/files", files={"file": ("faq.csv", FAQ)}, data={"purpose": "fine-tune"}
    )
    file_id = answer.raise_for_status().json()["id"]
    schemas = described["components"]["schemas"]
    found = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            named = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
            example = content.get("example") or next(iter(named.get("examples", [])), None)
            if example is not None:
                found[f"{method.upper()} {path}"] = _real(example, file_id)
    return found


def _real(example: Any, file_id: str) -> Any:
    if isinstance(example, dict):
        return {name: _real(value, file_id) for name, value in example.items()}
    if isinstance(example, list):
        return [_real(value, file_id) for value in example]
    if isinstance(example, str) and example.startswith("file-"):
        return file_id
    return (
        "http://192.88.98.1/told" if isinstance(example, str) and example.startswith("https://") else example
    )


def settings_for(cases: int, steps: int = 1, *, again: bool = False) -> hypothesis.settings:
    """Args:
    again: the same cases at every run.
    """
    return hypothesis.settings(
        max_examples=cases, stateful_step_count=steps, deadline=None, database=None, derandomize=again,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def ask_each_alone(asking: Asking, mode: GenerationMode, settings: hypothesis.settings) -> None:
    """Ask each operation with what fits its description, or with what does not."""
    for result in asking.schema.get_all_operations():

        @settings
        @hypothesis.given(case=result.ok().as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            asking.ask(case)

        # Of one that takes nothing, nothing can be wrong.
        with contextlib.suppress(*([Unsatisfiable] if mode is GenerationMode.NEGATIVE else [])):
            ask()


def ask_in_chains(asking: Asking, settings: hypothesis.settings) -> None:
    class Chain(asking.schema.as_state_machine()):  # type: ignore[misc]
        def call(self, case: schemathesis.Case, **_: Any) -> Response:
            return asking.ask(case)

        def validate_response(self, *_: Any, **__: Any) -> None:
            """Done as it was asked."""

    machine: type[APIStateMachine] = Chain
    # Hypothesis begins some chains as it began others, and gives up when the server, which has more rows by
    # then, answers otherwise.
    with contextlib.suppress(FlakyStrategyDefinition):
        machine.run(settings=settings)


def test_a_few_cases(asking: Asking) -> None:
    ask_each_alone(asking, GenerationMode.POSITIVE, settings_for(2, again=True))
    ask_in_chains(asking, settings_for(10, 6, again=True))
    assert asking.cases > 200
    assert not asking.wrong, asking.verdict()


@pytest.mark.slow
def test_many_cases(asking: Asking) -> None:
    ask_each_alone(asking, GenerationMode.POSITIVE, settings_for(40))
    ask_each_alone(asking, GenerationMode.NEGATIVE, settings_for(20))
    while asking.cases < MANY_CASES and not asking.wrong:
        ask_in_chains(asking, settings_for(100, 20))
    assert not asking.wrong, asking.verdict()
