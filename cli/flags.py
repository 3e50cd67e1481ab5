"""Flags made from the parameters of a kind of job.

Names, types, bounds, defaults and help texts come from the pydantic models in `db/params/`; what
stands here is only the short names that people type, and in `cli/panels.py` how `--help` groups them.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cli import completion
from cli.panels import PANELS
from db.params.data import TrainingFile
from db.params.other_names import OTHER_NAMES
from db.params.values import Params

# What people type; the parameter's own name is understood as well.
SHORT_NAMES = {
    "base_model": "base",
    "training_file": "data",
    "validation_file": "validation",
    "input_file": "data",
    "input_source": "source",
    "output_target": "target",
    "gradient_accumulation_steps": "gradient-accumulation",
}

# Those whose value is a name that the server knows.
MODEL_PARAMETERS = ("base_model", "merge_base", "start_from", "model")

SYNONYMS = {"quantization": "quantizations", **OTHER_NAMES}

NAME_RULE = "a-z, 0-9, '.', '_' and '-', at most 63 of them, the first one a letter or a digit."
# A bound this high is the database's, and tells nobody anything.
UNBOUNDED = 2**31 - 1
WIDEST_METAVAR = 60
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true|false", dict: "name=value,…"}
BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class Flag:
    """One parameter as the command line takes it."""

    name: str
    type: type
    auto: bool = False
    many: bool = False
    choices: tuple[Any, ...] = ()
    required: bool = False
    help: str = ""
    is_file: bool = False
    holds_text: bool = False  # of an object: whether each value in it is a text, as it is typed

    @property
    def spelling(self) -> str:
        return f"--{_typed_name(self.name)}"

    @property
    def is_object(self) -> bool:
        return issubclass(self.type, BaseModel | dict)

    @property
    def is_files(self) -> bool:
        """Whether it is several files with a weight each."""
        return self.many and issubclass(self.type, TrainingFile)

    @property
    def metavar(self) -> str:
        if self.is_file:
            return "PATH|file-ID"
        if self.is_files:
            return "PATH|file-ID[=weight],…"
        one = "|".join(map(str, self.choices)) if self.choices else TYPE_NAMES.get(self.type, "JSON")
        # What takes more room than its help, is named there.
        one = "type" if self.many and self.choices else "name" if len(one) > WIDEST_METAVAR else one
        return (f"{one},…" if self.many else one) + ("|auto" if self.auto else "")


def flags_of(model: type[Params]) -> dict[str, Flag]:
    """Read a params model: a flag for each field."""
    return {name: _flag(name, info) for name, info in model.model_fields.items()}


def option_parameters(
    kind: str, model: type[Params], *, by_argument: tuple[str, ...] = ()
) -> list[inspect.Parameter]:
    """Make the options of a command that takes `model`, in the order of their groups.

    Args:
        by_argument: the parameters for which an argument may stand, too.
    """
    flags = flags_of(model)
    flags |= {name: replace(flags[name], required=False) for name in by_argument}
    return [_parameter(flags[name], panel) for panel, names in PANELS[kind].items() for name in names]


def with_options(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Put `parameters` in place of `command`'s `**params`, for typer to read."""
    own = inspect.signature(command, eval_str=True)
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = own.replace(parameters=[*parameters, *kept])  # type: ignore[attr-defined]
    return command


def understand(option: str) -> str:
    """Let `--base-model` and `--learning_rate` mean the flags `--base` and `--learning-rate`."""
    name = option.replace("-", "_")
    return _typed_name(SYNONYMS.get(name, name))


def _typed_name(parameter: str) -> str:
    return SHORT_NAMES.get(parameter, parameter.replace("_", "-"))


