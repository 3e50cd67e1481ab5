"""A response as it comes about: pieces of a chat completion in, OpenAI's events out, and the response itself.

An answer that is not streamed goes the same way, as one piece.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from db.errors import LatheError
from db.ids import new_id
from serving.responses.request import ResponseAsked

JSON = dict[str, Any]
RESULTS = "file_search_call.results"
ENDS = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}


def begun(asked: ResponseAsked, notices: list[str]) -> JSON:
    """A response with nothing in it yet, which says with what it was asked for."""
    said = asked.model_dump(
        include={
            "model", "instructions", "previous_response_id", "metadata", "temperature", "top_p",
            "max_output_tokens", "max_tool_calls", "top_logprobs", "user", "safety_identifier",
            "prompt_cache_key",
        }
    )  # fmt: skip
    tools = asked.model_dump(include={"tools", "tool_choice"}, mode="json", by_alias=True)
    text = asked.text.model_dump(by_alias=True) if asked.text is not None else {"format": {"type": "text"}}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        **said,
        "metadata": asked.metadata or {},
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "background": False,
        "store": asked.store is not False,
        "service_tier": "default",
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "tools": tools["tools"] or [],
        "tool_choice": tools["tool_choice"] or "auto",
        "text": text,
        "reasoning": asked.reasoning.model_dump() if asked.reasoning is not None else None,
        "truncation": asked.truncation or "disabled",
        "notices": notices,
    }


def shown(response: JSON, include: Collection[str]) -> JSON:
    """A response with what was asked for, and without the rest; it is changed."""
    response["output"] = [shown_item(item, include) for item in response["output"]]
    return response


def shown_item(item: JSON, include: Collection[str]) -> JSON:
    if item["type"] == "file_search_call" and RESULTS not in include:
        return {**item, "results": None}
    return item


def usage_of(told: Mapping[str, Any]) -> JSON:
    """From the chat route's words into those of responses."""
    asked, said = told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": told.get("total_tokens") or asked + said,
    }


class Writer:
    """Args:
    response: as it begins, with no output.
    annotate: finds what a text cites, where documents were searched.
    include: what of it the caller wants to see besides.
    """

    def __init__(
        self,
        response: JSON,
        annotate: Callable[[str], list[JSON]] | None = None,
        include: Collection[str] = (),
    ) -> None:
        self.response = response
        self._annotate = annotate
        self._include = include
        self._sequence = 0
        self._usage: JSON | None = None
        self._finish: str | None = None
        self._open: _Text | None = None
        self._calls: dict[int, _Call] = {}

    # --- events ---------------------------------------------------------------------------------------

    def begin(self) -> Iterator[JSON]:
        for kind in ("response.created", "response.in_progress"):
            yield self._of_response(kind)

    def add_search(self, call: JSON) -> Iterator[JSON]:
        """Tell of a search that has been done."""
        index = self._add({**call, "status": "in_progress", "results": None})
        yield self._event("response.output_item.added", output_index=index, item=self._item(index))
        for state in ("in_progress", "searching", "completed"):
            yield self._event(f"response.file_search_call.{state}", output_index=index, item_id=call["id"])
        self.response["output"][index] = call
        yield self._event("response.output_item.done", output_index=index, item=self._item(index))

    def take(self, chunk: Mapping[str, Any]) -> Iterator[JSON]:
        """Go on with a chunk of the chat route, or with a whole answer of it.

        Raises:
            LookupError, TypeError, AttributeError: it is none.
        """
        if chunk.get("usage"):
            self._usage = usage_of(chunk["usage"])
        for choice in chunk.get("choices") or []:
            said = choice.get("delta") or choice.get("message") or {}
            yield from self._say("reasoning", said.get("reasoning_content") or said.get("reasoning"))
            logprobs = (choice.get("logprobs") or {}).get("content")
            yield from self._say("message", said.get("content"), logprobs)
            for number, fragment in enumerate(said.get("tool_calls") or []):
                yield from self._call(fragment.get("index", number), fragment)
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Iterator[JSON]:
        """Close what is open, and settle how the response has ended; `last` is its last event."""
        cut = self._finish == "length"
        if not self.response["output"] or self.response["output"][-1]["type"] == "file_search_call":
            yield from self._begin_text("message")  # a model may say nothing
        yield from self._close_text(cut)
        for call in self._calls.values():
            yield from call.close(self, cut)
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": self._usage,
        }

    def fail(self, error: LatheError) -> None:
        """Settle that it has failed."""
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": error.message},
            "usage": self._usage,
        }

    def last(self) -> JSON:
        return self._of_response(ENDS[self.response["status"]])

    # --- text -----------------------------------------------------------------------------------------

    def _say(self, kind: str, text: str | None, logprobs: Sequence[JSON] | None = None) -> Iterator[JSON]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._close_text()
            yield from self._begin_text(kind)
        assert self._open is not None  # noqa: S101 - for the type checker
        yield self._open.add(self, text, logprobs or [])

    def _begin_text(self, kind: str) -> Iterator[JSON]:
        self._open = _Text(kind, self._add(_empty(kind)))
        yield from self._open.begin(self)

    def _close_text(self, cut: bool = False) -> Iterator[JSON]:
        if self._open is not None:
            closing, self._open = self._open, None
            yield from closing.close(self, cut)

    def _call(self, number: int, fragment: Mapping[str, Any]) -> Iterator[JSON]:
        if number not in self._calls:
            yield from self._close_text()
            function = fragment["function"]
            call_id = fragment.get("id") or new_id("call")
            item = {
                "id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call_id,
                "name": function["name"], "arguments": "",
            }  # fmt: skip
            self._calls[number] = _Call(self._add(item))
            yield self._calls[number].added(self)
        more = (fragment.get("function") or {}).get("arguments")
        if more:
            yield self._calls[number].add(self, more)

    # --- of which they are made -----------------------------------------------------------------------

    def annotations(self, text: str) -> list[JSON]:
        return self._annotate(text) if self._annotate is not None else []

    def _add(self, item: JSON) -> int:
        self.response["output"].append(item)
        return len(self.response["output"]) - 1

    def _item(self, index: int) -> JSON:
        return shown_item(copy.deepcopy(self.response["output"][index]), self._include)

    def item_event(self, kind: str, index: int) -> JSON:
        return self._event(f"response.output_item.{kind}", output_index=index, item=self._item(index))

    def part_event(self, kind: str, index: int, **more: Any) -> JSON:
        """An event of an item's text or arguments."""
        return self._event(
            f"response.{kind}", output_index=index, item_id=self.response["output"][index]["id"], **more
        )

    def _of_response(self, kind: str) -> JSON:
        return self._event(kind, response=shown(copy.deepcopy(self.response), self._include))

    def _event(self, kind: str, **fields: Any) -> JSON:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


