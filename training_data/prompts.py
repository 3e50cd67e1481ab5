"""Prompts with columns of a row in braces: {input}, {context}; a brace that is meant as one stands twice."""

import json
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from db.errors import InvalidInput
from db.params.predict import InferenceKwargs, PredictParams

COLUMNS_SHOWN = 20
# What stands beside a row's own columns in a CSV of answers.
ANSWER_COLUMNS = ("answer", "finish_reason", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Template:
    """A text with variables. `parts`: literal text, and the variable that follows it, or None at the end."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def variables(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, str]) -> str:
        return "".join(text + (values[name] if name is not None else "") for text, name in self.parts)


def parse_template(text: str, *, param: str) -> Template:
    """Read a template.

    Raises:
        InvalidInput: a brace is left open, or holds no name of a column.
    """
    doubled = "write a brace that is meant as one twice: {{ and }}"
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InvalidInput(f"{param}: {error}: {doubled}.", param=param, code="bad_template") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if spec or conversion or not name.strip() or not name.isprintable() or name[0] in "\"'[{":
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
            raise InvalidInput(
                f"{param}: {{{shown[:80]}}} is no column. A column's name stands in braces as it is; "
                f"{doubled}.",
                param=param,
                code="bad_template",
            )
    return Template(tuple((literal, name) for literal, name, _, _ in parts))


class RowPrompts:
    """Makes the request of each row.

    Args:
        columns: that rows have.
    Raises:
        InvalidInput: a template is none, or a column that is named is not there.
    """

    def __init__(self, params: PredictParams, columns: Collection[str]) -> None:
        self._params = params
        self._prompt = parse_template(params.prompt, param="prompt")
        self._system = (
            parse_template(params.system_prompt, param="system_prompt") if params.system_prompt else None
        )
        self._shared = params.inference_kwargs.model_dump(exclude_none=True)
        for param, template in (("prompt", self._prompt), ("system_prompt", self._system)):
            for name in template.variables if template is not None else ():
                _require(name, columns, param)
        for param in ("key_column", "inference_kwargs_column"):
            name = getattr(params, param)
            if name is not None:
                _require(name, columns, param)
        taken = [name for name in ANSWER_COLUMNS if name in columns]
        if params.output_format == "csv" and taken:
            raise InvalidInput(
                f"output_format: the rows have a column {taken[0]!r}, which is what a CSV calls a part of "
                "the answer: rename it, or take jsonl.",
                param="output_format",
            )

    def key(self, row: int, values: Mapping[str, Any]) -> str:
        """What tells the row apart."""
        column = self._params.key_column
        return str(row) if column is None else _text(values, column)

    def body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a model is asked for the row.

        Raises:
            InvalidInput: a column that is used has no value in it, or the row's own kwargs are none.
        """
        names = [*self._prompt.variables, *(self._system.variables if self._system is not None else [])]
        texts = {name: _text(values, name) for name in names}
        messages = [{"role": "user", "content": self._prompt.fill(texts)}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system.fill(texts)})
        return {"model": self._params.model, "messages": messages, **self._shared, **self._own(values)}

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        column = self._params.inference_kwargs_column
        given = values.get(column) if column is not None else None
        if given is None or (isinstance(given, str) and not given.strip()):
            return {}
        try:
            own = json.loads(given) if isinstance(given, str) else given
            return InferenceKwargs.model_validate(own).model_dump(exclude_none=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            said = f"{place}: {first['msg']}"
        except (ValueError, RecursionError) as error:
            said = f"it is no JSON: {error}"
        raise InvalidInput(f"{column}: {said}.", param="inference_kwargs_column", code="bad_inference_kwargs")


def _require(name: str, columns: Collection[str], param: str) -> None:
    if name in columns:
        return
    shown = ", ".join(list(columns)[:COLUMNS_SHOWN])
    more = f" and {len(columns) - COLUMNS_SHOWN} more" if len(columns) > COLUMNS_SHOWN else ""
    raise InvalidInput(
        f"{param}: there is no column {name!r}. The rows have: {shown}{more}.",
        param=param,
        code="unknown_column",
    )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        raise InvalidInput(f"column {name!r} has no value.", param=name, code="missing_value")
    if isinstance(value, bytes):
        raise InvalidInput(f"column {name!r} holds bytes, and no text.", param=name, code="bad_value")
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
