"""API keys: what one lets do, for whom, until when, and who may make them."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from openai import OpenAI
from sqlalchemy import Engine, text, update

from api.caller import OPERATORS_KEY, Caller
from api.errors import Unauthenticated
from api.keyring import KEPT_SECONDS, Keyring
from db.keys import EVERY_SCOPE
from db.models import ApiKey
from db.queries.keys import create_key
from db.session import SessionFactory, make_session_factory, transaction
from db.settings import Settings
from tests.api.conftest import error_of
from tests.api.keyed import Keyed


class TestMaking:
    def test_the_secret_is_shown_once_and_kept_as_a_hash(self, keyed: Keyed) -> None:
        made = keyed.key(name="nightly")
        secret = made["key"]
        assert secret.startswith(made["prefix"])
        assert len(secret) == len("sk-lathe-") + 43  # 256 bits
        shown = keyed.operator.get(f"/v1/keys/{made['id']}")
        listed = keyed.operator.get("/v1/keys")
        assert secret not in shown.text + listed.text
        assert made["id"] in [row["id"] for row in listed.json()["data"]]
        with keyed.sessions() as session:
            row = session.get_one(ApiKey, made["id"])
            assert row.hash == hashlib.sha256(secret.encode()).digest()
            kept = session.scalars(text("SELECT body FROM answers")).all()
        assert not [body for body in kept if secret in body]

    def test_without_scopes_it_may_do_all_but_administer(self, keyed: Keyed) -> None:
        assert keyed.key()["scopes"] == ["inference", "read", "write"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": "two\nlines"}, "name"),
            ({"name": "a", "scopes": []}, "scopes"),
            ({"name": "a", "scopes": ["root"]}, "scopes[0]"),
            ({"name": "a", "expires_at": 1000}, "expires_at"),
            ({"name": "a", "secret": "mine"}, "secret"),
        ],
    )
    def test_refuses_what_cannot_be(self, keyed: Keyed, body: dict[str, object], param: str) -> None:
        answer = keyed.operator.post("/v1/keys", json=body)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param

    def test_for_a_project_that_there_is_not(self, keyed: Keyed) -> None:
        answer = keyed.operator.post("/v1/keys", json={"name": "a", "project": "nowhere"})
        assert answer.status_code == 404


class TestRefusals:
    def test_says_how_to_get_one(self, keyed: Keyed) -> None:
        for key in (None, "sk-lathe-made-up"):
            answer = keyed.with_key(key).get("/v1/models")
            assert answer.status_code == 401
            error = error_of(answer)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            assert "lathe keys create" in error["message"]

    def test_a_revoked_one_at_once_in_the_process_that_revoked_it(self, keyed: Keyed) -> None:
        made = keyed.key()
        client = keyed.with_key(made["key"])
        assert client.get("/v1/models").status_code == 200
        revoked = keyed.operator.post(f"/v1/keys/{made['id']}/revoke").json()
        assert revoked["status"] == "revoked"
        answer = client.get("/v1/models")
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "api_key_revoked"
        assert keyed.operator.post(f"/v1/keys/{made['id']}/revoke").json() == revoked

    def test_an_expired_one(self, keyed: Keyed) -> None:
        made = keyed.key(expires_at=int(time.time()) + 3600)
        with transaction(keyed.sessions) as session:
            past = datetime.now(UTC) - timedelta(seconds=1)
            session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=past))
        answer = keyed.with_key(made["key"]).get("/v1/models")
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "api_key_expired"
        assert keyed.operator.get(f"/v1/keys/{made['id']}").json()["status"] == "expired"

    def test_the_stock_client_says_what_is_wrong(self, keyed: Keyed) -> None:
        with OpenAI(base_url=f"{keyed.url}/v1", api_key="sk-lathe-made-up", max_retries=0) as client:
            with pytest.raises(Exception, match="The API key is wrong") as caught:
                client.models.list()
            assert type(caught.value).__name__ == "AuthenticationError"


class TestScopes:
    @pytest.mark.parametrize(
        ("scope", "method", "path", "allowed"),
        [
            ("read", "GET", "/v1/jobs", True),
            ("read", "POST", "/v1/vector_stores/none/search", True),
            ("read", "POST", "/v1/jobs", False),
            ("read", "DELETE", "/v1/files/none", False),
            ("read", "POST", "/v1/chat/completions", False),
            ("read", "GET", "/v1/keys", False),
            ("write", "POST", "/v1/jobs", True),
            ("write", "GET", "/v1/jobs", False),
            ("write", "POST", "/v1/keys", False),
            ("inference", "POST", "/v1/chat/completions", True),
            ("inference", "POST", "/generate", True),
            ("inference", "POST", "/agenerate", True),
            ("inference", "POST", "/embeddings", True),
            ("read", "POST", "/agenerate", False),
            ("read", "POST", "/embeddings", False),
            ("inference", "GET", "/v1/models", True),
            ("inference", "GET", "/v1/models/org/none", True),
            ("inference", "GET", "/v1/models/org/none/documents", False),
            ("inference", "GET", "/v1/files", False),
            ("inference", "DELETE", "/v1/models/none", False),
            ("admin", "GET", "/v1/keys", True),
            ("admin", "POST", "/v1/jobs", True),
        ],
    )
    def test_each_lets_do_its_own(
        self, keyed: Keyed, scope: str, method: str, path: str, allowed: bool
    ) -> None:
        client = keyed.client("default", scope)
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code != 403) == allowed, answer.text
        if not allowed:
            error = error_of(answer)
            assert error["code"] == "scope_missing"
            assert error["type"] == "permission_error"
            assert f"this one has: {scope}" in error["message"]

    def test_stand_with_each_operation(self, keyed: Keyed) -> None:
        paths = keyed.operator.get("/openapi.json").json()["paths"]
        assert paths["/v1/jobs"]["get"]["security"] == [{"key": ["read"]}, {}]
        assert paths["/v1/jobs"]["post"]["security"] == [{"key": ["write"]}, {}]
        assert paths["/v1/keys"]["get"]["security"] == [{"key": ["admin"]}, {}]
        assert paths["/healthz"]["get"]["security"] == [{}]

    def test_an_admin_of_another_project_administers_that_alone(self, keyed: Keyed) -> None:
        keyed.project("lab", max_jobs=1)
        foreign = keyed.key()
        admin = keyed.client("lab", "admin")
        assert {row["project"] for row in admin.get("/v1/keys").json()["data"]} == {"lab"}
        assert admin.post("/v1/keys", json={"name": "own"}).json()["project"] == "lab"
        assert admin.get("/v1/keys", params={"project": "default"}).status_code == 404
        assert admin.post("/v1/keys", json={"name": "a", "project": "default"}).status_code == 404
        assert admin.post(f"/v1/keys/{foreign['id']}/revoke").status_code == 404
        assert [row["id"] for row in admin.get("/v1/projects").json()["data"]] == ["lab"]
        assert admin.post("/v1/projects", json={"id": "more"}).status_code == 403
        assert admin.post("/v1/projects/lab", json={"max_jobs": 100}).status_code == 403
        assert admin.post("/v1/projects/default", json={"max_jobs": 0}).status_code == 404


class TestProjects:
    def test_are_made_changed_archived_and_restored(self, keyed: Keyed) -> None:
        made = keyed.operator.post("/v1/projects", json={"id": "team", "max_bytes": 10}).json()
        assert (made["status"], made["max_bytes"], made["max_jobs"]) == ("active", 10, None)
        again = keyed.operator.post("/v1/projects", json={"id": "team"})
        assert again.status_code == 409
        changed = keyed.operator.post("/v1/projects/team", json={"max_bytes": None, "name": "The team"})
        assert (changed.json()["max_bytes"], changed.json()["name"]) == (None, "The team")
        client = keyed.client("team")
        assert client.get("/v1/models").status_code == 200
        assert keyed.operator.post("/v1/projects/team/archive").json()["status"] == "archived"
        answer = client.get("/v1/models")
        assert (answer.status_code, error_of(answer)["code"]) == (403, "project_archived")
        assert keyed.operator.post("/v1/keys", json={"name": "a", "project": "team"}).status_code == 409
        assert keyed.operator.post("/v1/projects/team/restore").json()["status"] == "active"
        assert client.get("/v1/models").status_code == 200

    def test_the_operators_own_stays(self, keyed: Keyed) -> None:
        assert keyed.operator.post("/v1/projects/default/archive").status_code == 409

    @pytest.mark.parametrize("name", ["", "Lab", "a b", "-a", "a-", "a/b", "x" * 64])
    def test_names_are_plain(self, keyed: Keyed, name: str) -> None:
        answer = keyed.operator.post("/v1/projects", json={"id": name})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "id")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Process:
    """What one process of the API knows of the keys in a database of the test's own."""

    sessions: SessionFactory
    clock: Clock
    keyring: Keyring

    def make(self, expires_at: datetime | None = None) -> tuple[str, str]:
        with transaction(self.sessions) as session:
            fields = {"project_id": "default", "name": "k", "scopes": EVERY_SCOPE}
            key, secret = create_key(session, **fields, expires_at=expires_at)
        return key.id, f"Bearer {secret}"

    def change(self, key_id: str, **columns: object) -> None:
        with transaction(self.sessions) as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**columns))

    def ask(self, header: str) -> Caller:
        return asyncio.run(self.keyring.caller(header))


