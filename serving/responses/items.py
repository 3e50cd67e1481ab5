"""The items of a conversation: as a request gives them, as they are stored, and as messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from db.errors import InvalidInput
from db.ids import new_id

JSON = dict[str, Any]
INPUT_ROLES = ("user", "system", "developer")
TEXT_PARTS = ("input_text", "output_text", "text")
# What a response puts out, and comes back within a conversation as it was.
OWN_ITEMS = ("reasoning", "file_search_call")


def read_items(given: str | Sequence[JSON]) -> list[JSON]:
    """A request's input as items with ids.

    Raises:
        InvalidInput: an item is none, or of a type that is not known here.
    """
    if isinstance(given, str):
        return [_message("user", [{"type": "input_text", "text": given}])]
    return [_read(item, f"input[{number}]") for number, item in enumerate(given)]


def _read(item: JSON, place: str) -> JSON:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        return _read_message(item, place)
    if kind == "function_call":
        texts = {name: _text(item, name, place) for name in ("call_id", "name", "arguments")}
        return {"id": _id(item, "fc"), "type": kind, **texts, "status": "completed"}
    if kind == "function_call_output":
        said = item.get("output")
        if isinstance(said, list):
            said = "\n".join(part["text"] for part in _texts(said, f"{place}.output"))
        if not isinstance(said, str):
            raise InvalidInput(f"{place}.output must be text, or a list of input_text.", param=place)
        call_id = _text(item, "call_id", place)
        return {
            "id": _id(item, "fco"),
            "type": kind,
            "call_id": call_id,
            "output": said,
            "status": "completed",
        }
    if kind in OWN_ITEMS:
        return {**item, "id": _id(item, "item")}
    raise InvalidInput(
        f"{place}.type is {kind!r}, which is not supported: give message, function_call, "
        "function_call_output, or an item that a response has put out.",
        param=f"{place}.type",
        code="not_supported",
    )


def _read_message(item: JSON, place: str) -> JSON:
    role, content = item.get("role"), item.get("content")
    if role == "assistant":
        parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else content
        return _message(role, [_said_part(part, place) for part in _list(parts, place)], item)
    if role not in INPUT_ROLES:
        raise InvalidInput(f"{place}.role must be user, assistant, system or developer.", param=place)
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return _message(role, [_asked_part(part, place) for part in _list(parts, place)], item)


def _message(role: str, content: list[JSON], given: Mapping[str, Any] = {}) -> JSON:
    return {
        "id": _id(given, "msg"), "type": "message", "role": role, "status": "completed", "content": content,
    }  # fmt: skip


def _said_part(part: Any, place: str) -> JSON:
    if isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "refusal", "refusal": part["refusal"]}
    [text] = _texts([part], f"{place}.content")
    annotations = part.get("annotations")
    return {
        "type": "output_text",
        "text": text["text"],
        "annotations": annotations if isinstance(annotations, list) else [],
    }


def _asked_part(part: Any, place: str) -> JSON:
    if isinstance(part, dict) and part.get("type") == "input_image":
        if not isinstance(part.get("image_url"), str):
            raise InvalidInput(
                f"{place}.content: input_image takes image_url, best as a data: URL, and no file_id.",
                param=place,
            )
        return {"type": "input_image", "image_url": part["image_url"], "detail": part.get("detail") or "auto"}
    [text] = _texts([part], f"{place}.content")
    return text


def _texts(parts: Sequence[Any], place: str) -> list[JSON]:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_file":
            raise InvalidInput(
                f"{place}: input_file is not supported: put the file into a collection, and give tools "
                "file_search.",
                param=place,
                code="not_supported",
            )
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise InvalidInput(
                f"{place} takes parts of type input_text with text, or input_image; this one is {kind!r}.",
                param=place,
            )
    return [{"type": "input_text", "text": part["text"]} for part in parts]


def _list(parts: Any, place: str) -> list[Any]:
    if not isinstance(parts, list):
        raise InvalidInput(f"{place}.content must be text, or a list of parts.", param=place)
    return parts


def _text(item: JSON, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidInput(f"{place}.{name} is missing: it is a text.", param=f"{place}.{name}")
    return value


def _id(item: Mapping[str, Any], prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and 0 < len(given) <= 200 else new_id(prefix)


# --- as messages ------------------------------------------------------------------------------------------


def messages_of(items: Sequence[JSON], instructions: str | None = None) -> list[JSON]:
    """A conversation as the chat route takes it. What the system says at its beginning is one message, since
    many templates take no more.

    Raises:
        InvalidInput: the output of a function comes without its call.
    """
    messages: list[JSON] = [{"role": "system", "content": instructions}] if instructions else []
    calls: set[str] = set()
    for item in items:
        kind = item["type"]
        if kind == "function_call":
            calls.add(item["call_id"])
            _add_call(messages, item)
        elif kind == "function_call_output":
            if item["call_id"] not in calls:
                raise InvalidInput(
                    f"input has the output of the call {item['call_id']!r}, and no function_call before it.",
                    param="input",
                )
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif kind == "message":
            _add_message(messages, item)
    return messages


def _add_message(messages: list[JSON], item: JSON) -> None:
    role = "system" if item["role"] == "developer" else item["role"]
    content = _content(item["content"])
    if role == "system" and all(message["role"] == "system" for message in messages) and messages:
        messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n\n{content}"}
    else:
        messages.append({"role": role, "content": content})


def _content(parts: Sequence[JSON]) -> str | list[JSON]:
    """As one text, unless there is an image in it."""
    if any(part["type"] == "input_image" for part in parts):
        return [_chat_part(part) for part in parts]
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in parts)


def _chat_part(part: JSON) -> JSON:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
    return {"type": "text", "text": part["text"]}


def _add_call(messages: list[JSON], item: JSON) -> None:
    """Calls that the model made in one go are one message of its."""
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        last = messages[-1]
        messages[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), call]}
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
