"""What responses do not take: each is named, with what to do instead, and nothing is asked or stored."""

from typing import Any

import httpx
import pytest

from tests.api.answers.answering_server import AnsweringServer
from tests.api.answers.conftest import Desk
from tests.api.conftest import error_of

TOOL: Any = {"type": "function", "name": "f"}
USER: Any = {"role": "user", "content": "?"}
DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"background": True}, "background", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "instructions"),
        ({"moderation": {"model": "m"}}, "moderation", "leave it out"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "truncation"),
        ({"service_tier": "flex"}, "service_tier", "must be"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "must be"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "must be"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "must be"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]", "file_search_call.results"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "file_search"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].vector_store_ids", "least"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "not among"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"temperature": 3}, "temperature", "at most 2"),
        ({"top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "at most 16"),
        ({"seed": 1}, "seed", "There is no field"),
        ({"input": []}, "input", "is empty"),
        ({"input": ""}, "input", "is empty"),
        ({"input": 3}, "input", "must be"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "not supported"),
        ({"input": [USER, {"role": "tool", "content": "?"}]}, "input[1]", "role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
         "input[0].content", "file_search"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
         "input[0]", "image_url"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "input",
         "no function_call"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "missing"),
        ({"previous_response_id": "resp-none"}, "previous_response_id", "no stored response"),
        ({"model": ""}, "model", "at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_by_name(desk: Desk, server: AnsweringServer, given: Any, param: str, says: str) -> None:
    desk.ready("strict")
    answer = desk.api.post("/v1/responses", json={"model": "strict", "input": "?", **given})
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param, error
    assert says in error["message"]
    assert server.asked == []


def test_what_asks_for_nothing_is_taken(desk: Desk, server: AnsweringServer) -> None:
    desk.ready("lenient")
    idle = {
        "background": False, "conversation": None, "tools": [], "include": [], "service_tier": "auto",
        "reasoning": {}, "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "parallel_tool_calls": True, "store": None, "stream": None, "prompt_cache_key": "k",
    }  # fmt: skip
    answer = desk.api.post("/v1/responses", json={"model": "lenient", "input": "?", **idle})
    assert answer.status_code == 200, answer.text
    assert set(server.asked[-1]) == {"model", "messages", "stream"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ('"input": [{"role": "user", "content": "a\\ud800"}]', "input"),
        (f'"input": "x", "tools": [{{"type": "function", "name": "f", "parameters": {DEEP}}}]', "tools"),
        (f'"input": [{{"type": "reasoning", "content": {DEEP}}}]', "input"),
    ],
    ids=["no text", "deep tools", "deep items"],
)  # fmt: skip
def test_what_could_not_be_kept(desk: Desk, server: AnsweringServer, given: str, param: str) -> None:
    desk.ready("strict")
    headers = {"content-type": "application/json"}
    answer = desk.api.post("/v1/responses", content=f'{{"model": "strict", {given}}}', headers=headers)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param), answer.text
    assert server.asked == []


def test_a_retrieved_one_does_not_stream(api: httpx.Client) -> None:
    answer = api.get("/v1/responses/resp-1", params={"stream": "true"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "stream")
