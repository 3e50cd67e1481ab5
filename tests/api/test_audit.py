"""The audit log: who changed what, and who was refused."""

import asyncio
import threading
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select, text

from api.auditing import MOST_WAITING, Entry, Ledger
from db.models import ApiKey, AuditEntry
from db.session import make_session_factory
from tests.api.conftest import error_of, upload
from tests.api.keyed import Keyed
from tests.api.test_isolation import PUBLIC_ADDRESS
from tests.waiting import wait_until


def entries(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params={"limit": 100, **query})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


class TestChanges:
    def test_each_is_told_with_who_what_and_what_came_of_it(self, keyed: Keyed) -> None:
        keyed.project("audited")
        key = keyed.key("audited", scopes=["admin"])
        client = keyed.with_key(key["key"])
        file_id = upload(client)
        body = {"kind": "pretrain", "params": {"name": "a"}}
        submitted = client.post("/v1/jobs", json=body)
        job_id = submitted.json()["id"]
        client.post(f"/v1/jobs/{job_id}/cancel")
        client.delete(f"/v1/files/{file_id}")
        told = entries(client, key=key["id"])
        assert [(row["action"], row["target"], row["status"]) for row in reversed(told)] == [
            ("upload_file", file_id, 200),
            ("submit_job", job_id, 202),
            ("cancel_one_job", job_id, 200),
            ("delete_one_file", file_id, 200),
        ]
        submit = told[2]
        assert submit["project"] == "audited"
        assert submit["address"] == "127.0.0.1"
        assert submit["request_id"] == submitted.headers["x-request-id"]
        assert (submit["method"], submit["path"], submit["code"]) == ("POST", "/v1/jobs", None)
        assert [row["action"] for row in entries(client, target=job_id)] == ["cancel_one_job", "submit_job"]

    def test_each_of_a_group_is_told_for_who_asked(self, keyed: Keyed) -> None:
        clients = {}
        for project in ("grouped-a", "grouped-b"):
            keyed.project(project)
            clients[project] = keyed.client(project, "admin")

        def submit(client: httpx.Client, number: int) -> None:
            client.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": f"n{number}"}})

        threads = [
            threading.Thread(target=submit, args=(client, number))
            for number in range(10)
            for client in clients.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for project, client in clients.items():
            jobs = {row["id"] for row in client.get("/v1/jobs").json()["data"]}
            told = entries(client, action="submit_job")
            assert {row["target"] for row in told} == jobs
            assert {row["project"] for row in told} == {project}
            assert len(told) == 10

    def test_what_is_repeated_changes_nothing_and_is_told_once(self, keyed: Keyed) -> None:
        keyed.project("repeating")
        client = keyed.client("repeating", "admin")
        for _ in range(3):
            body = {"kind": "pretrain", "params": {"name": "a"}}
            client.post("/v1/jobs", json=body, headers={"idempotency-key": "k"})
        client.post("/v1/jobs", json={})
        wait_until(lambda: len(entries(client)) == 2)
        assert [row["status"] for row in entries(client)] == [400, 202]

    def test_reading_asking_and_searching_are_not_told(self, keyed: Keyed) -> None:
        keyed.project("reading")
        client = keyed.client("reading", "admin")
        store = client.post("/v1/vector_stores", json={"name": "s"}).json()["id"]
        client.get("/v1/jobs")
        client.get("/v1/jobs/none")
        client.post("/generate", json={"prompt": "?"})
        client.post(f"/v1/vector_stores/{store}/search", json={"query": "?"})
        endpoint = {"name": "e", "url": PUBLIC_ADDRESS, "event_types": ["job.failed"]}
        client.post("/v1/webhook_endpoints", json=endpoint)
        assert [row["action"] for row in entries(client)] == [
            "create_webhook_endpoint",
            "create_vector_store",
        ]

    def test_no_secret_stands_in_it(self, keyed: Keyed) -> None:
        made = keyed.key()
        keyed.operator.post("/v1/keys?key=sk-lathe-in-a-query", json={"name": "a"})
        answer = keyed.operator.get("/v1/audit", params={"limit": 100})
        assert made["key"] not in answer.text
        assert "sk-lathe-in-a-query" not in answer.text


class TestRefusals:
    def test_are_told_also_without_a_project(self, keyed: Keyed) -> None:
        keyed.project("refused")
        reader = keyed.key("refused", scopes=["read"])
        assert keyed.with_key(reader["key"]).post("/v1/jobs", json={}).status_code == 403
        assert keyed.with_key("sk-lathe-nonsense").get("/v1/jobs").status_code == 401
        assert keyed.operator.get("/v1/jobs", headers={"host": "evil.example"}).status_code == 403

        def told(code: str, project: str | None = None) -> list[dict[str, Any]]:
            rows = entries(keyed.operator, denied=True)
            return [row for row in rows if (row["code"], row["project"]) == (code, project)]

        wait_until(
            lambda: bool(
                told("scope_missing", "refused") and told("invalid_api_key") and told("foreign_host")
            )
        )
        [missing] = told("scope_missing", "refused")
        assert (missing["key"], missing["action"], missing["status"]) == (reader["id"], "submit_job", 403)
        assert told("invalid_api_key")[0]["key"] is None
        assert not entries(keyed.client("refused", "admin"), denied=True, action="")

    def test_another_project_sees_none_of_them(self, keyed: Keyed) -> None:
        keyed.project("blind")
        admin = keyed.client("blind", "admin")
        assert entries(admin) == []
        assert admin.get("/v1/audit", params={"project": "default"}).status_code == 404

    def test_pages(self, keyed: Keyed) -> None:
        first = keyed.operator.get("/v1/audit", params={"limit": 2}).json()
        second = keyed.operator.get("/v1/audit", params={"limit": 2, "after": first["last_id"]}).json()
        numbers = [int(row["id"].removeprefix("audit-")) for row in first["data"] + second["data"]]
        assert len(numbers) == 4
        assert numbers == sorted(numbers, reverse=True)
        answer = keyed.operator.get("/v1/audit", params={"after": "nonsense"})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "after")


