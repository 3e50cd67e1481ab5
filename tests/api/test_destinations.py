"""Who answers for a model, remembered by a process of the API: forgotten whenever it may be another."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import event, text, update

from api import destinations, keyring
from api.destinations import Destinations
from db.ids import new_id
from db.models import ApiKey, Device, Model, ModelAlias
from db.queries.devices import register_device
from db.queries.jobs import create_job
from db.session import transaction
from db.states import JobKind
from serving.backends.target import Target
from tests.api.conftest import error_of
from tests.api.keyed import Keyed
from tests.api.model_server import ModelServer
from tests.rows import add_version
from tests.waiting import wait_until
from worker.claim import claim_step

HOUR = 3600.0
END_ATTEMPTS = """
    UPDATE attempts SET ended_at = now() FROM steps WHERE steps.id = attempts.step_id AND steps.job_id = :id
"""
DEVICE = "GPU-remembered"


@dataclass
class Asked:
    """A project of the installation, and its models, of which what is served is called as it is told."""

    keyed: Keyed
    server: ModelServer
    project: str
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.keyed.project(self.project)
        self.client = self.keyed.client(self.project)

    def publish(self, name: str, served: str, *, alias: str | None = None) -> None:
        """As a worker does at the end of a job."""
        self.server.models.add(served)
        with transaction(self.keyed.sessions) as session:
            version = add_version(session, name, {"backend_name": served}, project=self.project)
            if alias is not None:
                session.merge(ModelAlias(project_id=self.project, name=alias, version_id=version.id))

    def ask(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        return self.client.post("/v1/chat/completions", json=body)

    def answers_with(self, model: str, served: str) -> bool:
        return self.ask(model).status_code == 200 and f'"{served}"'.encode() in self.server.bodies[-1]


@pytest.fixture
def asked(keyed: Keyed, backend: tuple[ModelServer, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """What is remembered is so for an hour, unless it is forgotten."""
    monkeypatch.setattr(destinations, "KEPT_SECONDS", HOUR)
    remembered = keyed.app.state.services.destinations
    wait_until(remembered._is_told)
    yield Asked(keyed, backend[0], f"p-{new_id('t')[-20:]}")
    remembered.forget()


class TestRemembered:
    def test_one_that_was_asked_costs_no_query(self, asked: Asked) -> None:
        asked.publish("known", "known-v1")
        statements: list[str] = []
        engine = asked.keyed.app.state.services.engine
        assert asked.ask("known").status_code == 200  # the key is looked up, too

        def note(*given: object) -> None:
            statements.append(str(given[2]))

        event.listen(engine, "before_cursor_execute", note)
        try:
            assert asked.answers_with("known", "known-v1")
        finally:
            event.remove(engine, "before_cursor_execute", note)
        assert not [said for said in statements if "model" in said]

    def test_another_project_sees_nothing_of_it(self, asked: Asked) -> None:
        asked.publish("ours", "ours-v1")
        assert asked.ask("ours").status_code == 200
        other = Asked(asked.keyed, asked.server, f"{asked.project}-b")
        assert other.ask("ours").status_code == 404
        other.publish("ours", "theirs-v1")
        assert other.answers_with("ours", "theirs-v1")
        assert asked.answers_with("ours", "ours-v1")


class TestForgotten:
    def test_when_a_version_is_published_and_an_alias_moves(self, asked: Asked) -> None:
        asked.publish("faq", "faq-v1", alias="ft:faq")
        assert asked.answers_with("faq", "faq-v1")
        assert asked.answers_with("ft:faq", "faq-v1")
        asked.publish("faq", "faq-v2", alias="ft:faq")
        wait_until(lambda: asked.answers_with("faq", "faq-v2"))
        wait_until(lambda: asked.answers_with("ft:faq", "faq-v2"))

    def test_when_it_is_deleted_here(self, asked: Asked) -> None:
        asked.publish("gone", "gone-v1")
        assert asked.ask("gone").status_code == 200
        assert asked.client.delete("/v1/models/gone").status_code == 200
        assert asked.ask("gone").status_code == 404

    def test_when_it_is_deleted_elsewhere(self, asked: Asked) -> None:
        asked.publish("lost", "lost-v1")
        assert asked.ask("lost").status_code == 200
        with transaction(asked.keyed.sessions) as session:
            model = session.query(Model).filter_by(project_id=asked.project, name="lost").one()
            session.execute(update(Model).where(Model.id == model.id).values(current_version_id=None))
            session.execute(text("DELETE FROM models WHERE id = :id"), {"id": model.id})
        wait_until(lambda: asked.ask("lost").status_code == 404)

    def test_while_a_step_holds_the_device_that_it_is_served_from(self, asked: Asked) -> None:
        asked.publish("held", "held-v1")
        device = Device(
            id=DEVICE, host="h", index=0, name="RTX", memory_bytes=None, serves="llama_server", shares=False
        )
        with transaction(asked.keyed.sessions) as session:
            register_device(session, device)
        assert asked.ask("held").status_code == 200
        with transaction(asked.keyed.sessions) as session:
            job = create_job(
                session, project_id=asked.project, kind=JobKind.PRETRAIN, params={"name": "m"}, priority=9
            )
        try:
            with transaction(asked.keyed.sessions) as session:
                claim = claim_step(
                    session, "train", worker="w", host="h", lease_seconds=600, device_ids=[DEVICE]
                )
            assert claim is not None
            assert claim.job_id == job.id
            wait_until(lambda: asked.ask("held").status_code == 503)
            assert error_of(asked.ask("held"))["code"] == "model_unloaded"
        finally:
            with transaction(asked.keyed.sessions) as session:
                session.execute(text(END_ATTEMPTS), {"id": job.id})
                session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job.id})
                session.execute(text("DELETE FROM devices WHERE id = :id"), {"id": DEVICE})
        assert asked.ask("held").status_code == 200

    def test_so_is_a_key_that_is_revoked_elsewhere(
        self, asked: Asked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyring, "KEPT_SECONDS", HOUR)
        asked.publish("for-keys", "for-keys-v1")
        assert asked.ask("for-keys").status_code == 200
        with transaction(asked.keyed.sessions) as session:
            own = update(ApiKey).where(ApiKey.project_id == asked.project)
            session.execute(own.values(revoked_at=datetime.now(UTC)))
        wait_until(lambda: asked.ask("for-keys").status_code == 401)


class TestDestinations:
    def test_for_some_seconds_and_only_by_who_is_told_of_changes(self) -> None:
        now, told, looked = 0.0, True, 0

        async def look() -> Target:
            nonlocal looked
            looked += 1
            return Target([])

        async def live() -> list[int]:
            nonlocal now, told
            remembered = Destinations(lambda: told, lambda: now)
            seen = []
            for now, told in ((0, True), (4.9, True), (5.1, False), (5.2, True), (5.3, True)):  # noqa: B007
                await remembered.of("faq", look)
                seen.append(looked)
            return seen

        assert asyncio.run(live()) == [1, 1, 2, 3, 3]

    def test_what_was_looked_up_before_a_change_is_not_kept(self) -> None:
        remembered, targets = Destinations(lambda: True), [Target([]), Target([])]

        async def live() -> Target:
            async def look_as_it_changes() -> Target:
                remembered.forget()
                return targets[0]

            async def look() -> Target:
                return targets[1]

            await remembered.of("faq", look_as_it_changes)
            return await remembered.of("faq", look)

        assert asyncio.run(live()) is targets[1]

    def test_it_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(destinations, "MOST", 2)
        remembered, looked = Destinations(lambda: True), []

        async def live() -> None:
            for name in ("a", "b", "c", "c", "b", "a"):

                async def look(name: str = name) -> Target:
                    looked.append(name)
                    return Target([])

                await remembered.of(name, look)

        asyncio.run(live())
        assert looked == ["a", "b", "c", "a"]
