"""The step's side: what workers of a cluster ask, answered. Of them all, rank 0 alone speaks and hands in."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from training_data.json_files import read_json
from training_data.ray_clusters import PARAM
from training_data.reward_settings import PARAM as REWARDS
from worker.checkpoints import (
    FOLDER,
    PREFIX,
    STATE_FILE,
    BrokenCheckpoint,
    list_checkpoints,
    number_of,
    take_over,
    verify,
    write_checkpoint,
)
from worker.step import Message, Step
from worker.steps.environment import versions
from worker.steps.ray_train.mailbox import Request
from worker.steps.resuming import tell_passed_over
from worker.steps.rewards import hashes_of_rewards

ARRIVING = ".arriving"
EARLIER = "earlier"  # the folder of a worker's inputs that has the checkpoints to go on from
PIECE_BYTES = 8 * 1024**2


# What no other group of workers would do any better.
FINAL = ("refused", "exhausted")


class Desk:
    """Args:
    inputs: the files that a worker needs, by the name that each has under its own folder.
    failures: how often workers may be lost.
    """

    def __init__(self, step: Step, inputs: dict[str, Path], failures: int) -> None:
        self._step = step
        self._inputs = {name: path.resolve() for name, path in inputs.items()}
        self._failures = failures
        self._root, self._arriving = step.input.folder / FOLDER, step.input.folder / ARRIVING
        self._group = ""  # of workers, that trains now
        self._groups = 0
        self._written: set[int] = set()  # checkpoints of this attempt
        self.last_loss = ""
        self._hears: dict[str, Callable[[Message], None]] = {
            "checkpoint": self._checkpoint,
            "checkpoint_removed": self._checkpoint_removed,
            "resumed": self._resumed,
        }
        self.ending: Message | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is worth waiting for any more."""
        return self.ending is not None and self.ending["type"] in FINAL

    def answer(self, request: Request) -> Any:
        """Do what a worker asks.

        Raises:
            BrokenCheckpoint: what came over is not what was sent.
            OSError: it cannot be written here.
        """
        what = request["what"]
        if what == "begin":
            return self._begin(request)
        if what == "piece":
            return self._piece(request["name"], request["at"])
        if what == "lost":
            self.last_loss = request["why"]
        elif request["group"] == self._group:  # what another says comes from one that was given up for dead
            {"say": self._say, "put": self._put, "end": self._end}[what](request)
        return None

    def _begin(self, request: Request) -> dict[str, Any]:
        """A worker of a group begins: what it needs, unless the training has come to its end already."""
        if request["group"] != self._group:
            self._group, self._groups = request["group"], self._groups + 1
            shutil.rmtree(self._arriving, ignore_errors=True)
            self._inputs = {name: path for name, path in self._inputs.items() if not name.startswith(EARLIER)}
            checkpoints = self._to_go_on_from()
            self._inputs |= {
                f"{EARLIER}/{checkpoint.name}/{name}": path
                for checkpoint in checkpoints
                for name, path in files_under(checkpoint).items()
            }
            self._earlier = [checkpoint.name for checkpoint in checkpoints]
            if self._groups > 1 and self.ending is None:
                self._tell_recovery()
        self._compare_versions(request["host"], request["versions"])
        self._compare_rewards(request["host"], request["rewards"])
        return {
            "ended": self.ending is not None,
            "inputs": {name: _listed(path) for name, path in self._inputs.items()},
            "earlier": self._earlier,
        }

    def _to_go_on_from(self) -> list[Path]:
        """The newest checkpoint that is whole, and the best one of its time; none at the beginning."""
        candidates = list_checkpoints(self._step.input.folder) or self._step.input.resume_from
        for checkpoint in candidates:
            try:
                verify(checkpoint)
            except BrokenCheckpoint as broken:
                tell_passed_over(self._step, number_of(checkpoint), broken)
                continue
            best = f"{PREFIX}{read_json(checkpoint / STATE_FILE)['best_step']}"
            others = [path for path in candidates if path.name == best and path != checkpoint]
            return [checkpoint, *others[:1]]
        if candidates:
            self._step.event("No checkpoint is whole: starting from the beginning.", level="warn")
        return []

    def _tell_recovery(self) -> None:
        why = self.last_loss or "a worker was lost"
        whence = (
            f"the checkpoint of step {self._earlier[0].removeprefix(PREFIX)}"
            if self._earlier
            else "the beginning"
        )
        self._step.event(
            f"Ray has started the workers again, time {self._groups - 1} of at most {self._failures}: {why}. "
            f"They go on from {whence}.",
            level="warn",
            failures=self._groups - 1,
        )

    def _compare_versions(self, host: str, theirs: dict[str, str]) -> None:
        """End the training where machines would compute by different packages."""
        for name, ours in versions().items():
            if _public(theirs.get(name)) != _public(ours) and self.ending is None:
                self.ending = {
                    "type": "refused",
                    "code": "cluster_versions_differ",
                    "message": f"{PARAM}: {host} has {name} {theirs.get(name, 'not at all')}, and the worker "
                    f"of this server {ours}. Install the same on each machine of the cluster.",
                    "param": PARAM,
                }

    def _compare_rewards(self, host: str, theirs: dict[str, str]) -> None:
        """End a training by rewards where machines would judge by different code, or have none."""
        for name, ours in hashes_of_rewards(self._step.input).items():
            if theirs.get(name) != ours and self.ending is None:
                what = "another" if name in theirs else "no"
                self.ending = {
                    "type": "refused",
                    "code": "cluster_rewards_differ",
                    "message": f"{REWARDS}: {host} has {what} module of the reward {name} than the worker of "
                    "this server. Have the same on PYTHONPATH when Ray is started on each machine.",
                    "param": REWARDS,
                }

    def _piece(self, name: str, at: int) -> bytes:
        with self._inputs[name].open("rb") as file:
            file.seek(at)
            return file.read(PIECE_BYTES)

    def _put(self, request: Request) -> None:
        """A piece of a file that rank 0 hands in; it counts once the file's folder is whole."""
        path = self._within(self._arriving, request["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if request["at"] == 0 else "ab") as file:
            file.write(request["data"])
            if request["last"]:
                file.flush()
                os.fsync(file.fileno())

    def _say(self, request: Request) -> None:
        message: Message = request["message"]
        self._hears.get(message["type"], self._step.relay)(message)

    def _checkpoint(self, message: Message) -> None:
        """A checkpoint has come over, or one of an earlier attempt is taken over."""
        number = message["step_number"]
        own = self._root / f"{PREFIX}{number}"
        if own.exists():  # the group goes on from it
            return
        if message["metrics"]:
            arrived = self._arriving / message["path"]
            verify(arrived)
            own = write_checkpoint(self._root, number, lambda staging: _move(arrived, staging))
            self._written.add(number)
        else:
            own = take_over(_numbered(self._step.input.resume_from, number), self._root)
        self._step.checkpoint(number, own, message["metrics"])

    def _checkpoint_removed(self, message: Message) -> None:
        folder = self._within(self._step.input.folder, message["path"])
        shutil.rmtree(folder, ignore_errors=True)
        self._step.checkpoint_removed(folder)

    def _resumed(self, message: Message) -> None:
        if message["step_number"] not in self._written:  # else it goes on from what this attempt has done
            self._step.relay(message)

    def _end(self, request: Request) -> None:
        """The training has come to its end, whose files are here now."""
        if self.ending is not None:
            return
        for path in list(self._arriving.iterdir()) if self._arriving.is_dir() else ():
            if path.name != FOLDER:
                path.rename(self._step.input.folder / path.name)
        shutil.rmtree(self._arriving, ignore_errors=True)
        self.ending = request["ending"]

    def _within(self, folder: Path, name: str) -> Path:
        path = (folder / name).resolve()
        path.relative_to(folder.resolve())
        return path


def files_under(folder: Path, among: Iterable[Path] | None = None) -> dict[str, Path]:
    """Files by their names below a folder; all of them, or those that are named."""
    paths = folder.rglob("*") if among is None else among
    return {str(path.relative_to(folder)): path for path in sorted(paths) if path.is_file()}


def _listed(path: Path) -> dict[str, Any]:
    """What a worker can tell by whether it sees the very file where the step does."""
    about = path.stat()
    return {"path": str(path), "bytes": about.st_size, "modified_ns": about.st_mtime_ns}


def _numbered(checkpoints: Iterable[Path], number: int) -> Path:
    return next(path for path in checkpoints if number_of(path) == number)


def _move(arrived: Path, staging: Path) -> None:
    arrived.rename(staging / arrived.name)


def _public(version: str | None) -> str | None:
    """Without the build, such as +cu130: of that, machines have what they need."""
    return version.partition("+")[0] if version is not None else None
