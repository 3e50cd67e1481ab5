"""What each worker of a cluster does: Ray Train calls `train` in all of them at once, and again in new ones
when one is lost.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker.checkpoints import FOLDER
from worker.run_rank import rank_step
from worker.step import Message, Step, StepInput
from worker.step_process import outcome
from worker.steps import together
from worker.steps.environment import versions
from worker.steps.ray_train.desk import EARLIER, FINAL
from worker.steps.ray_train.errands import Ask, bring, hand_in
from worker.steps.ray_train.scratch import one_at_a_time, scratch
from worker.steps.rewards import hashes_of_rewards
from worker.steps.tunings import settle_bits

INPUTS = "inputs"


def train(given: dict[str, Any]) -> None:
    """Be one of those that train together.

    Args:
        given: `mailbox`, the step's; `input`, what the step was given; `work`, what it is to do; `folder`,
            where this training has its folder on each machine; `threads`, to compute with.
    Raises:
        RuntimeError: the training has come to an end that those who wait for this worker have to share.
    """
    import ray
    from ray.train import get_context

    rank, group = get_context().get_world_rank(), ray.util.get_current_placement_group().id.hex()

    def ask(what: str, **particulars: Any) -> Any:
        return ray.get(given["mailbox"].ask.remote({"what": what, "group": group, **particulars}))

    def heed(stop: Callable[[], None]) -> None:
        def wait() -> None:
            ray.get(given["mailbox"].stopped.remote())
            stop()

        threading.Thread(target=wait, daemon=True).start()

    ending = outcome(lambda: _train(ask, heed, rank, group, given))
    if rank == 0 or ending["type"] in FINAL:
        ask("end", ending=ending)
    if ending["type"] in FINAL:
        raise RuntimeError(ending["message"])


def _train(
    ask: Ask, heed: Callable[[Callable[[], None]], None], rank: int, group: str, given: dict[str, Any]
) -> dict[str, Any]:
    from worker.steps import train as training

    folder, step_input = Path(given["folder"]), StepInput.from_json(given["input"])
    with scratch(folder):
        begun = ask(
            "begin",
            host=socket.gethostname(),
            versions=versions(),
            rewards=hashes_of_rewards(step_input),
        )
        if begun["ended"]:
            return {}
        with one_at_a_time(folder):
            bring(ask, begun["inputs"], folder / INPUTS)
        step_input = _input_here(step_input, folder, given["threads"], group, begun["earlier"])
        step_input.folder.mkdir(exist_ok=True)
        step = rank_step(step_input, rank, _voice(ask, step_input.folder), heed)
        result: dict[str, Any] = training.run_rank(step, _work_here(step, given["work"]))
        if rank == 0:
            for path in sorted(step_input.folder.iterdir()):
                if path.name != FOLDER:
                    hand_in(ask, step_input.folder, path.name)
        return result


def _work_here(step: Step, work: dict[str, Any]) -> dict[str, Any]:
    """The work, with the base where it is on this machine, and what the first machine's memory decides."""
    base = step.input.require_base().location

    def settled() -> dict[str, Any]:
        chosen = dict(work["chosen"])
        settle_bits(step, Path(base), chosen)
        return chosen

    return {**work, "base": base, "chosen": together.from_first(settled)}


def _input_here(given: StepInput, folder: Path, threads: int, group: str, earlier: list[str]) -> StepInput:
    """The step's input with the paths of this machine."""
    inputs = folder / INPUTS
    return replace(
        given,
        folder=folder / f"group-{group}",
        settings=replace(given.settings, threads=threads),
        step_folders={"prepare": inputs / "prepare"},
        base=replace(given.base, source="folder", location=str(inputs / "base")) if given.base else None,
        start=inputs / "start" if given.start is not None else None,
        resume_from=[inputs / EARLIER / name for name in earlier],
    )


def _voice(ask: Ask, folder: Path) -> Callable[[Message], None]:
    """How rank 0 speaks: a checkpoint is handed in before it is told of, unless it came from there."""

    def say(message: Message) -> None:
        if message["type"] == "checkpoint" and message["metrics"]:
            hand_in(ask, folder, message["path"])
        ask("say", message=message)

    return say