def entry(**columns: Any) -> Entry:
    told = {"project_id": None, "key_id": None, "action": "a", "method": "GET", "path": "/", "target": None}
    told |= {"status": 401, "code": None, "address": "10.0.0.1", "request_id": "req-1"}
    return Entry(**{**told, **columns})


class TestLedger:
    def test_a_flood_of_one_kind_is_one_row_and_of_many_kinds_is_bounded(self, engine: Engine) -> None:
        sessions = make_session_factory(engine)

        async def flood() -> None:
            ledger = Ledger(sessions)
            for number in range(5000):
                ledger.tell(entry(path=f"/guess/{number}"))
            for number in range(3 * MOST_WAITING):
                ledger.tell(entry(address=f"10.1.0.{number}"))
            await ledger.close()

        asyncio.run(flood())
        with sessions() as session:
            rows = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert (rows[0].times, rows[0].path) == (5000, "/guess/0")
        assert len(rows) == MOST_WAITING

    def test_what_cannot_be_written_waits(self, engine: Engine) -> None:
        sessions = make_session_factory(engine)

        async def away_and_back() -> None:
            ledger = Ledger(sessions)
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE audit_entries RENAME TO hidden"))
            ledger.tell(entry())
            await ledger._write()
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE hidden RENAME TO audit_entries"))
            await ledger.close()

        asyncio.run(away_and_back())
        with sessions() as session:
            assert session.scalars(select(AuditEntry.times)).all() == [1]


class TestLastUse:
    def test_is_written_soon_after(self, keyed: Keyed) -> None:
        made = keyed.key()
        assert made["last_used_at"] is None
        keyed.with_key(made["key"]).get("/v1/models")

        def used() -> bool:
            with keyed.sessions() as session:
                return session.get_one(ApiKey, made["id"]).last_used_at is not None

        wait_until(used)

    def test_is_written_once_a_minute(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        ledger = Ledger(make_session_factory(engine))
        written: list[str] = []
        monkeypatch.setattr(ledger, "_write_soon", lambda: written.append("soon"))
        for _ in range(3):
            ledger.used("key-1")
        now += 61
        ledger.used("key-1")
        assert len(written) == 2
