"""Reward functions: found by what the operator's settings name, called as trl calls them, and held to what
they owe, a finite number for each answer.

A function takes keywords: `prompts` and `completions`, each a list of messages for each answer, as trl has
them of conversations; `completion_ids`, their tokens; each column of the rows, a value for each answer; and
what trl gives besides. It may be asynchronous. Whatever was written for trl's GRPOTrainer can be named.
"""

import asyncio
import hashlib
import importlib
import inspect
import json
import math
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.reward_settings import BUILT_IN, PARAM, SETTING, RewardSettings
from training_data.rows import ANSWER, Row, expected_answer, read_prepared
from training_data.tokens import ChatTokenizer
from worker.step import Step, StepInput

BUILT_IN_MODULE = "worker.steps.builtin_rewards"
COLUMNS = "columns"  # of a row that is trained on, as JSON
FILES = ("train.jsonl", "validation.jsonl")


class Reward:
    """One reward function.

    Args:
        columns: names of all that rows hold besides their prompts; where a row has none of it, None is given.
        settings: of the training, for the function: max_completion_length.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], columns: Iterable[str], settings: dict[str, Any]
    ) -> None:
        self.__name__ = name  # by which trl calls what it measures
        self._function = function
        self._columns = tuple(columns)
        self._settings = settings

    def __call__(self, *, columns: list[str], completions: list[Any], **given: Any) -> list[float]:
        """Judge answers.

        Args:
            columns: of the row of each answer, as JSON.
        Raises:
            InvalidInput: the function failed, or gave anything but a finite number for each.
        """
        rows = [json.loads(each) for each in columns]
        by_name = {name: [row.get(name) for row in rows] for name in self._columns}
        values = self._call({**given, "completions": completions, **self._settings, **by_name})
        try:
            judged = list(values)
        except TypeError:
            raise self._refusal(f"gave {_shown(values)}, and no list of numbers") from None
        if len(judged) != len(completions):
            raise self._refusal(f"gave {len(judged)} numbers for {len(completions)} answers")
        return [self._number(value, position) for position, value in enumerate(judged, start=1)]

    def _call(self, given: dict[str, Any]) -> Any:
        try:
            values = self._function(**given)
            return asyncio.run(_awaited(values)) if inspect.isawaitable(values) else values
        except (InvalidInput, MemoryError):
            raise
        except OSError as error:  # whom it asks may be there again at the next try
            raise RuntimeError(f"The reward {self.__name__} did not reach what it asks: {error}") from error
        except Exception as error:  # others' code may raise whatever it likes
            traceback.print_exc()
            raise self._refusal(f"failed with {type(error).__name__}: {error}") from error

    def _number(self, value: Any, position: int) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._refusal(f"gave {_shown(value)} for answer {position}, and no finite number")
        return number

    def _refusal(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"The reward {self.__name__} {what}. Whoever runs this server can mend it ({SETTING}), or train "
            "with another reward.",
            param=PARAM,
            code="reward_failed",
        )


def judge(reward: Reward, tokenizer: ChatTokenizer, rows: list[Row], answers: list[str]) -> list[float]:
    """Judge answers to prompts outside of a training.

    Raises:
        InvalidInput, RuntimeError: as a training would be told.
    """
    return reward(
        prompts=[row.messages for row in rows],
        completions=[[{"role": "assistant", "content": answer}] for answer in answers],
        completion_ids=[tokenizer.encode_text(answer) for answer in answers],
        columns=[json.dumps(row.fields) for row in rows],
        trainer_state=None,
        log_extra=_unheard,
        log_metric=_unheard,
    )


def _unheard(*args: Any) -> None:
    """For what a function would log of a training."""


async def _awaited(values: Awaitable[Any]) -> Any:
    return await values


def _shown(value: Any) -> str:
    return repr(value)[:80]


def load_rewards(step: Step, columns: Iterable[str], settings: dict[str, Any]) -> list[Reward]:
    """The functions that the job's rewards are, in their order.

    Raises:
        InvalidInput: one cannot be imported here.
    """
    return [Reward(each.name, _function(each), columns, settings) for each in _named(step.input)]


def hashes_of_rewards(step_input: StepInput) -> dict[str, str]:
    """The sha256 of the file that each of the job's rewards stands in, to tell whether it is as it was, and
    the same on another machine. Of those that cannot be imported here there is none.
    """
    found = {}
    for each in _named(step_input):
        try:
            file = getattr(importlib.import_module(_place(each)[0]), "__file__", None)
        except Exception:  # noqa: BLE001 - a module of others may raise whatever it likes
            traceback.print_exc()
            continue
        if file is not None:
            found[each.name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def see_rewards(step: Step) -> list[str]:
    """See that the rewards are there, and that the prepared rows have what they need.

    Returns:
        the names of the columns that they are given.
    Raises:
        InvalidInput: a reward or a column is missing.
    """
    load_rewards(step, (), {})
    columns: dict[str, None] = {}
    unanswered = rows = 0
    for name in FILES:
        for row in read_prepared(step.input.folder / name):
            columns |= dict.fromkeys(row.fields)
            unanswered += expected_answer(row.fields) is None
            rows += 1
    needing = [each.name for each in _named(step.input) if ANSWER in BUILT_IN.get(each.name, ())]
    if needing and unanswered:
        raise InvalidInput(
            f"rewards: {needing[0]} compares with a row's answer, and {unanswered} of {rows} rows have none: "
            f"add a column {ANSWER!r}, leave these rows out, or take another reward.",
            param=PARAM,
            code="answers_missing",
        )
    given = f"the columns {', '.join(columns)}" if columns else "no column, for rows have prompts alone"
    step.event(
        f"Answers are judged by {', '.join(each.name for each in _named(step.input))}, given {given}.",
        rewards=[each.name for each in _named(step.input)],
        columns=list(columns),
    )
    return list(columns)


def _named(step_input: StepInput) -> list[RewardSettings]:
    return [RewardSettings.model_validate(each) for each in step_input.rewards]


def _place(reward: RewardSettings) -> tuple[str, str]:
    """The module and the name of its function."""
    module, _, name = (reward.function or f"{BUILT_IN_MODULE}:{reward.name}").partition(":")
    return module, name


def _function(reward: RewardSettings) -> Callable[..., Any]:
    module, name = _place(reward)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of others may raise whatever it likes
        traceback.print_exc()
        raise InvalidInput(
            f"The reward {reward.name} cannot be imported where the worker runs ({type(error).__name__}: "
            f"{error}). Whoever runs this server can mend that: is its module on PYTHONPATH?",
            param=PARAM,
            code="reward_unavailable",
        ) from error
    if not callable(found):
        raise InvalidInput(
            f"The reward {reward.name} is no function: {SETTING} names something else.",
            param=PARAM,
            code="reward_unavailable",
        )
    return found