def _empty(kind: str) -> JSON:
    if kind == "reasoning":
        return {"id": new_id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
    return {"id": new_id("msg"), "type": kind, "status": "in_progress", "role": "assistant", "content": []}


def answered(asked: ResponseAsked, said: Mapping[str, Any]) -> JSON:
    """The response that a whole answer of the chat route comes to, where no documents were searched.

    Raises:
        LookupError, TypeError, AttributeError: it is none.
    """
    writer = Writer(begun(asked, []), include=asked.include or ())
    said["choices"][0]["message"]
    for _ in (*writer.begin(), *writer.take(said), *writer.end()):
        pass
    whole: JSON = writer.last()["response"]
    return whole


class _Text:
    """A message of the model's, or what it thinks before it: one text each."""

    def __init__(self, kind: str, index: int) -> None:
        self.kind, self._index = kind, index
        self._pieces: list[str] = []
        self._logprobs: list[JSON] = []
        self._name = "output_text" if kind == "message" else "reasoning_text"

    def _part(self, text: str, annotations: Sequence[JSON] = ()) -> JSON:
        if self.kind == "reasoning":
            return {"type": self._name, "text": text}
        return {
            "type": self._name, "text": text, "annotations": list(annotations), "logprobs": self._logprobs,
        }  # fmt: skip

    def begin(self, writer: Writer) -> Iterator[JSON]:
        yield writer.item_event("added", self._index)
        yield writer.part_event("content_part.added", self._index, content_index=0, part=self._part(""))

    def add(self, writer: Writer, text: str, logprobs: Sequence[JSON]) -> JSON:
        self._pieces.append(text)
        self._logprobs += logprobs
        more = {"logprobs": list(logprobs)} if self.kind == "message" else {}
        return writer.part_event(f"{self._name}.delta", self._index, content_index=0, delta=text, **more)

    def close(self, writer: Writer, cut: bool) -> Iterator[JSON]:
        text, index = "".join(self._pieces), self._index
        annotations = writer.annotations(text) if self.kind == "message" else []
        part = self._part(text, annotations)
        writer.response["output"][index] |= {
            "status": "incomplete" if cut else "completed", "content": [part],
        }  # fmt: skip
        for number, annotation in enumerate(annotations):
            yield writer.part_event(
                "output_text.annotation.added", index, content_index=0, annotation_index=number,
                annotation=annotation,
            )  # fmt: skip
        more = {"logprobs": self._logprobs} if self.kind == "message" else {}
        yield writer.part_event(f"{self._name}.done", index, content_index=0, text=text, **more)
        yield writer.part_event("content_part.done", index, content_index=0, part=part)
        yield writer.item_event("done", index)


class _Call:
    """A function that the model wants called."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._pieces: list[str] = []

    def added(self, writer: Writer) -> JSON:
        return writer.item_event("added", self._index)

    def add(self, writer: Writer, arguments: str) -> JSON:
        self._pieces.append(arguments)
        return writer.part_event("function_call_arguments.delta", self._index, delta=arguments)

    def close(self, writer: Writer, cut: bool) -> Iterator[JSON]:
        whole, item = "".join(self._pieces), writer.response["output"][self._index]
        item |= {"arguments": whole, "status": "incomplete" if cut else "completed"}
        yield writer.part_event(
            "function_call_arguments.done", self._index, arguments=whole, name=item["name"]
        )
        yield writer.item_event("done", self._index)
