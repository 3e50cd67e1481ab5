"""Responses that rest on collections, by OpenAI's own client."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from db.errors import InvalidInput
from tests.api.answers.answering_server import AnsweringServer
from tests.api.answers.conftest import QUESTION, Desk
from tests.api.responses.test_creating import WEATHER, create


@pytest.fixture
def tool(desk: Desk, handbook: bytes) -> Any:
    """The handbook to search in."""
    desk.ready("reader")
    collection, _ = desk.fill("shelf", {"handbook.pdf": handbook})
    return {"type": "file_search", "vector_store_ids": [collection]}


class TestSearch:
    def test_what_was_found_and_where_it_is_cited(
        self, client: OpenAI, server: AnsweringServer, tool: Any, streams: bool
    ) -> None:
        answer = create(
            client, streams, model="reader", input=QUESTION, tools=[tool],
            include=["file_search_call.results"],
        )  # fmt: skip
        search, message = answer.output
        assert search.type == "file_search_call"
        assert (search.status, search.queries) == ("completed", [QUESTION])
        assert search.results
        assert "thirty days" in (search.results[0].text or "")
        assert search.results[0].filename == "handbook.pdf"
        assert 0 < (search.results[0].score or 0) <= 1
        assert message.type == "message"
        [part] = message.content
        assert part.type == "output_text"
        [cited] = part.annotations
        assert cited.type == "file_citation"
        assert (cited.filename, cited.index) == ("handbook.pdf", part.text.index("[1]"))
        assert cited.file_id == search.results[0].file_id
        assert "quoted from documents" in str(server.asked[-1]["messages"])

    def test_results_are_shown_to_who_asks_for_them(
        self, client: OpenAI, server: AnsweringServer, tool: Any, streams: bool
    ) -> None:
        answer = create(client, streams, model="reader", input=QUESTION, tools=[tool])
        assert answer.output[0].results is None  # type: ignore[union-attr]
        found = client.responses.retrieve(answer.id, include=["file_search_call.results"])
        assert found.output[0].results  # type: ignore[union-attr]
        assert client.responses.retrieve(answer.id).output[0].results is None  # type: ignore[union-attr]

    def test_the_events_of_the_search(self, client: OpenAI, server: AnsweringServer, tool: Any) -> None:
        stream = client.responses.create(model="reader", input=QUESTION, tools=[tool], stream=True)
        kinds = [event.type for event in stream]
        assert kinds[2:7] == [
            "response.output_item.added",
            "response.file_search_call.in_progress",
            "response.file_search_call.searching",
            "response.file_search_call.completed",
            "response.output_item.done",
        ]
        assert "response.output_text.annotation.added" in kinds
        assert kinds[-1] == "response.completed"

    def test_how_it_is_searched(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, handbook: bytes
    ) -> None:
        desk.ready("narrow")
        texts: Any = {f"{n}.txt": f"In year {n} there were {n} days of holidays a year." for n in range(6)}
        collection, _ = desk.fill("years", texts)
        tool: Any = {
            "type": "file_search",
            "vector_store_ids": [collection],
            "max_num_results": 2,
            "ranking_options": {
                "ranker": "auto", "score_threshold": 0.1,
                "hybrid_search": {"embedding_weight": 1, "text_weight": 0},
            },
        }  # fmt: skip
        answer = client.responses.create(
            model="narrow", input=QUESTION, tools=[tool], include=["file_search_call.results"]
        )
        assert len(answer.output[0].results or []) == 2  # type: ignore[union-attr]
        tool["filters"] = {"type": "eq", "key": "year", "value": 1999}
        nothing = client.responses.create(model="narrow", input=QUESTION, tools=[tool])
        assert nothing.output_text.startswith("Nothing was found")

    def test_nothing_found_is_said_without_the_model(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool
    ) -> None:
        desk.ready("reader")
        collection, _ = desk.fill("empty", {})
        tool: Any = {"type": "file_search", "vector_store_ids": [collection]}
        answer = create(client, streams, model="reader", input=QUESTION, tools=[tool])
        assert answer.output_text.startswith("Nothing was found")
        assert server.asked == []
        create(client, streams, model="reader", input=QUESTION, tools=[tool, WEATHER])
        assert server.asked[-1]["tools"][0]["function"]["name"] == "weather"

    def test_another_choice_of_tools_searches_nothing(
        self, client: OpenAI, server: AnsweringServer, tool: Any
    ) -> None:
        answer = client.responses.create(model="reader", input=QUESTION, tools=[tool], tool_choice="none")
        assert [item.type for item in answer.output] == ["message"]
        demanded: Any = {"type": "file_search"}
        answer = client.responses.create(model="reader", input=QUESTION, tools=[tool], tool_choice=demanded)
        assert answer.output[0].type == "file_search_call"

    def test_a_conversation_goes_on(self, client: OpenAI, server: AnsweringServer, tool: Any) -> None:
        first = client.responses.create(model="reader", input=QUESTION, tools=[tool])
        client.responses.create(
            model="reader", input="And who is to be asked?", tools=[tool], previous_response_id=first.id
        )
        roles = [message["role"] for message in server.asked[-1]["messages"]]
        assert roles == ["system", "user", "assistant", "user"]

    def test_a_collection_that_there_is_not(self, client: OpenAI, desk: Desk) -> None:
        desk.ready("reader")
        tool: Any = {"type": "file_search", "vector_store_ids": ["vs-none"]}
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model="reader", input=QUESTION, tools=[tool])
        assert caught.value.param == "tools"


def test_a_question_has_to_be_text(client: OpenAI, server: AnsweringServer, tool: Any) -> None:
    picture: Any = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}
    ]
    with pytest.raises(openai.BadRequestError, match="must hold a question") as caught:
        client.responses.create(model="reader", input=picture, tools=[tool])
    assert caught.value.code == InvalidInput.code
