"""Responses by OpenAI's own client, unmodified: whole, and by its accumulator of streams."""

from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.api.answers.answering_server import AnsweringServer
from tests.api.answers.conftest import Desk

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}


def create(client: OpenAI, streams: bool, **asked: Any) -> Response:
    """The response, by either way."""
    if not streams:
        return client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        numbers = [event.sequence_number for event in stream]
        assert numbers == list(range(len(numbers)))
        return stream.get_final_response()


class TestText:
    def test_a_text(self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool) -> None:
        desk.ready("plain")
        server.says = "It is a machine."
        answer = create(
            client, streams, model="plain", input="What is a lathe?", instructions="Be short.",
            temperature=0.5, top_p=0.9, max_output_tokens=32, metadata={"team": "search"}, user="somebody",
        )  # fmt: skip
        assert answer.output_text == "It is a machine."
        assert (answer.status, answer.model, answer.object) == ("completed", "plain", "response")
        assert (answer.instructions, answer.metadata, answer.user) == (
            "Be short.", {"team": "search"}, "somebody",
        )  # fmt: skip
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 2, 5)
        assert answer.completed_at
        said = server.asked[-1]
        assert said["messages"] == [
            {"role": "system", "content": "Be short."}, {"role": "user", "content": "What is a lathe?"},
        ]  # fmt: skip
        assert (said["temperature"], said["top_p"], said["max_tokens"]) == (0.5, 0.9, 32)

    def test_items_of_every_role(self, client: OpenAI, desk: Desk, server: AnsweringServer) -> None:
        desk.ready("roles")
        picture = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
        given: Any = [
            {"role": "system", "content": "One."},
            {"role": "developer", "content": [{"type": "input_text", "text": "Two."}]},
            {"role": "user", "content": "Hello"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "See"}, picture]},
        ]
        client.responses.create(model="roles", input=given, instructions="Zero.")
        assert server.asked[-1]["messages"] == [
            {"role": "system", "content": "Zero.\n\nOne.\n\nTwo."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
                    },
                ],
            },
        ]

    def test_json_by_a_schema(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool
    ) -> None:
        class Answer(BaseModel):
            days: int

        desk.ready("schema")
        server.says = '{"days": 30}'
        if streams:
            with client.responses.stream(model="schema", input="How many?", text_format=Answer) as stream:
                parsed = stream.get_final_response().output_parsed
        else:
            parsed = client.responses.parse(
                model="schema", input="How many?", text_format=Answer
            ).output_parsed
        assert parsed == Answer(days=30)
        wanted = server.asked[-1]["response_format"]
        assert (wanted["type"], wanted["json_schema"]["name"]) == ("json_schema", "Answer")
        assert wanted["json_schema"]["schema"]["required"] == ["days"]

    def test_thoughts_are_an_item_of_their_own(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool
    ) -> None:
        desk.ready("thinker")
        server.thinks, server.says = "Hm.", "Yes."
        answer = create(client, streams, model="thinker", input="Is it?")
        assert [item.type for item in answer.output] == ["reasoning", "message"]
        assert answer.output[0].content[0].text == "Hm."  # type: ignore[union-attr, index]
        client.responses.create(model="thinker", input="Is it?", reasoning={"effort": "none"})
        assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}

    def test_one_that_is_cut_is_incomplete(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool
    ) -> None:
        desk.ready("cut")
        server.says, server.finish = "It is", "length"
        if streams:
            last = list(client.responses.create(model="cut", input="What?", stream=True))[-1]
            assert last.type == "response.incomplete"
            answer = last.response
        else:
            answer = client.responses.create(model="cut", input="What?")
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]

    def test_the_events_of_a_stream(self, client: OpenAI, desk: Desk, server: AnsweringServer) -> None:
        desk.ready("events")
        server.says = "One two"
        kinds = [event.type for event in client.responses.create(model="events", input="?", stream=True)]
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]


