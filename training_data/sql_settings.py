"""The operator's file of SQL databases, LATHE_SQL: where jobs may read rows from, and where answers may go.

A request names a source or a target, and only one of these: never an address, never a statement.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from db.errors import InvalidInput
from db.operator_file import checked, read_toml, wrong

SETTING = "LATHE_SQL"
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_$]{0,62}$")]
TableName = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z_][A-Za-z0-9_$]{0,62}\.)?[A-Za-z_][A-Za-z0-9_$]{0,62}$")
]
# What of an answer a target's table can hold, and what its columns are called unless the operator says.
ANSWER_FIELDS = ("job_id", "row_key", "answer", "error")
MORE_ANSWER_FIELDS = ("row", "model", "finish_reason", "prompt_tokens", "completion_tokens")


class _Database(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    url: SecretStr
    projects: list[str] | None = None  # which may name it; None: all
    statement_timeout_seconds: float = Field(default=600, gt=0, le=86_400)

    @field_validator("url")
    @classmethod
    def _postgres(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError(
                "must begin with postgresql://: only PostgreSQL is spoken. Export the rows of other "
                "databases as CSV, JSONL or Parquet, and upload the file"
            )
        return url

    def revealed(self) -> dict[str, Any]:
        """All of it as JSON, the address in plain words: for a process of ours that is to connect."""
        return {**self.model_dump(mode="json"), "url": self.url.get_secret_value()}


class SqlSource(_Database):
    """Rows that jobs may read, by a role that can do no more than that."""

    query: str | None = None
    table: TableName | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "SqlSource":
        if (self.query is None) == (self.table is None):
            raise ValueError("takes either query or table, to say which rows there are")
        return self


class SqlTarget(_Database):
    """A table that takes answers: one row for each job and row key."""

    table: TableName
    columns: dict[str, Identifier] = {name: name for name in ANSWER_FIELDS}

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        known = (*ANSWER_FIELDS, *MORE_ANSWER_FIELDS)
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise ValueError(f"has no {unknown[0]!r}; there are: {', '.join(known)}")
        missing = [name for name in ANSWER_FIELDS if name not in columns]
        if missing:
            raise ValueError(f"lacks {missing[0]}, which every answer has")
        return columns


Kind = Literal["source", "target"]
Database = TypeVar("Database", SqlSource, SqlTarget)


def find_source(path: Path | None, name: str, *, project_id: str, param: str) -> SqlSource:
    """A source by its name.

    Raises:
        InvalidInput: the project has none by that name, or the file is wrong.
    """
    return _found(read_sources(path), "source", name, project_id, param)


def find_target(path: Path | None, name: str, *, project_id: str, param: str) -> SqlTarget:
    """A target by its name.

    Raises:
        InvalidInput: as for `find_source`.
    """
    return _found(read_targets(path), "target", name, project_id, param)


# The params of jobs that name one.
SQL_FIELDS: dict[str, Callable[..., SqlSource | SqlTarget]] = {
    "input_source": find_source,
    "training_source": find_source,
    "output_target": find_target,
}


def read_sources(path: Path | None) -> dict[str, SqlSource]:
    return {
        name: checked(SqlSource, SETTING, f"source.{name}", name, row)
        for name, row in _tables(path, "source").items()
    }


def read_targets(path: Path | None) -> dict[str, SqlTarget]:
    return {
        name: checked(SqlTarget, SETTING, f"target.{name}", name, row)
        for name, row in _tables(path, "target").items()
    }


def _found(databases: Mapping[str, Database], kind: Kind, name: str, project_id: str, param: str) -> Database:
    mine = {
        each: found for each, found in databases.items()
        if found.projects is None or project_id in found.projects
    }  # fmt: skip
    if name not in mine:
        there = f"There are: {', '.join(mine)}." if mine else f"The operator has named none ({SETTING})."
        raise InvalidInput(
            f"{param}: there is no {kind} {name!r}. {there}", param=param, code=f"{kind}_not_found"
        )
    return mine[name]


def _tables(path: Path | None, kind: Kind) -> dict[str, Any]:
    whole = read_toml(path, SETTING)
    unknown = [name for name in whole if name not in ("source", "target")]
    if unknown:
        raise wrong(SETTING, f"{unknown[0]}: tables are [source.NAME] and [target.NAME].")
    found = whole.get(kind, {})
    if not isinstance(found, dict):
        raise wrong(SETTING, f"{kind} is no table: write [{kind}.NAME] on a line of its own.")
    return found
