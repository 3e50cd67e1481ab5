"""How a response's request finds room: what it searches, and which of its turns are left out."""

from typing import Any

from api.answers.prompt import answer_tokens
from api.responses.schemas import ResponseRequest
from db.errors import InvalidInput
from serving.context_window import Gauge
from serving.responses.request import AllowedTools, NamedFunction

JSON = dict[str, Any]
# Of the window, for the passages of a search.
PASSAGES_SHARE = 0.25


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