@pytest.fixture
def process(database_url: str, engine: Engine) -> Process:
    return _process(engine, Settings(database_url=database_url, api_key="o"))


def _process(engine: Engine, settings: Settings) -> Process:
    sessions, clock = make_session_factory(engine), Clock()
    return Process(sessions, clock, Keyring(settings, sessions, clock))


class TestKeyring:
    def test_what_is_revoked_elsewhere_holds_within_the_seconds_it_says(self, process: Process) -> None:
        key_id, header = process.make()
        assert process.ask(header).key_id == key_id
        process.change(key_id, revoked_at=datetime.now(UTC))
        assert process.ask(header).key_id == key_id
        process.clock.now += KEPT_SECONDS
        with pytest.raises(Unauthenticated, match="was revoked at"):
            process.ask(header)

    def test_one_that_expires_while_it_is_remembered_is_refused_then(self, process: Process) -> None:
        key_id, header = process.make(datetime.now(UTC) + timedelta(seconds=KEPT_SECONDS / 2))
        assert process.ask(header).key_id == key_id
        process.change(key_id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
        process.clock.now += KEPT_SECONDS / 2
        with pytest.raises(Unauthenticated, match="expired at"):
            process.ask(header)

    def test_nobody_needs_a_key_before_the_first_and_everybody_ever_after(
        self, database_url: str, engine: Engine
    ) -> None:
        process = _process(engine, Settings(database_url=database_url))
        assert process.ask("") == process.ask("Bearer what-a-client-had-to-be-given") == Caller()
        key_id, _ = process.make()
        process.change(key_id, revoked_at=datetime.now(UTC))
        process.clock.now += KEPT_SECONDS
        with pytest.raises(Unauthenticated, match="needs an API key"):
            process.ask("")

    def test_the_operators_key_is_the_admin_of_default(self, process: Process) -> None:
        caller = process.ask("bearer  o ")
        assert (caller.key_id, caller.is_operator) == (OPERATORS_KEY, True)
