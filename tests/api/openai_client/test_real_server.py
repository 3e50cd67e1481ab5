"""OpenAI's own client, unmodified, before a real llama-server: the fields of chat, completions and
responses, and what this server would pass over.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from api.app import create_app
from db.settings import Settings
from tests.api.conftest import Publish, serving
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import TEMPLATE, write_random_gguf

HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "decide", "description": "Decides.", "parameters": SCHEMA, "strict": True}
TOOL: Any = {"type": "function", "function": FUNCTION}
# As Qwen's, in little.
WITH_TOOLS = """{% if tools %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}For each call give <tool_call>{"name": …, "arguments": …}</tool_call>
{% endif %}{% for message in messages %}{{ message.role }}:
{% if message.content %}{{ message.content }}{% endif %}
{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}
{% endfor %}"""


@pytest.fixture(scope="module")
def url(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("router")
    told = settings.model_copy(update={"data_dir": folder})
    told.served_models_dir.mkdir(parents=True)
    write_random_gguf(told.served_models_dir / "plain.gguf", template=TEMPLATE)
    write_random_gguf(told.served_models_dir / "tooled.gguf", template=WITH_TOOLS)
    process = LlamaProcess(folder)
    with serving(create_app(told.model_copy(update={"chat_server_url": process.url}))) as address:
        yield address
    process.stop()


@pytest.fixture
def client(url: str, publish: Publish) -> Iterator[OpenAI]:
    for name in ("plain", "tooled"):
        publish(f"real-{name}", backend_name=name)
    with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def chat(client: OpenAI, *, model: str = "real-plain", **asked: Any) -> ChatCompletion:
    given: Any = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "model": model, **asked}
    answer: ChatCompletion = client.chat.completions.create(**given)
    return answer


class TestChat:
    def test_several_answers_are_counted_whole(self, client: OpenAI) -> None:
        one = chat(client, seed=1)
        answer = chat(client, n=6, seed=1, temperature=1)  # more than the server has slots
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert len({choice.message.content for choice in answer.choices}) > 1
        assert one.usage is not None
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == one.usage.prompt_tokens
        assert answer.usage.completion_tokens == 6 * 8
        assert answer.model_dump()["object"] == "chat.completion"

    def test_several_answers_as_one_stream(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(
            model="real-plain", messages=HELLO, max_tokens=8, n=3, seed=1, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2}
        ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert ends == ["length"] * 3
        assert len({chunk.id for chunk in chunks}) == 1
        usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert [usage.completion_tokens for usage in usages] == [24]
        assert chunks[-1].choices == []

    def test_a_stream_tells_usage_when_it_is_asked_to(self, client: OpenAI) -> None:
        asked: Any = {"model": "real-plain", "messages": HELLO, "max_tokens": 4, "stream": True}
        told = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
        assert (told[-1].choices, told[-1].usage.completion_tokens) == ([], 4)  # type: ignore[union-attr]
        assert all(chunk.usage is None for chunk in client.chat.completions.create(**asked))

    def test_the_same_seed_says_the_same(self, client: OpenAI) -> None:
        said = [
            chat(client, temperature=1, seed=seed, max_tokens=24).choices[0].message.content
            for seed in (7, 7, 8)
        ]
        assert said[0] == said[1] != said[2]

    def test_lengths_by_both_names(self, client: OpenAI) -> None:
        for asked in ({"max_tokens": 3}, {"max_tokens": None, "max_completion_tokens": 3}):
            answer = chat(client, **asked)
            assert answer.usage is not None
            assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")

    def test_stops(self, client: OpenAI) -> None:
        whole = chat(client, max_tokens=24).choices[0].message.content or ""
        for stop in (whole[6], [whole[6]]):
            choice = chat(client, max_tokens=24, stop=stop).choices[0]
            assert choice.finish_reason == "stop"
            assert whole.startswith(choice.message.content or "")
            assert whole[6] not in (choice.message.content or "")

    def test_log_probabilities(self, client: OpenAI) -> None:
        logprobs = chat(client, logprobs=True, top_logprobs=3, max_tokens=2).choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [len(row.top_logprobs) for row in logprobs.content] == [3, 3]
        assert logprobs.content[0].logprob <= 0

    def test_formats(self, client: OpenAI) -> None:
        by_schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        answer = chat(client, response_format=by_schema, max_tokens=64).choices[0].message.content
        assert json.loads(answer or "")["answer"] in ("yes", "no")
        opened = chat(client, response_format={"type": "json_object"}, max_tokens=2).choices[0].message
        assert (opened.content or "").lstrip().startswith("{")

    def test_a_developer_is_heard_as_the_system_is(self, client: OpenAI) -> None:
        counts = []
        for role in ("system", "developer"):
            answer = chat(client, messages=[{"role": role, "content": "Be good."}, *HELLO])
            assert answer.usage is not None
            counts.append(answer.usage.prompt_tokens)
        assert counts[0] == counts[1]


class TestTools:
    def test_they_reach_the_model_with_what_came_of_them(self, client: OpenAI) -> None:
        call = {"id": "call-1", "type": "function", "function": {"name": "decide", "arguments": "{}"}}
        called: Any = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-1", "content": "It is yes."},
        ]
        counts = [
            chat(client, model="real-tooled", **asked).usage.prompt_tokens  # type: ignore[union-attr]
            for asked in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "messages": called})
        ]
        assert counts[0] < counts[1] < counts[2]

    def test_a_model_whose_template_has_no_place_for_them(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="no place for tools") as caught:
            chat(client, tools=[TOOL])
        assert (caught.value.param, caught.value.code) == ("tools", "not_supported")
        assert chat(client, tools=[TOOL], tool_choice="none").choices[0].message.role == "assistant"
        with pytest.raises(openai.BadRequestError) as effort:
            chat(client, reasoning_effort="low")
        assert effort.value.param == "reasoning_effort"

    def test_responses_have_them_too(self, client: OpenAI) -> None:
        asked: Any = {"model": "real-tooled", "input": "Yes or no?", "max_output_tokens": 8}
        bare = client.responses.create(**asked)
        given = client.responses.create(**asked, tools=[{"type": "function", **FUNCTION}])
        assert bare.usage.input_tokens < given.usage.input_tokens  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(
                **{**asked, "model": "real-plain"}, tools=[{"type": "function", **FUNCTION}]
            )
        assert caught.value.param == "tools"


class TestResponses:
    def test_a_conversation(self, client: OpenAI) -> None:
        asked: Any = {"model": "real-plain", "max_output_tokens": 8, "temperature": 0}
        first = client.responses.create(**asked, input="Hello")
        events = list(
            client.responses.create(**asked, input="Go on", previous_response_id=first.id, stream=True)
        )
        last = events[-1]
        assert last.type == "response.incomplete"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert last.response.output_text == text
        assert (first.usage.output_tokens, last.response.usage.output_tokens) == (8, 8)  # type: ignore[union-attr]
        assert last.response.usage.input_tokens > first.usage.input_tokens  # type: ignore[union-attr]

    def test_json_and_log_probabilities(self, client: OpenAI) -> None:
        answer = client.responses.create(
            model="real-plain", input="Yes or no?", max_output_tokens=64, top_logprobs=2,
            include=["message.output_text.logprobs"],
            text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        )  # fmt: skip
        [part] = answer.output[0].content  # type: ignore[union-attr]
        assert json.loads(answer.output_text)["answer"] in ("yes", "no")
        assert part.logprobs
        assert len(part.logprobs[0].top_logprobs) == 2

    def test_too_long_an_input_is_cut_or_refused(self, client: OpenAI) -> None:
        turns: Any = [{"role": "user", "content": "word " * 100} for _ in range(9)]
        asked: Any = {"model": "real-plain", "input": turns, "max_output_tokens": 8}
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**asked)
        assert caught.value.code == "exceed_context_size_error"
        answer = client.responses.create(**asked, truncation="auto")
        assert answer.usage.input_tokens <= 2048 - 8  # type: ignore[union-attr]
        assert "were left out" in answer.notices[0]  # type: ignore[attr-defined]


class TestRefused:
    @pytest.mark.parametrize(
        "given",
        [
            {"store": True}, {"service_tier": "flex"}, {"modalities": ["audio"]}, {"verbosity": "low"},
            {"functions": [FUNCTION]}, {"web_search_options": {}}, {"n": 0}, {"n": 129},
        ],
        ids=lambda given: next(iter(given)),
    )  # fmt: skip
    def test_what_would_be_passed_over(self, client: OpenAI, given: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, **given)
        assert caught.value.param == next(iter(given))

    def test_too_long_a_conversation(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, messages=[{"role": "user", "content": "word " * 2000}])
        assert caught.value.code == "exceed_context_size_error"


class TestCompletions:
    def test_several_prompts_and_answers(self, client: OpenAI) -> None:
        answer = client.completions.create(model="real-plain", prompt=["One", "Two"], n=2, max_tokens=4)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 16
        alone = [
            client.completions.create(model="real-plain", prompt=prompt, max_tokens=4).usage
            for prompt in ("One", "Two")
        ]
        assert answer.usage.prompt_tokens == sum(usage.prompt_tokens for usage in alone if usage)

    def test_log_probabilities_are_those_of_completions(self, client: OpenAI) -> None:
        asked: Any = {
            "model": "real-plain", "prompt": "One", "max_tokens": 3, "logprobs": 2, "temperature": 0,
        }  # fmt: skip
        choice = client.completions.create(**asked).choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert [len(top) for top in choice.logprobs.top_logprobs or []] == [2, 2, 2]
        assert (choice.logprobs.text_offset or [])[0] == 0
        streamed = [
            token
            for chunk in client.completions.create(**asked, stream=True)
            for token in (chunk.choices[0].logprobs.tokens or [] if chunk.choices[0].logprobs else [])
        ]
        assert streamed == choice.logprobs.tokens

    @pytest.mark.parametrize("given", [{"echo": True}, {"best_of": 3}, {"suffix": "."}], ids=str)
    def test_what_would_be_passed_over(self, client: OpenAI, given: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="real-plain", prompt="One", **given)
        assert caught.value.param == next(iter(given))
