"""The operator's file of reward functions, LATHE_REWARDS: what answers of a training by GRPO are judged by.

A request names a reward, and only one of these or of the built-in ones: never a module, never code.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from db.errors import InvalidInput
from db.params.values import RewardName
from training_data.rows import ANSWER

SETTING = "LATHE_REWARDS"
PARAM = "rewards"


# Rewards that are always there, and the columns that each needs; worker/steps/builtin_rewards.py has them.
BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "exact_match": (ANSWER,),
    "contains_answer": (ANSWER,),
    "brevity": (),
}
# What trl gives reward functions by name; a column of such a name could not be told from it.
RESERVED = frozenset(
    {"prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra",
     "log_metric", "environments"}
)  # fmt: skip

Place = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")]


class RewardSettings(BaseModel):
    """A reward function by its name; `function`: module and name, None of a built-in one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RewardName
    function: Place | None = None
    projects: list[str] | None = None  # which may name it; None: all


def find_rewards(path: Path | None, names: Iterable[str], *, project_id: str) -> list[RewardSettings]:
    """The rewards of these names, in their order.

    Raises:
        InvalidInput: the project has none by one of them, or the file is wrong.
    """
    mine = {
        name: reward
        for name, reward in read_rewards(path).items()
        if reward.projects is None or project_id in reward.projects
    }
    for name in names:
        if name not in mine:
            own = "" if len(mine) > len(BUILT_IN) else f" The operator has named no others ({SETTING})."
            raise InvalidInput(
                f"{PARAM}: there is no reward {name!r}. There are: {', '.join(mine)}.{own}",
                param=PARAM,
                code="reward_not_found",
            )
    return [mine[name] for name in names]


def read_rewards(path: Path | None) -> dict[str, RewardSettings]:
    """All rewards by name: the built-in ones, and those of the file.

    Raises:
        InvalidInput: the file cannot be read, or an entry is wrong; the message names it and its field.
    """
    found = {name: RewardSettings(name=name) for name in BUILT_IN}
    for name, table in _tables(path).items():
        if name in BUILT_IN:
            raise _wrong(f"reward.{name}: a built-in reward is called that. Take another name.")
        found[name] = _checked(name, table)
    return found


def _tables(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        whole = tomllib.loads(path.read_text())
    except OSError as error:
        raise _wrong(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise _wrong(f"{path} is no TOML: {error}.") from error
    unknown = [name for name in whole if name != "reward"]
    found = whole.get("reward", {})
    if unknown or not isinstance(found, dict):
        raise _wrong(f"{(unknown or ['reward'])[0]}: tables are [reward.NAME].")
    return found


def _checked(name: str, table: Any) -> RewardSettings:
    if isinstance(table, dict) and "function" not in table:
        raise _wrong(f"reward.{name}.function is missing: module:function.")
    try:
        return RewardSettings.model_validate({**table, "name": name} if isinstance(table, dict) else table)
    except ValidationError as error:
        row: Any = error.errors()[0]
        place = ".".join(str(part) for part in ("reward", name, *row["loc"]))
        if row["loc"] == ("function",):
            raise _wrong(f"{place} is not of the form module:function.") from None
        raise _wrong(f"{place}: {row['msg'].removeprefix('Value error, ')}.") from None


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(f"{SETTING}: {message}", param=SETTING)