class TestFunctions:
    def test_calls_and_their_outputs(
        self, client: OpenAI, desk: Desk, server: AnsweringServer, streams: bool
    ) -> None:
        desk.ready("calls")
        server.says, server.finish = "", "tool_calls"
        server.calls = [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')]
        first = create(
            client, streams, model="calls", input="Rome or Oslo?", tools=[WEATHER], tool_choice="required",
            parallel_tool_calls=True,
        )  # fmt: skip
        calls: Any = [item for item in first.output if item.type == "function_call"]
        assert len(first.output) == 2
        assert [(call.name, call.arguments, call.status) for call in calls] == [
            ("weather", '{"city": "Rome"}', "completed"), ("weather", '{"city": "Oslo"}', "completed"),
        ]  # fmt: skip
        asked = server.asked[-1]
        assert asked["tools"][0]["function"]["name"] == "weather"
        assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", True)
        server.says, server.calls, server.finish = "Rome.", [], "stop"
        outputs: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "20"} for call in calls
        ]
        second = create(
            client, streams, model="calls", input=outputs, previous_response_id=first.id, tools=[WEATHER]
        )
        assert second.output_text == "Rome."
        said = server.asked[-1]["messages"]
        assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool"]
        assert [call["id"] for call in said[1]["tool_calls"]] == [call.call_id for call in calls]

    def test_choices_of_tools(self, client: OpenAI, desk: Desk, server: AnsweringServer) -> None:
        desk.ready("chooses")
        other: Any = {**WEATHER, "name": "other"}
        allowed: Any = {
            "type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}],
        }  # fmt: skip
        named: Any = {"type": "function", "name": "weather"}
        client.responses.create(model="chooses", input="?", tools=[WEATHER, other], tool_choice=allowed)
        assert [tool["function"]["name"] for tool in server.asked[-1]["tools"]] == ["other"]
        client.responses.create(model="chooses", input="?", tools=[WEATHER, other], tool_choice=named)
        assert server.asked[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
        client.responses.create(model="chooses", input="?", tools=[WEATHER], tool_choice="none")
        assert "tools" not in server.asked[-1]


class TestTrouble:
    def test_a_server_that_dies_fails_the_response(
        self, client: OpenAI, desk: Desk, server: AnsweringServer
    ) -> None:
        desk.ready("dies")
        server.dies = True
        last = list(client.responses.create(model="dies", input="?", stream=True))[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "stopped in mid-answer" in last.response.error.message
        assert client.responses.retrieve(last.response.id).status == "failed"

    def test_what_the_server_refuses_has_its_status(self, client: OpenAI, desk: Desk) -> None:
        desk.publish("unserved")
        with pytest.raises(openai.BadRequestError, match="not found"):
            client.responses.create(model="unserved", input="?")
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="nobody", input="?")

    def test_half_a_stream_is_no_leftover(self, client: OpenAI, desk: Desk, server: AnsweringServer) -> None:
        desk.ready("left")
        with client.responses.create(model="left", input="?", stream=True) as stream:
            first = next(iter(stream))
        assert first.type == "response.created"


class TestTruncation:
    def test_the_oldest_turns_are_left_out_and_that_is_said(
        self, client: OpenAI, desk: Desk, server: AnsweringServer
    ) -> None:
        desk.ready("long")
        server.window = 200
        turns: Any = []
        for number in range(8):
            turns += [
                {"role": "user", "content": f"Question {number}: " + "word " * 20},
                {"role": "assistant", "content": f"Answer {number}."},
            ]
        asked: Any = {
            "model": "long", "instructions": "Be short.", "input": [*turns, {"role": "user", "content": "?"}],
        }  # fmt: skip
        answer = client.responses.create(**asked, truncation="auto", max_output_tokens=50)
        messages = server.asked[-1]["messages"]
        assert messages[0] == {"role": "system", "content": "Be short."}
        assert messages[1]["role"] == "user"
        assert messages[1]["content"] != turns[0]["content"]
        assert (messages[-1]["content"], len(messages) < 17) == ("?", True)
        [notice] = answer.notices  # type: ignore[attr-defined]
        assert f"The oldest {18 - len(messages)} of 17 messages were left out" in notice
        client.responses.create(**asked)
        assert len(server.asked[-1]["messages"]) == 18

    def test_one_turn_that_is_too_long_is_refused(
        self, client: OpenAI, desk: Desk, server: AnsweringServer
    ) -> None:
        desk.ready("longer")
        server.window = 200
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="longer", input="word " * 300, truncation="auto")
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