def read_values(model: type[Params], given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what was typed into parameters; flags that were not given are left out.

    Raises:
        typer.BadParameter: names the flag and says what it takes.
    """
    flags = flags_of(model)
    return {name: _convert(flags[name], value) for name, value in given.items() if value not in (None, [])}


def check_values(model: type[Params], values: Mapping[str, Any]) -> None:
    """Hold `values` against the model before anything is uploaded.

    Raises:
        typer.BadParameter: as `read_values`.
    """
    flags = flags_of(model)
    # A path stands where the id of the uploaded file will.
    stand_ins: dict[str, Any] = {
        name: "file-0" for name, flag in flags.items() if flag.is_file and name in values
    }
    for several in (name for name, flag in flags.items() if flag.is_files and name in values):
        stand_ins[several] = [{**each, "file": f"file-{i}"} for i, each in enumerate(values[several])]
    try:
        model(**{**values, **stand_ins})
    except ValidationError as failure:
        errors = failure.errors()
        # Of a union, "is not 'auto'" is the less telling half.
        telling = [e for e in errors if "literal['auto']" not in map(str, e["loc"])] or errors
        message = telling[0]["msg"].removeprefix("Value error, ")
        if telling[0]["type"] == "string_pattern_mismatch":
            message = f"{telling[0]['input']!r} does not fit: {NAME_RULE}"
        name = str(telling[0]["loc"][0]) if telling[0]["loc"] else None
        raise bad_value(message, flags.get(name) if name else None) from None


def bad_value(message: str, flag: Flag | None) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=flag.spelling if flag else None)


def spelling_of(model: type[Params], param: str | None) -> str | None:
    """The flag that a field named in an API error is typed as, or None."""
    if not param:
        return None
    flag = flags_of(model).get(param.removeprefix("params.").split(".")[0].split("[")[0])
    return flag.spelling if flag else None


def _parameter(flag: Flag, panel: str) -> inspect.Parameter:
    annotation: Any = list[str] if flag.many else str
    option = typer.Option(
        flag.spelling,
        metavar=flag.metavar,
        help=flag.help,
        show_default=False,
        rich_help_panel=panel,
        autocompletion=_completer(flag),
    )
    return inspect.Parameter(
        flag.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if flag.required else None,
        annotation=Annotated[annotation if flag.required else annotation | None, option],
    )


def _completer(flag: Flag) -> Callable[..., Any] | None:
    """What a shell completes as its value; None leaves that to the shell, which knows files."""
    if flag.name in MODEL_PARAMETERS:
        return completion.models
    values = [*map(str, flag.choices), *(("true", "false") if flag.type is bool else ())]
    values += ["auto"] if flag.auto and values else []
    return completion.one_of(values, many=flag.many) if values else None


def _convert(flag: Flag, value: Any) -> Any:
    if not flag.many:
        return _convert_one(flag, value) if isinstance(value, str) else value
    parts = [part.strip() for text in value for part in text.split(",") if part.strip()]
    if flag.auto and parts == ["auto"]:
        return "auto"
    return [_convert_one(flag, part) for part in parts]


def _convert_one(flag: Flag, text: str) -> Any:
    if flag.auto and text.lower() == "auto":
        return "auto"
    if flag.is_files:
        return _weighted_file(flag, text)
    if flag.choices:
        for choice in flag.choices:
            if str(choice).lower() == text.lower():
                return choice
        raise bad_value(f"{text!r} is none of {', '.join(map(str, flag.choices))}.", flag)
    if flag.is_object:
        return _json_object(flag, text)
    if flag.type is bool:
        if text.lower() in BOOLEANS:
            return BOOLEANS[text.lower()]
        raise bad_value(f"{text!r} is not {_takes(flag)}.", flag)
    try:
        return flag.type(text)
    except ValueError:
        raise bad_value(f"{text!r} is not {_takes(flag)}.", flag) from None


def _weighted_file(flag: Flag, text: str) -> dict[str, Any]:
    """`rows.csv` or `rows.csv=0.5`."""
    path, sign, weight = text.rpartition("=")
    if not sign:
        return {"file": text}
    try:
        return {"file": path, "weight": float(weight)}
    except ValueError:
        raise bad_value(f"{weight!r} is no weight, such as 0.5 or 2: write {path}=2.", flag) from None


def _json_object(flag: Flag, text: str) -> dict[str, Any]:
    """JSON, or pairs: `question=Frage,answer=Antwort`, or `weight_decay=0.1,optim=sgd`."""
    pairs = [part.partition("=") for part in text.split(",")]
    if flag.type is dict and not text.lstrip().startswith("{") and all(sign for _, sign, _ in pairs):
        value_of = str if flag.holds_text else _json_or_text
        return {name.strip(): value_of(value.strip()) for name, _, value in pairs}
    try:
        read = json.loads(text)
    except ValueError as error:
        raise bad_value(f"{text!r} is no JSON: {error}.", flag) from None
    if not isinstance(read, dict):
        raise bad_value(f'{text!r} is no JSON object, such as {{"temperature": 0}}.', flag)
    return read


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _takes(flag: Flag) -> str:
    one = {int: "a whole number", float: "a number", bool: "true or false"}[flag.type]
    return f"{one} or auto" if flag.auto else one


def _flag(name: str, info: FieldInfo) -> Flag:
    shape = _read_annotation(info.annotation, list(info.metadata))
    return Flag(
        name=name,
        type=shape.type,
        auto=shape.auto,
        many=shape.many,
        choices=shape.choices,
        required=info.is_required(),
        help=_help(info, shape),
        is_file=shape.is_file,
        holds_text=shape.holds_text,
    )


def _help(info: FieldInfo, shape: "_Shape") -> str:
    sentences = [(info.description or "").strip(), _bounds_text(shape.bounds)]
    if shape.is_file or issubclass(shape.type, TrainingFile):
        sentences.append("Given a path, uploads it.")
    choices = ", ".join(map(str, shape.choices))
    if choices and (shape.many or len(choices) > WIDEST_METAVAR):
        sentences.append(f"Of {choices}.")
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if default not in (None, []) and not isinstance(default, BaseModel | dict):
        sentences.append(f"Default: {_typed(default)}.")
    return " ".join(filter(None, sentences))


def _typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


@dataclass
class _Shape:
    type: type = str
    auto: bool = False
    many: bool = False
    choices: tuple[Any, ...] = ()
    is_file: bool = False
    holds_text: bool = False
    bounds: tuple[Any, ...] = ()


def _read_annotation(annotation: Any, metadata: list[Any]) -> _Shape:
    shape = _Shape()
    pending = [annotation]
    while pending:
        part = pending.pop(0)
        origin, arguments = get_origin(part), get_args(part)
        if origin is Annotated:
            pending.append(arguments[0])
            for extra in arguments[1:]:
                metadata += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        elif origin in (Union, UnionType):
            pending += arguments
        elif origin is list:
            shape.many = True
            pending += arguments
        elif origin is dict:
            shape.type, shape.holds_text = dict, arguments[1] is not Any
        elif origin is Literal and arguments == ("auto",):
            shape.auto = True
        elif origin is Literal:
            shape.choices, shape.type = arguments, type(arguments[0])
        elif part is not NoneType:
            shape.type = part
    shape.is_file = any(str(getattr(extra, "pattern", "") or "").startswith("^file-") for extra in metadata)
    shape.bounds = tuple(extra for extra in metadata if isinstance(extra, Ge | Gt | Le | Lt))
    return shape


def _bounds_text(bounds: tuple[Any, ...]) -> str:
    low = next(
        (f"{'above ' if isinstance(b, Gt) else ''}{_limit(b):,}" for b in bounds if isinstance(b, Ge | Gt)),
        "",
    )
    high = next(
        (
            f"{'below ' if isinstance(b, Lt) else ''}{_limit(b):,}"
            for b in bounds
            if isinstance(b, Le | Lt) and _limit(b) < UNBOUNDED
        ),
        "",
    )
    if low and high:
        return f"{low} to {high}.".capitalize()
    if low.startswith("above"):
        return f"{low}.".capitalize()
    return f"At least {low}." if low else f"At most {high}." if high else ""


def _limit(bound: Any) -> Any:
    return next(getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))
