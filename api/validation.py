"""Pydantic's errors in plain words: which field, what is wrong with it, and what to give instead."""

import difflib
import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from db.errors import InvalidInput
from db.kinds import PARAMS
from db.params.other_names import OTHER_NAMES
from db.params.training_args import TAKEN

SHOWN_AT_ONCE = 3
# What pydantic adds to the place of an error to say which member of a union it tried.
UNION_MEMBERS = re.compile(r"int|float|bool|str|none|constrained-\w+|list\[.*|literal\[.*|function-.*|.*\(.*")

# The types of filters, by which their models are chosen.
FILTER_TYPES = frozenset({"eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"})

# The types of tools and of formats, likewise.
TAGGED = re.compile(r"(^|\.)(tools\[\d+\]|tool_choice|text\.format)$")
TAGS = frozenset({"function", "file_search", "allowed_tools", "text", "json_object", "json_schema"})

FIELD = re.compile(r"[a-z][a-z0-9_]*")
PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]{0,62}$": "is lower-case letters, digits, '.', '_' and '-', begins with a letter "
    "or a digit, and has at most 63 characters",
    r"^vs-[0-9a-z]{1,64}$": "is the id of a collection, such as vs-0199…: make it with "
    "POST /v1/vector_stores",
    r"^file-[0-9a-z]{1,64}$": "is the id of an uploaded file, such as file-0199…: upload it with "
    "POST /v1/files",
    r"^ft:[!-9;-~]{1,200}:[!-~]{0,300}$": "begins with ft: and has printable ASCII characters and no spaces, "
    "such as ft:gpt-4o-mini:acme:faq:9x8y7z",
    r"^job-[0-9a-z]{1,64}$": "is the id of a job, such as job-0199…: GET /v1/jobs lists them",
    r"^checkpoint-[0-9a-f]{32}$": "is the id of a checkpoint, such as checkpoint-0199…: "
    "GET /v1/jobs/{id}/checkpoints lists them",
}
# As JSON writes them, where pydantic writes Python.
JSON_WORDS = {"'auto'": '"auto"', "True": "true"}
MESSAGES = {
    "missing": "{field} is missing",
    "greater_than": "{field} must be greater than {gt}",
    "greater_than_equal": "{field} must be at least {ge}",
    "less_than": "{field} must be less than {lt}",
    "less_than_equal": "{field} must be at most {le}",
    "multiple_of": "{field} must be a multiple of {multiple_of}",
    "literal_error": "{field} must be {expected}",
    "enum": "{field} must be {expected}",
    "union_tag_invalid": "{field} must be one of {expected_tags}",
    "union_tag_not_found": "{field} is missing",
    "string_too_short": "{field} must have at least {min_length} character{s}",
    "string_too_long": "{field} must have at most {max_length} characters",
    "too_short": "{field} must hold at least {min_length}",
    "too_long": "{field} must hold at most {max_length}",
    "finite_number": "{field} must be a finite number",
    "int_from_float": "{field} must be a whole number",
    "int_type": "{field} must be a whole number",
    "int_parsing": "{field} must be a whole number",
    "int_parsing_size": "{field} is too large a number",
    "float_type": "{field} must be a number",
    "float_parsing": "{field} must be a number",
    "bool_type": "{field} must be true or false",
    "bool_parsing": "{field} must be true or false",
    "string_type": "{field} must be text",
    "string_unicode": "{field} must be text in valid Unicode",
    "list_type": "{field} must be a list",
    "dict_type": "{field} must be an object",
    "model_type": "{field} must be an object",
    "model_attributes_type": "{field} must be an object",
}


def explain(rows: Sequence[ErrorDetails], annotation: Any) -> tuple[str, str | None, str]:
    """What is wrong with a request: (message, the first field meant, code).

    Args:
        rows: pydantic's errors, their places beginning with `body`, `query` or `path`.
        annotation: the type of the body, where the names of its fields are.
    """
    problems: dict[str, list[str]] = {}
    others: set[str] = set()
    first_code: str | None = None
    for row in rows:
        field = field_of(row["loc"])
        # To look for a field's likeliest meaning takes its time, and a body may have a million of them.
        if len(problems) == SHOWN_AT_ONCE and field not in problems:
            others.add(field)
            continue
        message, named, code = _in_words(row, field, annotation)
        problems.setdefault(named or "", []).append(message)
        first_code = first_code or code
    text = "; ".join(map(_merged, problems.values()))
    if others:
        text += f"; and {len(others)} more"
    return text + ("" if text.endswith(("?", ".")) else "."), next(iter(problems)) or None, first_code or ""


def field_of(place: tuple[int | str, ...]) -> str:
    """The field's name as its user wrote it: `learning_rate`, `quantizations[1]`, `params.stop`."""
    parts = list(place)
    source = parts.pop(0) if parts and parts[0] in ("body", "query", "path", "header", "form") else None
    if source == "body" and len(parts) > 1 and parts[0] in PARAMS:
        parts.pop(0)  # the kind of job, by which the body's model was chosen
    if len(parts) > 1 and parts[0] == "params":
        parts.pop(0)
    if parts[-1:] == ["[key]"]:
        del parts[-2:]  # of an object that may have names of any kind, one of them
    name = ""
    for part in parts:
        if isinstance(part, int):
            name += f"[{part}]"
        elif _is_tag(part, name):
            continue
        elif UNION_MEMBERS.fullmatch(part):
            break
        else:
            name += f".{part}" if name else part
    return name


