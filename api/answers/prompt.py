"""Passages into a prompt, within the model's window; counted by the server that will read it.

A handful of short requests, whatever the number of passages: the window, the conversation alone, all passages
together, and the whole once more, since a prompt has more tokens than its parts where they meet; and the
passages again where some were joined.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from db.errors import InvalidInput
from retrieval.fencing import fenced, new_boundary, with_passages
from retrieval.packing import Passage, fitting, joined, shortened
from serving.context_window import Gauge

# Of the window, for an answer whose length the request leaves open.
ANSWER_SHARE, ANSWER_TOKENS = 0.25, 1024
# A longer answer may be asked for than the window has room; this much of it is kept for what is read.
PROMPT_SHARE = 0.5
# Less than this of a passage says nothing.
LEAST_TOKENS = 24
LENGTHS = ("max_completion_tokens", "max_tokens")

JSON = dict[str, Any]
PageStarts = Callable[[Passage], Awaitable[Sequence[int]]]


@dataclass
class Packed:
    """A conversation with its passages, in the order of their numbers."""

    messages: list[JSON]
    passages: list[Passage]
    notices: list[str] = field(default_factory=list)


def answer_tokens(body: JSON, window: int) -> int:
    """What of the window is kept for the answer: what was asked for, or a share."""
    for name in LENGTHS:
        asked = body.get(name)
        if isinstance(asked, int) and asked > 0:
            return min(asked, int(window * PROMPT_SHARE))
    return min(ANSWER_TOKENS, int(window * ANSWER_SHARE))


async def pack(gauge: Gauge, body: JSON, passages: Sequence[Passage], page_starts: PageStarts) -> Packed:
    """Put the best passages into a request's conversation.

    Args:
        body: a request to the chat route, with its `messages`.
        passages: the best first; at least one.
        page_starts: looks up where the pages of a passage's document begin.

    Raises:
        InvalidInput: the conversation leaves no room for any, or the model's template refuses it.
        Unavailable: the model's server does not answer.
    """
    boundary = new_boundary()
    most = gauge.window - answer_tokens(body, gauge.window)
    blocks = fenced(passages, boundary)
    (in_system, bare), counted = await asyncio.gather(_bare(gauge, body, boundary), gauge.count(blocks))
    room = most - bare
    if room < LEAST_TOKENS:
        raise _no_room(gauge, bare, most)
    numbers = fitting(counted.tokens, room)
    chosen = [passages[number] for number in numbers]
    notices = []
    if not chosen:
        share = len(passages[0].text) * room // counted.tokens[0]
        chosen = [shortened(passages[0], share * 4 // 5, await page_starts(passages[0]))]
        notices.append("The best passage was cut, to fit into the model's window.")
    while chosen:
        given = joined(chosen)
        controls = counted.controls
        if len(given) < len(chosen):
            # Where two passages meet, a control token may form that was in neither.
            controls |= (await gauge.count(fenced(given, boundary))).controls
        quoted = fenced(given, boundary, controls)
        messages = with_passages(body["messages"], quoted, boundary, in_system=in_system)
        if (await gauge.prompt({**body, "messages": messages})).tokens <= most:
            notices += _left_out(len(passages) - len(chosen), len(passages), gauge.window)
            return Packed(messages, given, notices)
        chosen.pop()
    raise _no_room(gauge, bare, most)


async def _bare(gauge: Gauge, body: JSON, boundary: str) -> tuple[bool, int]:
    """Whether the template takes the instruction from the system, and the tokens of all but the passages."""
    for in_system in (True, False):
        messages = with_passages(body["messages"], [], boundary, in_system=in_system)
        try:
            prompt = await gauge.prompt({**body, "messages": messages})
        except InvalidInput:
            if not in_system:
                raise
            continue
        # In the instruction, and at the end. Where the prompt cannot be seen, the user's turn is certain.
        if prompt.text is not None and prompt.text.count(boundary) == 2:
            return in_system, prompt.tokens
    return False, prompt.tokens


def _no_room(gauge: Gauge, bare: int, most: int) -> InvalidInput:
    return InvalidInput(
        f"The conversation leaves no room for a passage: with the instructions for citing it takes {bare} of "
        f"the model's {gauge.window} tokens, and {gauge.window - most} are kept for the answer. Send fewer "
        "messages, ask for a shorter answer (max_tokens), or take a model with a larger context.",
        param="messages",
        code="context_length_exceeded",
    )


def _left_out(number: int, found: int, window: int) -> list[str]:
    if not number:
        return []
    return [f"{number} of {found} passages did not fit into the model's window of {window} tokens."]
