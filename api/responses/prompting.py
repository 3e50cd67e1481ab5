"""From a response's request to one of the chat route."""

from collections.abc import Sequence
from typing import Any

from api.answers.prompt import answer_tokens
from api.responses.items import messages_of
from api.responses.schemas import AllowedTools, JsonSchema, NamedFunction, PlainText, ResponseRequest
from db.errors import InvalidInput
from serving.context_window import Gauge

JSON = dict[str, Any]
# Of the window, for the passages of a search.
PASSAGES_SHARE = 0.25


def chat_body(asked: ResponseRequest, items: Sequence[JSON]) -> JSON:
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


def _tools(asked: ResponseRequest) -> JSON:
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


def _choice(asked: ResponseRequest) -> Any:
    choice = asked.tool_choice
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, AllowedTools):
        return choice.mode
    # A search that is demanded is done; what else the model does is its own choice.
    return choice if choice == "required" and asked.file_search is None else None


def _response_format(asked: ResponseRequest) -> JSON | None:
    wanted = asked.text.format if asked.text is not None else PlainText()
    if isinstance(wanted, PlainText):
        return None
    if isinstance(wanted, JsonSchema):
        named = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": wanted.type, "json_schema": named}
    return {"type": wanted.type}


def searches(asked: ResponseRequest) -> bool:
    """Whether documents are searched: unless the choice of tools is another."""
    if asked.file_search is None or asked.tool_choice == "none":
        return False
    choice = asked.tool_choice
    if isinstance(choice, AllowedTools):
        return any(tool.type == "file_search" for tool in choice.tools)
    return not isinstance(choice, NamedFunction)


async def shortened(gauge: Gauge, body: JSON, *, for_passages: bool) -> tuple[JSON, list[str]]:
    """Leave out the oldest turns of a conversation that is too long, up to where the rest fits.

    A turn begins with the user's message, so that no answer of a function stands without its call.

    Raises:
        InvalidInput: the last turn alone is too long.
    """
    room = gauge.window - answer_tokens(body, gauge.window)
    if for_passages:
        room -= int(gauge.window * PASSAGES_SHARE)
    messages = body["messages"]
    first = 1 if messages and messages[0]["role"] == "system" else 0
    starts = [place for place in range(first, len(messages)) if messages[place]["role"] == "user"]
    # Whatever stands before the first turn goes with it.
    options = [first, *(start for start in starts[1:])]

    def rest(place: int) -> JSON:
        return {**body, "messages": [*messages[:first], *messages[place:]]}

    async def fits(place: int) -> bool:
        return (await gauge.prompt(rest(place))).tokens <= room

    low, high = 0, len(options) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(options[middle]) else (middle + 1, high)
    if low == len(options) - 1 and not await fits(options[low]):
        raise InvalidInput(
            f"The input is too long: its last turn alone does not fit into the {room} tokens that the model "
            "has for it. Send less, or ask for a shorter answer (max_output_tokens).",
            param="input",
            code="context_length_exceeded",
        )
    dropped = options[low] - first
    if not dropped:
        return body, []
    said = f"The oldest {dropped} of {len(messages) - first} messages were left out"
    return rest(options[low]), [f"{said}: the model reads {room} tokens."]