def _is_tag(part: str, name: str) -> bool:
    """Whether it is the type by which the model of what `name` holds was chosen."""
    if part in FILTER_TYPES:
        return re.search(r"(^|\.)filters(\[\d+\])?$", name) is not None
    return part in TAGS and TAGGED.search(name) is not None


def _in_words(row: ErrorDetails, field: str, annotation: Any) -> tuple[str, str | None, str]:
    kind, context = row["type"], row.get("ctx", {})
    if kind == "json_invalid":
        place = row["loc"][-1]
        at = f" at byte {place}" if isinstance(place, int) else ""
        return f"The body is not valid JSON{at}: {context.get('error', row['msg'])}", None, "invalid_json"
    if kind == "extra_forbidden":
        return _unknown_field(row["loc"], field, annotation)
    if kind == "value_error":
        message = str(context.get("error", row["msg"])).removeprefix("Value error, ")
        # A rule over several fields belongs to none of them; it names first the one it is about.
        word = message.split(" ", 1)[0] if field in ("", "params") else field
        return message, word if FIELD.match(word) else None, "invalid_input"
    if kind.startswith("union_tag"):
        tag = str(context["discriminator"]).strip("'")
        field = f"{field}.{tag}" if field else tag
    subject = field or "the body"
    if row["loc"][-1] == "[key]":
        by_length = kind.startswith("string_too_")
        subject = f"each name in {field}" if by_length else f"{str(row['loc'][-2])[:64]!r} in {field}"
    return _sentence(row, subject), field, "invalid_input"


def _sentence(row: ErrorDetails, field: str) -> str:
    kind, context = row["type"], row.get("ctx", {})
    if kind == "string_pattern_mismatch":
        rule = PATTERNS.get(str(context["pattern"]), f"must match {context['pattern']}")
        return f"{field} {rule}"
    if kind in MESSAGES:
        numbers = {name: f"{value:g}" for name, value in context.items() if isinstance(value, float)}
        plural = "" if context.get("min_length") == 1 else "s"
        return MESSAGES[kind].format(**{**context, **numbers, "field": field, "s": plural})
    return f"{field}: {row['msg']}"


def _merged(messages: list[str]) -> str:
    """One sentence for a field that takes values of several types, of which pydantic tells each."""
    first, *others = messages
    if " must be " not in first:
        return first
    kinds = [kind for _, found, kind in (other.partition(" must be ") for other in others) if found]
    return ", or ".join([first, *dict.fromkeys(JSON_WORDS.get(kind, kind) for kind in kinds)])


def _unknown_field(place: tuple[int | str, ...], field: str, annotation: Any) -> tuple[str, str | None, str]:
    name = str(place[-1])
    known = _fields_beside(place, annotation)
    if OTHER_NAMES.get(name) in known:
        return f"There is no field {name}. Here it is {OTHER_NAMES[name]}.", field, "unknown_field"
    if name in TAKEN and "training_args" in known:
        return f"{name} belongs inside training_args", field, "unknown_field"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"There is no field {name}. Did you mean {close[0]}?", field, "unknown_field"
    inner = _fields_beside((*place[:-1], "params", name), annotation) if "params" in known else []
    if name in inner:
        return f"{name} belongs inside params", field, "unknown_field"
    return f"There is no field {name}. There are: {', '.join(known)}", field, "unknown_field"


def _fields_beside(place: tuple[int | str, ...], annotation: Any) -> list[str]:
    """The fields of the object that holds `place`."""
    model = annotation
    for part in place[1:-1] if place[0] == "body" else place[:-1]:
        model = _step_into(model, part)
    models = [member for member in _members(model) if _is_model(member)]
    return [name for member in models for name in member.model_fields]


def _step_into(annotation: Any, part: int | str) -> Any:
    for member in _members(annotation):
        if isinstance(part, int) and get_origin(member) is list:
            return get_args(member)[0]
        if not _is_model(member):
            continue
        if part in member.model_fields:
            return member.model_fields[part].annotation
        tags = [member.model_fields[tag] for tag in ("kind", "type") if tag in member.model_fields]
        if any(part in get_args(tag.annotation) for tag in tags):
            return member
    return None


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def refuse_unstorable(value: Any, field: str | None = None) -> None:
    """JSON may hold characters that are no text: NUL and halves of surrogate pairs.

    Raises:
        InvalidInput: it does; `param` is the outermost field.
    """
    waiting = [(field, value)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, str) and not _is_storable(value):
            raise InvalidInput(f"{field} holds a character that is no text.", param=field)
        if isinstance(value, dict):
            for name, inner in value.items():
                own = field or (None if name == "params" else name)
                waiting += [(own, name), (own, inner)]
        elif isinstance(value, list):
            waiting += [(field, inner) for inner in value]


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
