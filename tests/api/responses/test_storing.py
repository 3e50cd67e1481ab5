"""Stored responses: conversations that are gone on with, looked at, and removed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy import text

from db.models import StoredResponse
from db.session import SessionFactory, transaction
from db.settings import Settings
from retention import House
from retention.records import RECORDS
from tests.api.answers.answering_server import AnsweringServer
from tests.api.answers.conftest import Desk
from tests.api.keyed import Keyed


@pytest.fixture
def talk(client: OpenAI, desk: Desk, server: AnsweringServer) -> list[str]:
    """Three turns, each on the one before; their ids."""
    desk.ready("talk")
    ids: list[str] = []
    for number in range(3):
        server.says = f"Answer {number}."
        asked: Any = {"previous_response_id": ids[-1]} if ids else {}
        ids.append(client.responses.create(model="talk", input=f"Question {number}?", **asked).id)
    return ids


class TestConversation:
    def test_the_model_sees_all_turns(self, talk: list[str], server: AnsweringServer) -> None:
        said = [message["content"] for message in server.asked[-1]["messages"]]
        assert said == ["Question 0?", "Answer 0.", "Question 1?", "Answer 1.", "Question 2?"]

    def test_instructions_are_for_one_turn(
        self, client: OpenAI, talk: list[str], server: AnsweringServer
    ) -> None:
        first = client.responses.create(
            model="talk", input="?", instructions="Old.", previous_response_id=talk[0]
        )
        client.responses.create(model="talk", input="?", instructions="New.", previous_response_id=first.id)
        system = [row["content"] for row in server.asked[-1]["messages"] if row["role"] == "system"]
        assert system == ["New."]

    def test_it_branches(self, client: OpenAI, talk: list[str], server: AnsweringServer) -> None:
        client.responses.create(model="talk", input="Other?", previous_response_id=talk[0])
        assert [row["content"] for row in server.asked[-1]["messages"]] == [
            "Question 0?",
            "Answer 0.",
            "Other?",
        ]

    def test_a_turn_that_was_deleted_breaks_it_and_says_so(self, client: OpenAI, talk: list[str]) -> None:
        client.responses.delete(talk[0])
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="talk", input="?", previous_response_id=talk[2])
        assert (caught.value.code, caught.value.param) == (
            "previous_response_not_found", "previous_response_id",
        )  # fmt: skip
        assert talk[0] in caught.value.message

    def test_what_is_not_stored_cannot_be_gone_on_with(
        self, client: OpenAI, talk: list[str], session_factory: SessionFactory
    ) -> None:
        unkept = client.responses.create(model="talk", input="?", store=False, previous_response_id=talk[1])
        with transaction(session_factory) as session:
            assert session.get(StoredResponse, unkept.id) is None
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(unkept.id)
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="talk", input="?", previous_response_id=unkept.id)

    def test_characters_that_the_database_takes_not(
        self, client: OpenAI, talk: list[str], server: AnsweringServer
    ) -> None:
        server.says = "a\0b\ud800"
        answer = client.responses.create(model="talk", input="?")
        assert client.responses.retrieve(answer.id).output_text == "a�b?"

    def test_a_stream_that_cannot_be_kept_says_so(
        self, client: OpenAI, talk: list[str], session_factory: SessionFactory
    ) -> None:
        with transaction(session_factory) as session:
            session.execute(text("ALTER TABLE responses ADD CONSTRAINT full_up CHECK (false) NOT VALID"))
        try:
            events = list(client.responses.create(model="talk", input="?", stream=True))
        finally:
            with transaction(session_factory) as session:
                session.execute(text("ALTER TABLE responses DROP CONSTRAINT full_up"))
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "could not keep" in last.response.error.message


class TestReading:
    def test_as_it_was_answered(self, client: OpenAI, talk: list[str]) -> None:
        found = client.responses.retrieve(talk[1])
        assert (found.output_text, found.previous_response_id) == ("Answer 1.", talk[0])

    def test_items_that_it_was_asked_with(self, client: OpenAI, talk: list[str]) -> None:
        newest = client.responses.input_items.list(talk[2], limit=2)
        assert (newest.has_more, len(newest.data)) == (True, 2)
        said: list[str] = [row.content[0].text for row in newest]  # type: ignore[union-attr]
        assert said == ["Question 2?", "Answer 1.", "Question 1?", "Answer 0.", "Question 0?"]
        oldest = client.responses.input_items.list(talk[2], order="asc").data
        assert oldest[0].content[0].text == "Question 0?"  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.input_items.list(talk[2], after="msg-none")
        assert caught.value.param == "after"

    def test_each_item_has_an_id_of_its_own_whatever_ids_were_sent(self, client: OpenAI) -> None:
        said: Any = [
            {"id": each, "type": "message", "role": "user", "content": text}
            for each, text in (("msg_1", "a"), ("msg_1-2", "b"), ("msg_1", "c"), ("msg_1", "d"))
        ]
        made = client.responses.create(model="talk", input=said)
        pages = client.responses.input_items.list(made.id, limit=1, order="asc")
        assert [row.id for row in pages] == ["msg_1", "msg_1-2", "msg_1-3", "msg_1-4"]

    def test_none_can_be_cancelled(self, client: OpenAI, talk: list[str]) -> None:
        with pytest.raises(openai.BadRequestError, match="background") as caught:
            client.responses.cancel(talk[0])
        assert caught.value.code == "not_cancellable"

    def test_deleted_is_gone(self, client: OpenAI, talk: list[str]) -> None:
        client.responses.delete(talk[2])
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(talk[2])
            assert caught.value.code == "response_not_found"


class TestKeeping:
    def test_retention_takes_what_was_not_used(
        self, client: OpenAI, talk: list[str], session_factory: SessionFactory, settings: Settings
    ) -> None:
        lone = client.responses.create(model="talk", input="?").id
        with transaction(session_factory) as session:
            for one in (lone, *talk):
                session.get_one(StoredResponse, one).last_used_at = datetime.now(UTC) - timedelta(days=31)
        client.responses.create(model="talk", input="?", previous_response_id=talk[2])
        [rule] = [rule for rule in RECORDS if rule.kind == "stored responses"]
        house = House(settings)
        with transaction(session_factory) as session:
            for item in rule.find(session, house, None, 10).items:
                rule.remove(session, house, item)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(lone)
        assert client.responses.retrieve(talk[0]).id == talk[0]

    def test_a_project_that_stores_too_much_may_still_ask(self, keyed: Keyed) -> None:
        keyed.project("hoarder", max_bytes=10)
        asked = {"model": "nobody", "input": "Hello there"}
        caller = keyed.client("hoarder")
        refused = caller.post("/v1/responses", json=asked)
        allowed = caller.post("/v1/responses", json={**asked, "store": False})
        assert refused.json()["error"]["code"] == "bytes_quota_exceeded"
        assert allowed.status_code == 404


def test_scopes(keyed: Keyed) -> None:
    keyed.project("scoped")

    def with_scope(*scopes: str) -> httpx.Client:
        return keyed.with_key(keyed.key("scoped", scopes=list(scopes))["key"])

    body = {"model": "nobody", "input": "?"}
    for scopes, post, get, delete in (
        (("read",), 403, 404, 403), (("inference",), 404, 404, 404), (("write",), 403, 403, 404),
    ):  # fmt: skip
        caller = with_scope(*scopes)
        found = (
            caller.post("/v1/responses", json=body).status_code,
            caller.get("/v1/responses/resp-1").status_code,
            caller.delete("/v1/responses/resp-1").status_code,
        )
        assert found == (post, get, delete), scopes
