"""From what a response is asked for to a request of the chat route."""

from collections.abc import Sequence
from typing import Any

from serving.responses.items import messages_of
from serving.responses.request import AllowedTools, JsonSchema, NamedFunction, PlainText, ResponseAsked

JSON = dict[str, Any]


def chat_body(asked: ResponseAsked, items: Sequence[JSON]) -> JSON:
    """The request to the chat route, by the name that the caller has for the model."""
    body: JSON = {
        "model": asked.model,
        "messages": messages_of(items, asked.instructions),
        "stream": bool(asked.stream),
        "stream_options": {"include_usage": True} if asked.stream else None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_output_tokens,
        "response_format": _response_format(asked),
        "logprobs": True if asked.wants_logprobs else None,
        "top_logprobs": asked.top_logprobs or None,
        **_tools(asked),
    }
    if asked.reasoning is not None and asked.reasoning.effort == "none":
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return {name: value for name, value in body.items() if value is not None}


def _tools(asked: ResponseAsked) -> JSON:
    """What of the tools is the model's: functions. A search is done before it is asked."""
    choice, functions = asked.tool_choice, asked.functions
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools if isinstance(tool, NamedFunction)}
        functions = [tool for tool in functions if tool.name in allowed]
    if not functions or choice == "none":
        return {}
    tools = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in functions
    ]
    return {"tools": tools, "tool_choice": _choice(asked), "parallel_tool_calls": asked.parallel_tool_calls}


def _choice(asked: ResponseAsked) -> Any:
    choice = asked.tool_choice
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, AllowedTools):
        return choice.mode
    # A search that is demanded is done; what else the model does is its own choice.
    return choice if choice == "required" and not asked.names_search else None


def _response_format(asked: ResponseAsked) -> JSON | None:
    wanted = asked.text.format if asked.text is not None else PlainText()
    if isinstance(wanted, PlainText):
        return None
    if isinstance(wanted, JsonSchema):
        named = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": wanted.type, "json_schema": named}
    return {"type": wanted.type}
